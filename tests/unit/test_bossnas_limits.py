"""BossNAS under limits on cost and under constraints: what is derived is exact, or refused at once.

Also that sampled sets are of one kind in a whole search.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from nas.blockwise import Path, states
from nas.data import DataSet, Split
from nas.methods.bossnas import BossNAS, Option, best_networks, blockwise
from nas.methods.bossnas.heads import Head, HeadSizes
from nas.methods.bossnas.table import options
from nas.plugins import MethodContext, make_method
from nas.protocols import SearchSpace
from nas.spaces.hybrid import HybridSpace
from nas.spaces.hytra import HytraSpace, legal_paths
from nas.spaces.nats_size import NatsSizeSpace
from zoo.errors import InfeasibleError, InvalidInputError
from zoo.schemas import Limit
from zoo.spec import TensorSpec

HYTRA = HytraSpace(widths=(16, 16, 8, 8), layers=(1, 2, 1), stem=4, head_dim=2)
SMALL: dict[str, Any] = {
    "epochs": 1, "warmup_epochs": 0, "batch_size": 8, "accumulate": 1, "calibration_images": 8,
    "features": 8, "hidden": 8, "projection": 4, "sampling": "random", "num_paths": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    split = Split(images=images, labels=torch.arange(8) % 3)
    return DataSet(
        name="made", digest="0" * 64, num_classes=3, class_names=("a", "b", "c"), licence="none",
        inputs=TensorSpec(shape=(3, 16, 16)), mean=(0.5,) * 3, std=(0.3,) * 3, train=split,
        val=split, test=split,
    )  # fmt: skip


def search(
    data: DataSet, space: SearchSpace, limits: tuple[Limit, ...] = (), **params: Any
) -> BossNAS:
    context = MethodContext(space=space, seed=3, data=data, limits=limits)
    method = make_method("bossnas", SMALL | params, context)
    assert isinstance(method, BossNAS)
    return method


def drawn(rng: random.Random, blocks: int) -> list[dict[int, list[Option]]]:
    """Return options after three interfaces, with scores that tie and small whole costs."""
    return [
        {
            before: [
                Option((before, at), rng.choice((rng.random(), 0.5)), rng.randint(1, 9), left, dear)
                for at in range(rng.randint(0, 5))
                for left, dear in [(rng.randrange(3), rng.randint(1, 9))]
            ]
            for before in range(3)
        }
        for _ in range(blocks)
    ]


Walk = tuple[float, tuple[Path, ...]]


def brute(
    table: list[dict[int, list[Option]]], limits: tuple[float, float], before: int = 0
) -> list[Walk]:
    """Return all networks within the limits by trying every one, best first."""
    if not table:
        return [(0.0, ())]
    found = [
        (item.score + score, (item.path, *paths))
        for item in table[0].get(before, [])
        if item.cost <= limits[0] and item.second <= limits[1]
        for score, paths in brute(
            table[1:], (limits[0] - item.cost, limits[1] - item.second), item.interface
        )
    ]
    return sorted(found)


@pytest.mark.parametrize("seed", range(40))
def test_the_best_networks_within_two_limits_are_exact(seed: int) -> None:
    rng = random.Random(seed)
    table = drawn(rng, rng.randint(1, 3))
    limits = (rng.choice((math.inf, rng.randint(4, 20))), float(rng.randint(4, 20)))
    expected = brute(table, limits)
    try:
        found = list(best_networks(table, limit=limits[0], second_limit=limits[1]))
    except InfeasibleError:
        found = []
    assert sorted(paths for _, paths in found) == sorted(paths for _, paths in expected)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected])


def test_two_limits_that_nothing_meets_together_are_refused_at_once(data: DataSet) -> None:
    """Each is met by thousands; looking for a network that meets both would try a million."""
    paths = [Option((at,), 0.0, float(at), 0, 9.0 - at) for at in range(10)]
    table = [{0: paths} for _ in range(6)]
    assert next(best_networks(table, limit=27, second_limit=27))
    with pytest.raises(InfeasibleError, match="second cost of at least 27, above its limit 26"):
        next(best_networks(table, limit=27, second_limit=26))
    limits = (Limit(metric="flops", max=1e9), Limit(metric="num_params", max=1.0))
    with pytest.raises(InfeasibleError, match="limits on flops and num_params: .* above"):
        search(data, HYTRA, limits)


def test_a_search_under_a_tight_limit_keeps_a_network_within_it(data: DataSet) -> None:
    """What is frozen decides which paths are ranked next, so it must leave a way."""
    free = search(data, HYTRA)
    table = options(
        free.cut, [], costs=free._costs, metric="flops", inputs=data.inputs
    )  # fmt: skip
    cost = {}
    for _, paths in best_networks(table, start=free.cut.start):
        rows, total = free.cut.start, 0.0
        for block, path in enumerate(paths):
            item = next(it for it in table[block][rows] if it.path == path)
            rows, total = item.interface, total + item.cost
        cost[paths] = total
    tight = Limit(metric="flops", max=min(cost.values()))
    method = search(data, HYTRA, (tight,))
    while not method.step().done:
        pass
    assert cost[method.cut.split(method.best(1)[0])] == min(cost.values())
    assert cost[tuple(method.siamese.chosen)] == min(cost.values())


def test_no_network_that_was_ranked_is_lost_to_what_a_stage_remembers() -> None:
    """After stages that are not mixed, pure strings that were ranked after mixed ones count."""
    space = HybridSpace(
        widths=(8, 8, 8), depths=((1, 2), (2, 2), (2, 2)), strides=(1, 1, 1), multipliers=(1,),
        stem=8, stem_stride=1, attention_from=1, last=8, constraint="asymmetric",
        attention_settings={"head_dim": 4},
    )  # fmt: skip
    cut = blockwise(space)
    first = space.parse("CT-CC-TT")
    rankings, interface = [], cut.start
    for block, path in enumerate(cut.split(first)):
        rankings.append(dict.fromkeys(cut.paths(block, interface), -1.0))
        interface = cut.interface(block, path)
    derived = {cut.join(paths) for _, paths in best_networks(options(cut, rankings))}
    assert len(derived) == space.size()


def test_sampled_sets_are_fair_only_if_they_are_in_every_block(data: DataSet) -> None:
    """After 1/32 HyTra chooses freely between two operations; its sets are random all the same."""
    deep = replace(HYTRA, layers=(1, 2, 2))
    method = search(data, deep, sampling="auto", num_paths=4)
    assert (2, 0) in set(states(method.cut))
    for path in ((4,), (2, 0)):
        method.siamese.choose(path)
    method._begin()
    assert method.paths == legal_paths(1, 2)
    assert len(set(method.sampled(1, 0, 0))) == 4
    assert search(data, NatsSizeSpace(widths=(2, 4)), sampling="auto")._sets_are_fair
    with pytest.raises(InvalidInputError, match="use 'random'"):
        search(data, HYTRA, sampling="fair")


def test_interfaces_of_one_shape_share_an_adapter() -> None:
    sizes = HeadSizes(features=4, hidden=4, projection=2)
    head = Head({0: (3, 1), 1: (5, 1), 4: (3, 1)}, sizes, predicts=False).eval()
    assert list(head.adapters) == ["0", "1"]
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(head(x, 0), head(x, 4))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"ranking_images": 2.5}, "ranking_images is 2.5"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
    ],
)
def test_settings_that_would_fail_later_are_refused(
    data: DataSet, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        search(data, HYTRA, **params)


def test_a_block_that_does_not_fit_the_images_is_refused_before_any_is_trained(
    data: DataSet,
) -> None:
    space = HybridSpace(
        widths=(8, 8), depths=((1, 1), (1, 1)), strides=(1, 2), multipliers=(1,), stem=8,
        stem_stride=2, attention_from=4, last=8, attention="neighbourhood",
        attention_settings={"head_dim": 4, "kernel": 5},
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"\(4, 4\) pixels are smaller than a window of 5"):
        search(data, space)


def test_without_validation_images_nothing_can_be_ranked(data: DataSet) -> None:
    empty = Split(images=data.val.images[:0], labels=data.val.labels[:0])
    with pytest.raises(InvalidInputError, match="a validation set to rank on"):
        search(replace(data, val=empty), HYTRA)
