"""The fused supernet is the unfused one: same function, gradients, statistics and names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nas.spaces.darts import DartsSpace
from nas.supernet import KINDS, ArchParameters, Mixture, SearchCell, Supernet, channel_shuffle
from nas.supernet_fused import FusedCell, shuffled, stack, unstack
from zoo.families.darts_operations import ALL_OPERATIONS, OPERATIONS, PRIMITIVE_SETS

SEPARATE = partial(FusedCell, dense_channels=0)
PUBLISHED = DartsSpace(cells=8, channels=16, nodes=4)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def both(
    space: DartsSpace, *, k: int, cell: Callable[..., nn.Module], in_chans: int = 3
) -> tuple[Supernet, Supernet]:
    """Return an unfused and a fused network of the same weights."""
    plain = Supernet(space, in_chans=in_chans, num_classes=5, k=k)
    fused = Supernet(space, in_chans=in_chans, num_classes=5, k=k, cell=cell)
    fused.load_state_dict(plain.state_dict())
    return plain.train(), fused.train()


def arch(space: DartsSpace) -> ArchParameters:
    """Return parameters of the size of a finished search."""
    generator = torch.Generator().manual_seed(1)
    made = ArchParameters(space.nodes, len(space.ops), generator=generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1e3)
    return made


def gradients(
    net: Supernet, made: ArchParameters, x: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and every gradient by its unfused name."""
    net.zero_grad()
    made.zero_grad()
    loss = F.cross_entropy(net(x, made()), labels)
    torch.autograd.backward(loss)
    named = [*net.named_parameters(), *made.named_parameters()]
    found = {name: value.grad for name, value in named if value.grad is not None}
    assert len(found) == len(named)
    unstack(net, found)
    return loss.detach(), found


def assert_equal(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], tolerance: float
) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("cell", [FusedCell, SEPARATE], ids=["dense", "separate"])
@pytest.mark.parametrize(
    ("cells", "channels", "k"), [(3, 4, 4), (4, 8, 4), (4, 8, 2), (3, 4, 1), (3, 8, 8)]
)
def test_loss_gradients_and_statistics_are_those_of_the_unfused_network(
    cells: int, channels: int, k: int, cell: Callable[..., nn.Module]
) -> None:
    space = DartsSpace(cells=cells, channels=channels, nodes=4)
    plain, fused = (net.double() for net in both(space, k=k, cell=cell))
    made = arch(space).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 4])
    loss, wanted = gradients(plain, made, x, labels)
    ours, found = gradients(fused, made, x, labels)
    assert abs(float(ours - loss)) < 1e-10
    assert_equal(found, wanted, 1e-10)
    assert_equal(dict(fused.state_dict()), dict(plain.state_dict()), 1e-10)


@pytest.mark.parametrize(
    "ops",
    [
        ("none", "skip_connect"),
        ("none", "skip_connect", "sep_conv_3x3"),
        ("max_pool_3x3",),
        ("dil_conv_5x5", "none", "avg_pool_3x3"),
        ("dil_conv_3x3", "sep_conv_5x5"),
        tuple(reversed(OPERATIONS)),
        *(PRIMITIVE_SETS[name] for name in ("sharp-darts", "sharp", "sharper")),
        tuple(reversed(ALL_OPERATIONS)),
    ],
)
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_choice_of_operations_is_fused(
    ops: tuple[str, ...], nodes: int, dtype: torch.dtype
) -> None:
    space = DartsSpace(cells=3, channels=4, nodes=nodes, ops=ops)
    cell = FusedCell if dtype == torch.float32 else SEPARATE
    plain, fused = (net.to(dtype) for net in both(space, k=2, cell=cell))
    made = arch(space).to(dtype)
    x = torch.randn(5, 3, 9, 7, dtype=dtype)
    labels = torch.arange(5)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    loss, wanted = gradients(plain, made, x, labels)
    ours, found = gradients(fused, made, x, labels)
    assert abs(float(ours - loss)) < tolerance
    assert_equal(found, wanted, tolerance)


def test_large_images_enter_by_the_imagenet_stem() -> None:
    space = DartsSpace(cells=2, channels=4, nodes=2, stem="imagenet")
    plain, fused = (net.double().eval() for net in both(space, k=2, cell=FusedCell))
    x = torch.randn(2, 3, 40, 36, dtype=torch.float64)
    mixtures = arch(space).double()()
    torch.testing.assert_close(fused(x, mixtures), plain(x, mixtures), rtol=0, atol=1e-10)


def test_the_imagenet_supernet_has_the_originals_number_of_weights() -> None:
    space = DartsSpace(cells=8, channels=16, nodes=4, stem="imagenet")
    with torch.device("meta"):
        for cell in (SearchCell, FusedCell):
            supernet = Supernet(space, in_chans=3, num_classes=1000, k=2, cell=cell)
            assert sum(weight.numel() for weight in supernet.parameters()) == 956_512


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_names_and_shapes_of_a_state_are_those_of_the_unfused_network(k: int) -> None:
    plain, fused = both(PUBLISHED, k=k, cell=FusedCell)
    expected, found = plain.state_dict(), fused.state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    back = Supernet(PUBLISHED, in_chans=3, num_classes=5, k=k)
    back.load_state_dict(found)
    assert len(list(fused.parameters())) < len(list(plain.parameters())) / 6


def test_stacking_undoes_unstacking() -> None:
    _, fused = both(DartsSpace(cells=2, channels=4, nodes=2), k=2, cell=FusedCell)
    values = {name: torch.randn_like(value) for name, value in fused.named_parameters()}
    renamed = dict(values)
    unstack(fused, renamed)
    assert renamed.keys() > {name for name in values if "sources" not in name}
    assert not any("sources" in name for name in renamed)
    stack(fused, renamed)
    assert_equal(renamed, values, 0.0)


def test_a_state_with_a_weight_missing_is_refused() -> None:
    plain, fused = both(DartsSpace(cells=2, channels=4, nodes=1), k=2, cell=FusedCell)
    state = plain.state_dict()
    del state["cells.0.edges.0.ops.4.1.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        fused.load_state_dict(state)


class Count(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def test_a_pass_takes_at_most_227_convolutions_instead_of_1395() -> None:
    counts = {}
    with torch.device("meta"):
        for cell in (SearchCell, FusedCell):
            net = Supernet(PUBLISHED, in_chans=3, num_classes=10, k=4, cell=cell)
            mixtures = {kind: Mixture(torch.zeros(14, 8), torch.zeros(14)) for kind in KINDS}
            with Count() as count:
                net(torch.zeros(2, 3, 32, 32), mixtures)
            counts[cell] = count.calls["convolution"], count.calls["native_batch_norm"]
    assert not count.calls["index"]  # by a list: a GPU would have to wait for its copy
    assert counts[SearchCell] == (1395, 929)
    assert counts[FusedCell][0] <= 227
    assert counts[FusedCell][1] <= 181


def saved_bytes(cell: type[nn.Module], k: int) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, each storage once."""
    space = DartsSpace(cells=3, channels=16, nodes=4)
    net = Supernet(space, in_chans=3, num_classes=10, k=k, cell=cell)
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = net(torch.randn(2, 3, 16, 16), arch(space)())
    del kept
    return sum(held.values())


def test_less_is_kept_for_the_backward_pass_and_the_less_the_larger_k() -> None:
    ours = [saved_bytes(FusedCell, k) for k in (2, 4, 8)]
    theirs = [saved_bytes(SearchCell, k) for k in (2, 4, 8)]
    assert ours == sorted(ours, reverse=True)
    assert all(a < b for a, b in zip(ours, theirs, strict=True))


def test_bfloat16_keeps_statistics_and_shares_in_float32() -> None:
    space = DartsSpace(cells=3, channels=8, nodes=2)
    plain, fused = both(space, k=2, cell=FusedCell)
    made = arch(space)
    x = torch.randn(8, 3, 12, 12)
    wanted = plain(x, made())
    with torch.autocast("cpu", torch.bfloat16):
        logits = fused(x, made())
    torch.autograd.backward(F.cross_entropy(logits.float(), torch.arange(8) % 5))
    torch.testing.assert_close(logits.float(), wanted, rtol=0.1, atol=0.1)
    buffers = [value for value in fused.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in buffers} == {torch.float32}
    assert {value.grad.dtype for value in made.parameters() if value.grad is not None} == {
        torch.float32
    }


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_shuffle_keeps_the_memory_format(groups: int) -> None:
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    out = shuffled(x, groups)
    assert torch.equal(out, channel_shuffle(x, groups))
    assert out.is_contiguous(memory_format=torch.channels_last)
