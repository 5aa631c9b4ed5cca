"""Counted cost against sums by hand, and the look at a space before its search."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from nas.cost import Spread, cost, preview
from nas.cost.analytic import ChainCosts
from nas.evaluation import Latency
from nas.spaces.darts import DartsSpace
from zoo.builders import build_chain, register
from zoo.errors import IncompatibleShapeError
from zoo.rng import derive_seed
from zoo.schemas import Limit
from zoo.spec import Architecture, BlockSpec, TensorSpec

IMAGE = TensorSpec(shape=(3, 8, 8))


def conv(before: int, after: int, kernel: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False, **options)


def test_a_convolution_costs_its_multiply_accumulates() -> None:
    counted = cost(conv(3, 8, 3), IMAGE)
    assert counted.flops == 8 * 8 * 8 * 3 * 9
    assert counted.num_params == 8 * 3 * 9
    assert counted.size_bytes == 4 * 8 * 3 * 9


def test_groups_strides_and_linear_layers_are_counted_right() -> None:
    module = nn.Sequential(
        conv(3, 6, 3, groups=3, stride=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 10)
    )
    counted = cost(module, IMAGE)
    assert counted.flops == 6 * 16 * 9 + 6 * 16 * 10
    assert counted.num_params == 6 * 9 + 12 + 6 * 16 * 10 + 10
    assert counted.size_bytes == 4 * (counted.num_params + 12) + 8


def test_the_peak_is_the_largest_set_alive_at_once() -> None:
    """Input 768 bytes, then 2,048 of the first map: both alive while it is written."""
    chain = nn.Sequential(conv(3, 8, 3), conv(8, 2, 3))
    counted = cost(chain, IMAGE)
    assert counted.peak_bytes - counted.size_bytes == 4 * 64 * (3 + 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 3, 3), conv(3, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.second(torch.relu_(self.first(images)))


def test_a_shortcut_keeps_its_input_alive() -> None:
    """The input lives to the addition: with the second map and its input, or the sum, three."""
    counted = cost(Residual(), IMAGE)
    assert counted.peak_bytes - counted.size_bytes == 4 * 64 * 3 * 3


def test_views_and_weights_are_no_activations() -> None:
    counted = cost(nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False)), IMAGE)
    assert counted.peak_bytes - counted.size_bytes == 4 * (192 + 4)


def test_tied_weights_are_counted_once() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    counted = cost(nn.Sequential(first, second), TensorSpec(shape=(8,)))
    assert counted.num_params == 64
    assert counted.size_bytes == 256
    assert counted.flops == 128


def test_counting_leaves_the_network_as_it_was() -> None:
    module = nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    cost(module, IMAGE)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert [part.training for part in module] == [True, False, True]


def test_attention_is_counted_as_two_matrix_products() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert cost(Attention(), TensorSpec(shape=(2, 10, 16))).flops == 2 * (2 * 10 * 10 * 16)


def test_a_shape_that_does_not_fit_is_named() -> None:
    with pytest.raises(IncompatibleShapeError, match=r"rejects an input of shape \(4, 8, 8\)"):
        cost(conv(3, 8, 3), TensorSpec(shape=(4, 8, 8)))
    with pytest.raises(IncompatibleShapeError, match="free dimension"):
        cost(conv(3, 8, 3), TensorSpec(shape=(3, None, 8)))


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Twice(nn.Module):
    """Returns its input twice, the second time as a view that is not contiguous."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.transpose(1, 2)


class Joined(nn.Module):
    """Copies what is not contiguous; keeps the first input to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(64))
        self.tied = self.bias

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = b.reshape(1, 64)
        flat.add_(self.bias + self.tied)
        return a.relu_(), flat.view(1, 8, 8), self.bias


class Mixed(nn.Module):
    def forward(self, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        low, high = (a @ b).chunk(2, dim=1)
        return torch.cat([low + high, (bias.view(8, 8) + b)[:, :4]])


class Parted(nn.Module):
    """Returns two results, of which the first is not used once the second is written."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


CHAIN = {
    "test.twice": Twice,
    "test.joined": Joined,
    "test.mixed": Mixed,
    "test.parted": Parted,
}


@pytest.fixture(scope="module")
def passing() -> tuple[BlockSpec, ...]:
    """A chain of blocks that pass on views, shared memory and a weight."""
    for op, module in CHAIN.items():
        register(op)(lambda spec, module=module: module())
    square, line = TensorSpec(shape=(8, 8)), TensorSpec(shape=(64,))
    return (
        BlockSpec(op="test.twice", inputs=(square,), outputs=(square, square)),
        BlockSpec(op="test.joined", inputs=(square, square), outputs=(square, square, line)),
        BlockSpec(op="test.mixed", inputs=(square, square, line), outputs=(square,)),
        BlockSpec(op="test.parted", inputs=(square,), outputs=(square, square)),
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_blocks_that_share_memory_add_up_to_the_chain(
    passing: tuple[BlockSpec, ...], length: int
) -> None:
    """What lives from one block to another is counted once, for as long as it lives."""
    square = TensorSpec(shape=(8, 8))
    chain = passing[:length]
    assert ChainCosts().cost(chain, square) == cost(build_chain(chain), square)


def test_all_results_of_a_chain_are_alive_at_its_end(passing: tuple[BlockSpec, ...]) -> None:
    """The input and both results, though the first is not read while the second is written."""
    assert ChainCosts().cost(passing[-1:], TensorSpec(shape=(8, 8))).peak_bytes == 3 * 256


def test_a_block_is_counted_anew_where_its_inputs_lie_otherwise(
    passing: tuple[BlockSpec, ...],
) -> None:
    """A view that is not contiguous is copied, a whole tensor of the same shape is not."""
    square = TensorSpec(shape=(8, 8))
    copies = BlockSpec(op="test.flat", inputs=(square,), outputs=(square,))
    turns = BlockSpec(op="test.turned", inputs=(square,), outputs=(square,))
    register("test.flat")(lambda spec: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 8))))
    register("test.turned")(lambda spec: Turned())
    costs = ChainCosts()
    for chain in ([copies], [turns, copies], [copies, turns, copies, copies]):
        assert costs.cost(chain, square) == cost(build_chain(chain), square)
    copied = costs.cost([turns, copies], square).peak_bytes
    assert copied == 2 * costs.cost([copies], square).peak_bytes == 2 * 256


SPACE = DartsSpace(cells=1, channels=2, nodes=1)


def test_a_preview_spans_what_the_samples_cost() -> None:
    found = preview(SPACE, IMAGE, 10, samples=12, seed=1)
    rng = random.Random(derive_seed(1, "preview"))
    known = sorted(
        cost(SPACE.build(SPACE.sample(rng), inputs=IMAGE, num_classes=10), IMAGE).flops
        for _ in range(12)
    )
    flops = found.cost["flops"]
    assert found.size == SPACE.size()
    assert flops == Spread(min=known[0], median=(known[5] + known[6]) / 2, max=known[-1])
    assert "latency_ms" not in found.cost
    assert found.feasible
    assert found == preview(SPACE, IMAGE, 10, samples=12, seed=1)


def test_climbing_finds_ends_that_samples_missed_and_keeps_their_median() -> None:
    space = DartsSpace(cells=1, channels=2, nodes=2)
    few = preview(space, IMAGE, 10, samples=4)
    ends = preview(space, IMAGE, 10, samples=4, climbs=24)
    assert ends.cost["flops"].min < few.cost["flops"].min
    assert ends.cost["flops"].max > few.cost["flops"].max
    assert ends.cost["flops"].median == few.cost["flops"].median


def test_a_preview_measures_a_few_from_the_cheapest_to_the_dearest() -> None:
    asked: list[int] = []

    def measure(architecture: Architecture) -> Latency:
        flops = cost(SPACE.build(architecture, inputs=IMAGE, num_classes=10), IMAGE).flops
        asked.append(flops)
        return Latency(median_ms=flops / 1e3, p95_ms=flops / 1e3, device="d")

    found = preview(SPACE, IMAGE, 10, measure, samples=20, seed=0, measured=5)
    assert len(asked) == 5
    latency, flops = found.cost["latency_ms"], found.cost["flops"]
    assert (latency.min, latency.max) == (flops.min / 1e3, flops.max / 1e3)


def test_a_limit_out_of_reach_is_reported_with_the_nearest_value() -> None:
    limits = [Limit(metric="num_params", max=1.0), Limit(metric="accuracy", min=0.9)]
    found = preview(SPACE, IMAGE, 10, samples=8, limits=limits)
    assert not found.feasible
    least = found.cost["num_params"].min
    assert found.reason == f"the least num_params seen is {least:g}, above the limit 1"


def test_the_feasible_share_counts_who_keeps_all_limits() -> None:
    open_ = preview(SPACE, IMAGE, 10, samples=31)
    half = preview(
        SPACE,
        IMAGE,
        10,
        samples=31,
        limits=[Limit(metric="flops", max=open_.cost["flops"].median)],
    )
    assert open_.feasible_share == 1
    assert 0.5 <= half.feasible_share < 1
    both = preview(
        SPACE,
        IMAGE,
        10,
        samples=31,
        limits=[Limit(metric="flops", max=open_.cost["flops"].min, min=open_.cost["flops"].max)],
    )
    assert not both.feasible
    assert both.reason is not None
    assert "at once" in both.reason
