"""Hashes next door, and the confirmation of hits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.identity import identify_module
from zoo.certificates import CONFIRMED_BITS, Certificate, Proof, Signature
from zoo.errors import InvalidInputError
from zoo.signature import (
    LOUD,
    hash_tensors,
    integer_limits,
    probes,
    probes_for,
    uniform,
    weight_proof,
    weight_signature,
)
from zoo.spec import TensorSpec

VECTOR = TensorSpec(shape=(6,))


def hashed(value: float) -> tuple[str, tuple[str, ...]]:
    tensor = torch.tensor([value, 1.3], dtype=torch.float64)
    return hash_tensors([tensor], mantissa_bits=16)


@pytest.mark.parametrize("edge", [1.5, 2.0, -0.75])
def test_two_roundings_that_straddle_an_edge_find_each_other(edge: float) -> None:
    below, above = (edge * (1 + sign * 1e-12) for sign in (-1, 1))
    (first, next_to_first), (second, next_to_second) = hashed(below), hashed(above)
    assert first != second
    assert second in next_to_first
    assert first in next_to_second


def test_a_number_within_its_bucket_has_no_neighbours() -> None:
    assert hashed(1.3) == (hashed(1.3)[0], ())


def test_at_most_seven_hashes_are_next_door() -> None:
    _, alternates = hash_tensors([torch.ones(12)], mantissa_bits=16)
    assert len(alternates) == 7
    assert len(set(alternates)) == 7


def test_a_signature_is_the_known_one_of_its_neighbours() -> None:
    signature = Signature(key="a", alternates=("b", "c"))
    assert signature.among({"c", "d"}) == "c"
    assert signature.among({"a", "b"}) == "a"
    assert signature.among(set()) == "a"


def proof(*values: float, probe: str = "p", **marks: bool) -> Proof:
    return Proof(probe=probe, values=values, **marks)


def test_equal_up_to_rounding_is_confirmed_with_its_deviation() -> None:
    certificate = proof(1.0, 4.0).compare(proof(1.0, 4.0 + 2.0**-40))
    assert certificate.confirmed
    assert certificate.deviation == pytest.approx(2.0**-42)
    assert (certificate.probe, certificate.bits) == ("p", CONFIRMED_BITS)
    assert Certificate(**certificate.to_json()) == certificate  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (proof(1.0, 4.0 + 2.0**-30), "the second probes differ"),
        (proof(1.0, 4.0, probe="q"), "different probes"),
        (proof(1.0), "different probes"),
        (proof(1.0, math.nan), "finite where the other is not"),
        (proof(1.0, 4.0, learns_constant=True), "learn a constant"),
        (proof(1.0, 4.0, diverges=True), "diverges"),
    ],
)
def test_what_is_not_the_same_is_refused_with_the_reason(other: Proof, reason: str) -> None:
    certificate = proof(1.0, 4.0).compare(other)
    assert not certificate.confirmed
    assert reason in certificate.reason


def test_nan_equals_nan_and_zeros_equal_zeros() -> None:
    assert proof(math.nan, -math.inf).compare(proof(math.nan, -math.inf)).confirmed
    assert not proof(math.inf).compare(proof(-math.inf)).confirmed
    assert proof(0.0, 0.0).compare(proof(0.0, 0.0)).deviation == 0.0


def test_a_proof_survives_json_bit_for_bit() -> None:
    made = proof(0.1, math.inf, -1e-300, learns_constant=True, diverges=True)
    assert Proof.from_json(made.to_json()) == made
    with pytest.raises(InvalidInputError, match="no proof"):
        Proof.from_json({"probe": "p"})


def layers(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Otherwise(nn.Module):
    """The same layers, coded by hand, with an output in a dictionary."""

    def __init__(self, source: nn.Sequential) -> None:
        super().__init__()
        state = source.state_dict()
        self.weights = nn.ParameterList([state["0.weight"].T, state["2.weight"].T])
        self.offsets = nn.ParameterList([state["0.bias"], state["2.bias"]])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(x @ self.weights[0] + self.offsets[0])
        return {"logits": hidden @ self.weights[1] + self.offsets[1]}


def test_modules_coded_differently_and_functions_on_arrays_agree() -> None:
    module = layers()
    arrays = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def function(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        hidden = np.tanh(x @ arrays["0.weight"].T + arrays["0.bias"])
        return hidden @ arrays["2.weight"].T + arrays["2.bias"]  # type: ignore[no-any-return]

    ways = (module, Otherwise(module), function)
    inputs = probes([VECTOR])
    assert len({weight_signature(way, inputs).key for way in ways}) == 1
    first, *others = (weight_proof(way, [VECTOR]) for way in ways)
    assert all(first.compare(other).confirmed for other in others)
    assert weight_signature(layers(1), inputs).key != weight_signature(module, inputs).key
    assert not first.compare(weight_proof(layers(1), [VECTOR])).confirmed


def test_a_difference_beyond_the_hash_is_caught_by_the_proof() -> None:
    module, other = layers(), layers()
    with torch.no_grad():
        other[2].bias += 1e-7
    inputs = probes([VECTOR])
    low = [weight_signature(way, inputs, mantissa_bits=4).key for way in (module, other)]
    assert low[0] == low[1]
    certificate = weight_proof(module, [VECTOR]).compare(weight_proof(other, [VECTOR]))
    assert not certificate.confirmed
    assert certificate.deviation is not None


def agree(first: Any, second: Any, spec: TensorSpec) -> list[bool]:
    """Return whether two functions have one hash, and whether it is confirmed."""
    keys = [weight_signature(way, probes_for(way, [spec])).key for way in (first, second)]
    proofs = [weight_proof(way, [spec]) for way in (first, second)]
    return [keys[0] == keys[1], proofs[0].compare(proofs[1]).confirmed]


def test_embeddings_that_differ_in_some_tokens_are_told_apart() -> None:
    tokens = TensorSpec(shape=(5,), dtype="int64")
    table, other = nn.Embedding(1000, 4), nn.Embedding(1000, 4)
    with torch.no_grad():
        other.weight.copy_(table.weight)
        other.weight[300:] += 0.1
    array = table.weight.detach().double().numpy()
    assert agree(table, lambda ids: array[ids], tokens) == [True, True]
    assert agree(table, other, tokens) == [False, False]


def convolutions(activation: Callable[[], nn.Module], norm: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [nn.Conv2d(3, 8, 3, padding=1), norm(), activation()]
        parts += [nn.Conv2d(8, 8, 3, padding=1), norm(), activation()]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm2d(8)])
def test_activations_that_differ_in_large_values_only_are_told_apart(
    norm: Callable[[], nn.Module],
) -> None:
    images = TensorSpec(shape=(3, 8, 8))
    plain = convolutions(nn.ReLU, norm)
    for bounded in (nn.ReLU6, lambda: nn.Hardtanh(0.0, 20.0)):
        assert agree(plain, convolutions(bounded, norm), images) == [False, False]
    clipped = convolutions(lambda: nn.Hardtanh(0.0, 6.0), norm)
    assert agree(convolutions(nn.ReLU6, norm), clipped, images) == [True, True]
    elus = (convolutions(kind, norm) for kind in (nn.ELU, nn.CELU))
    assert agree(*elus, images) == [True, True]


def test_that_loud_inputs_are_refused_is_part_of_what_is_hashed() -> None:
    def refusing(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        if np.abs(x).max() > 1:
            raise OverflowError("numerical result out of range")
        return 2 * x

    assert agree(refusing, refusing, VECTOR) == [True, True]
    assert agree(refusing, lambda x: 2 * x, VECTOR) == [False, False]


def test_integers_are_not_made_loud() -> None:
    def counted(*values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        runs.append(values)
        return values[0]

    runs: list[tuple[Any, ...]] = []
    tokens = probes([TensorSpec(shape=(5,), dtype="int64")])
    weight_signature(counted, tokens)
    assert len(runs) == 1
    weight_signature(counted, (*tokens, *probes([VECTOR])))
    assert len(runs) == 3
    assert np.array_equal(runs[2][0], runs[1][0])
    assert np.array_equal(runs[2][1], LOUD * runs[1][1])


def test_overflow_on_loud_inputs_is_hashed_and_large_values_hide_no_small_ones() -> None:
    def overflowing(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.exp(40 * x)  # type: ignore[no-any-return]

    assert agree(overflowing, lambda x: np.exp(20 * x) ** 2, VECTOR) == [True, True]
    assert agree(overflowing, lambda x: np.exp(np.minimum(40 * x, 99)), VECTOR) == [False, False]
    # The loud run reaches e^32; beside that a difference of 1e-7 would be nothing.
    assert not agree(np.exp, lambda x: np.exp(x) + 1e-7, VECTOR)[1]


def test_complex_weights_and_inputs_are_hashed_whole() -> None:
    class Turned(nn.Module):
        def __init__(self, angle: complex) -> None:
            super().__init__()
            self.angle = nn.Parameter(torch.tensor(angle, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.angle

    assert agree(Turned(1 + 2j), Turned(1 + 2j), VECTOR) == [True, True]
    assert agree(Turned(1 + 2j), Turned(1 - 2j), VECTOR) == [False, False]
    waves = [torch.view_as_complex(uniform((3, 4, 2), 0))]
    bounded = [weight_signature(way, waves).key for way in (np.copy, lambda x: x.clip(None, 9))]
    assert len(set(bounded)) == 2


@pytest.mark.parametrize("size", [2, 3, 1000])
def test_a_vocabulary_is_found_by_trying(size: int) -> None:
    table = nn.Embedding(size, 2)
    tokens = TensorSpec(shape=(6,), dtype="int64")
    assert integer_limits(lambda inputs: table(*inputs), [tokens]) == [size]
    spread = probes([tokens], limits=[size])[0]
    assert spread[0].max() <= 1
    assert spread.max() < size
    assert spread.max() > 0.8 * size - 1


def test_functions_that_work_in_place_leave_the_probes_alone() -> None:
    def doubled(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        x *= 2
        return x

    inputs = probes([VECTOR])
    first = weight_signature(doubled, inputs).key
    assert torch.equal(inputs[0], probes([VECTOR])[0])
    assert weight_signature(doubled, inputs).key == first


def test_complex_values_and_caches_are_hashed_and_chance_is_fixed() -> None:
    assert agree(np.fft.fft, lambda x: np.fft.fft(x).conj(), VECTOR) == [False, False]
    assert agree(lambda x: [x, iter([x.sum(-1)])], lambda x: (x, x.sum(-1)), VECTOR)[0]

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5)  # in evaluation too

    assert agree(Noisy(), Noisy(), VECTOR) == [True, True]


def test_casts_to_float32_lose_nothing() -> None:
    class Cast(nn.Module):
        def __init__(self, narrow: bool) -> None:
            super().__init__()
            self.narrow = narrow

        def forward(self, x: Tensor) -> Tensor:
            y = x.to(torch.float32) if self.narrow else x
            return torch.softmax(y, -1, dtype=torch.float32 if self.narrow else None)

    assert agree(Cast(True), Cast(False), VECTOR) == [True, True]


def test_what_is_no_array_cannot_be_hashed() -> None:
    with pytest.raises(InvalidInputError, match="a str cannot be hashed"):
        weight_signature(lambda x: "logits", probes([VECTOR]))


@pytest.fixture
def _vision_schemas() -> Iterator[None]:
    """Declare what torchvision's binary would, where torch is too plain to load it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    with contextlib.suppress(RuntimeError):
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    library._destroy()


class LlamaByHand(nn.Module):
    """What a Llama of one layer and one head computes, in float64 throughout."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.model, self.out = source.model, source.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x, (layer,) = self.model.embed_tokens.weight[tokens], self.model.layers
        size = tokens.shape[1]
        turned = torch.arange(size)[:, None] * self.model.rotary_emb.inv_freq.repeat(2)
        y = self.norm(x, layer.input_layernorm.weight)
        q, k, v = (y @ getattr(layer.self_attn, f"{name}_proj").weight.T for name in "qkv")
        q, k = (
            part * turned.cos() + torch.cat([-part[..., 4:], part[..., :4]], -1) * turned.sin()
            for part in (q, k)
        )
        later = torch.full((size, size), -torch.inf, dtype=x.dtype).triu(1)
        mixed = ((q @ k.transpose(-1, -2)) / 8**0.5 + later).softmax(-1) @ v
        x = x + mixed @ layer.self_attn.o_proj.weight.T
        y, dense = self.norm(x, layer.post_attention_layernorm.weight), layer.mlp
        gated = nn.functional.silu(y @ dense.gate_proj.weight.T) * (y @ dense.up_proj.weight.T)
        return self.norm(x + gated @ dense.down_proj.weight.T, self.model.norm.weight) @ self.out.T

    def norm(self, x: Tensor, scale: Tensor) -> Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale


class LogitsOf(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, use_cache=False).logits
        return logits


@pytest.mark.slow
@pytest.mark.usefixtures("_vision_schemas")
def test_a_model_of_transformers_is_the_one_written_by_hand() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    model, tokens = LlamaForCausalLM(config), TensorSpec(shape=(5,), dtype="int64")
    assert agree(LogitsOf(model), LlamaByHand(model), tokens) == [True, True]
    assert agree(model, model, tokens) == [True, True]  # with its cache
    assert agree(LogitsOf(model), LogitsOf(LlamaForCausalLM(config)), tokens) == [False, False]
    learning = [identify_module(way, [tokens]) for way in (LogitsOf(model), LlamaByHand(model))]
    assert learning[0].signature.key == learning[1].signature.key
    assert learning[0].proof.compare(learning[1].proof).confirmed


@pytest.mark.slow
@pytest.mark.usefixtures("_vision_schemas")
def test_imported_models_are_hashed_by_what_they_compute() -> None:
    from timm.models.vision_transformer import VisionTransformer
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    tokens = TensorSpec(shape=(5,), dtype="int64")
    images = TensorSpec(shape=(3, 8, 8))

    def vit() -> nn.Module:
        return VisionTransformer(
            img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3
        )

    for make, spec in ((lambda: BertModel(config), tokens), (vit, images)):
        model, again = make(), make()
        again.load_state_dict(model.state_dict())
        assert agree(model, again, spec) == [True, True]
        assert agree(model, make(), spec) == [False, False]
