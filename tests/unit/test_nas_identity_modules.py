"""The functional hash of modules: traced, coded otherwise, with state, dropout and tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.graph import Graph
from nas.identity import Identity, graph_signature, identify_module
from zoo.errors import InvalidInputError
from zoo.spec import TensorSpec

IMAGES = TensorSpec(shape=(4, 6, 6))
SEQUENCE = TensorSpec(shape=(5, 8))
TOKENS = TensorSpec(shape=(5,), dtype="int64")


def identity(module: nn.Module, *inputs: TensorSpec) -> Identity:
    return identify_module(module, inputs or (SEQUENCE,))


def key(module: nn.Module, *inputs: TensorSpec) -> str:
    return identity(module, *inputs).signature.key


def image_net(first: nn.Module, *others: nn.Module) -> nn.Module:
    return nn.Sequential(first, *others, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def conv(**settings: object) -> nn.Module:
    return nn.Conv2d(4, 8, 3, **({"padding": 1} | settings))  # type: ignore[arg-type]


class Written(nn.Module):
    """A module of a function and named parts, to write cases in a line."""

    def __init__(self, run: Callable[..., object], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


def test_every_setting_of_a_convolution_or_a_norm_is_seen() -> None:
    convs = [
        conv(), conv(groups=2), conv(groups=4), conv(dilation=2, padding=2), conv(stride=2),
        conv(bias=False), conv(padding_mode="circular"), conv(padding=0),
    ]  # fmt: skip
    norms = [
        nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, eps=1e-3),
        nn.GroupNorm(2, 8), nn.GroupNorm(1, 8), nn.InstanceNorm2d(8),
    ]  # fmt: skip
    networks = [image_net(item) for item in convs]
    networks += [image_net(conv(), item, nn.ReLU()) for item in norms]
    activations = [nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.ReLU(), nn.ReLU6(), nn.Hardswish()]
    networks += [image_net(conv(), item) for item in activations]
    networks += [image_net(conv(), nn.BatchNorm2d(8), item) for item in (nn.ReLU6(), nn.SiLU())]
    assert len({key(network, IMAGES) for network in networks}) == len(networks)


def test_traced_modules_and_those_that_work_in_place_are_the_same() -> None:
    plain = image_net(nn.ReLU(), conv(), nn.BatchNorm2d(8), nn.ReLU())
    in_place = image_net(nn.ReLU(inplace=True), conv(), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    traced = torch.fx.symbolic_trace(plain)
    assert key(plain, IMAGES) == key(in_place, IMAGES) == key(traced, IMAGES)


def attention(heads: int) -> nn.Module:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attend(y, y, y, need_weights=False)[0]

    attend = nn.MultiheadAttention(8, heads, batch_first=True)
    return Written(run, norm=nn.LayerNorm(8), attend=attend)


def attention_by_hand() -> nn.Module:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        spread = (x.float() - x.mean(-1, keepdim=True)) / torch.sqrt(
            x.var(-1, unbiased=False, keepdim=True) + 1e-5
        )
        mixed = (spread * self.scale + self.shift) @ self.into.T + self.offset
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in mixed.chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2, -1, dtype=torch.float32)
        return self.out((weights @ v).transpose(1, 2).flatten(2)) + x

    return Written(
        run, out=nn.Linear(8, 8), offset=nn.Parameter(torch.zeros(24)),
        into=nn.Parameter(torch.zeros(24, 8)), shift=nn.Parameter(torch.zeros(8)),
        scale=nn.Parameter(torch.zeros(8)),
    )  # fmt: skip


def test_attention_coded_by_hand_with_casts_to_float32_is_the_same() -> None:
    assert key(attention(2)) == key(attention_by_hand())
    assert key(attention(2)) != key(attention(4))


def language(tied: bool, vocabulary: int = 10, *, sparse: bool = False) -> nn.Module:
    def run(self: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
        hidden = self.layer(self.embed(tokens)).tanh()
        return {"logits": hidden @ (self.embed.weight if tied else self.out).T}

    out = nn.Parameter(torch.zeros(vocabulary, 8))
    embed = nn.Embedding(vocabulary, 8, sparse=sparse)
    return Written(run, embed=embed, layer=nn.Linear(8, 8), out=out)


def language_by_hand() -> nn.Module:
    def run(self: nn.Module, tokens: Tensor) -> Tensor:
        embedded = functional.one_hot(tokens, 10).to(self.table.dtype) @ self.table
        return self.layer(embedded).tanh() @ self.table.T

    return Written(run, layer=nn.Linear(8, 8), table=nn.Parameter(torch.zeros(10, 8)))


def test_models_of_language_take_tokens_and_may_tie_their_weights() -> None:
    assert key(language(True), TOKENS) == key(language_by_hand(), TOKENS)
    others = [language(False), language(True, 11), language(False, 11)]
    assert len({key(model, TOKENS) for model in (language(True), *others)}) == 4


def test_gradients_that_an_embedding_keeps_sparse_are_the_same() -> None:
    assert key(language(False, sparse=True), TOKENS) == key(language(False), TOKENS)


def test_one_layer_used_twice_is_not_two() -> None:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())

    once = nn.Linear(8, 8)
    shared = Written(run, first=once, second=once)
    assert key(shared) != key(Written(run, first=nn.Linear(8, 8), second=nn.Linear(8, 8)))


def dropping(order: str, *, p: float = 0.5, dead: bool = False) -> nn.Module:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        if dead:
            self.drop(3 * x)
        terms = {}
        for name in order:
            terms[name] = self.drop(getattr(self, name)(x).sigmoid())
        return terms["a"] + 2 * terms["b"]

    return Written(run, a=nn.Linear(8, 8), b=nn.Linear(8, 8), drop=nn.Dropout(p))


def test_dropout_knows_neither_order_nor_dead_branches_but_is_seen() -> None:
    assert key(dropping("ab")) == key(dropping("ba")) == key(dropping("ab", dead=True))
    assert key(dropping("ab")) != key(dropping("ab", p=0.25))


def test_two_dropouts_of_one_value_are_not_one() -> None:
    def run(self: nn.Module, x: Tensor, twice: bool) -> Tensor:
        y = self.layer(x)
        once = functional.dropout(y, 0.5, self.training)
        return once + (functional.dropout(y, 0.5, self.training) if twice else once)

    one, two = (Written(partial(run, twice=twice), layer=nn.Linear(8, 8)) for twice in (0, 1))
    assert key(one) != key(two)


def test_a_drawing_with_dropout_has_one_hash() -> None:
    def drawing() -> Graph:
        graph = Graph(TensorSpec(shape=(4,)))
        hidden = graph.apply("dense", partial(nn.Linear, 4, 4), graph.input())
        graph.apply("drop", partial(nn.Dropout, 0.5), hidden, parametric=False)
        return graph

    first = graph_signature(drawing())
    torch.rand(3)
    assert graph_signature(drawing()) == first


class Averaging(nn.Module):
    """Scales by a running mean, which every run moves."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("mean", torch.full((8,), start))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.mean.mul_(0.9).add_(y.detach().mean((0, 1)), alpha=0.1)
        return y * self.mean


def test_buffers_are_part_of_what_is_computed_and_start_anew() -> None:
    module = Averaging()
    first = identity(module)
    assert identity(module) == first
    assert torch.equal(module.mean, torch.ones(8))
    assert key(Averaging(2.0)) != first.signature.key


def test_parameters_that_are_not_trained_count_as_they_are() -> None:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())

    trained = Written(run, first=nn.Linear(8, 8), second=nn.Linear(8, 3))
    fixed, other = copy.deepcopy(trained), copy.deepcopy(trained)
    fixed.first.requires_grad_(False)
    other.first.requires_grad_(False).weight.add_(0.1)
    assert len({key(module) for module in (trained, fixed, other)}) == 3
    assert key(copy.deepcopy(fixed)) == key(fixed)


def test_what_starts_at_zero_is_not_what_is_not_there() -> None:
    def run(self: nn.Module, x: Tensor, adapted: bool) -> Tensor:
        return self.layer(x) + (x @ self.down @ self.up if adapted else 0)

    down, up = nn.Parameter(torch.zeros(8, 2)), nn.Parameter(torch.zeros(2, 8))
    modules = [
        Written(partial(run, adapted=adapted), layer=nn.Linear(8, 8), down=down, up=up)
        for adapted in (False, True)
    ]
    assert key(modules[0]) != key(modules[1])


def experts(order: tuple[int, ...]) -> nn.Module:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([self.parts[at](x) for at in order]).sum(0)

    parts = [nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 8)) for _ in range(4)]
    return Written(run, parts=nn.ModuleList(parts))


def test_alike_experts_may_stand_in_any_order_and_are_counted() -> None:
    assert key(experts((0, 1, 2, 3))) == key(experts((2, 0, 3, 1)))
    assert len({key(experts(at)) for at in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 2))}) == 3


def test_networks_that_diverge_are_never_confirmed_to_be_one() -> None:
    def run(self: nn.Module, x: Tensor, power: int) -> Tensor:
        return torch.log(-1 - self.layer(x) ** power)

    first, second = (
        identity(Written(partial(run, power=power), layer=nn.Linear(8, 8))) for power in (2, 4)
    )
    certificate = first.proof.compare(second.proof)
    assert not certificate.confirmed
    assert "diverges" in certificate.reason


def test_several_inputs_states_and_complex_weights_are_taken() -> None:
    def masked(self: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
        return (self.embed(tokens) * mask[..., None]).sum(1)

    def unmasked(self: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.embed(tokens).sum(1)

    mask = TensorSpec(shape=(5,), dtype="bool")
    keys = [key(Written(run, embed=nn.Embedding(9, 4)), TOKENS, mask) for run in (masked, unmasked)]
    assert len(set(keys)) == 2

    lstm = partial(nn.LSTM, 8, 6, 2, batch_first=True)
    assert key(lstm()) == key(lstm()) != key(lstm(dropout=0.5))

    def spectrum(self: nn.Module, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8)

    weight = nn.Parameter(torch.zeros(5, dtype=torch.complex64))
    assert key(Written(spectrum, weight=weight)) == key(Written(spectrum, weight=weight))


def test_a_module_is_left_as_it_was_and_named_if_it_does_not_run() -> None:
    module = attention(2).eval()
    before = copy.deepcopy(module.state_dict())
    key(module)
    assert not module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    with pytest.raises(InvalidInputError, match=r"Written does not run on float32\[4, 6, 6\]"):
        key(module, IMAGES)
