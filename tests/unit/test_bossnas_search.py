"""BossNAS in training: what follows what, what is frozen, rankings, limits, resumption."""

from __future__ import annotations

import copy
import math
from itertools import islice, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.support import naive_ranking
from nas.blockwise import Path
from nas.checkpoint import pack, unpack
from nas.cost.analytic import cost
from nas.data import DataSet, Split
from nas.methods.bossnas import BossNAS, Option, best_networks, blockwise
from nas.methods.bossnas.heads import HeadSizes
from nas.methods.bossnas.ranking import BlockRanking, Node, Views, batch_norms, trie
from nas.methods.bossnas.siamese import Siamese
from nas.plugins import MethodContext, make_method, make_space
from nas.protocols import SearchSpace, StepReport
from nas.spaces.hytra import HytraSpace, legal_paths
from nas.spaces.nats_size import NatsSizeSpace
from zoo.errors import InfeasibleError, InvalidInputError
from zoo.spec import TensorSpec

HYTRA = HytraSpace(widths=(16, 16, 8, 8), layers=(1, 2, 1), stem=4, head_dim=2)
NATS = NatsSizeSpace(widths=(2, 4))
CPU = torch.device("cpu")
SIZES = HeadSizes(features=8, hidden=8, projection=4)
SMALL: dict[str, Any] = {
    "epochs": 2, "warmup_epochs": 0, "batch_size": 8, "accumulate": 1, "calibration_images": 8,
    "features": 8, "hidden": 8, "projection": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (32, 3, 16, 16), dtype=torch.uint8, generator=generator)
    split = Split(images=images, labels=torch.arange(32) % 3)
    val = Split(images=images[:12], labels=split.labels[:12])
    return DataSet(
        name="made", digest="0" * 64, num_classes=3, class_names=("a", "b", "c"), licence="none",
        inputs=TensorSpec(shape=(3, 16, 16)), mean=(0.5,) * 3, std=(0.3,) * 3, train=split,
        val=val, test=split,
    )  # fmt: skip


def search(
    data: DataSet, space: SearchSpace = HYTRA, *, limits: tuple[Any, ...] = (), **params: Any
) -> BossNAS:
    context = MethodContext(space=space, seed=3, data=data, limits=limits)
    method = make_method("bossnas", SMALL | params, context)
    assert isinstance(method, BossNAS)
    return method


def run(method: BossNAS) -> list[StepReport]:
    reports = [method.step()]
    while not reports[-1].done:
        reports.append(method.step())
    return reports


def values(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in module.named_parameters()}


def test_the_target_only_follows_and_has_the_names_of_the_online_network(data: DataSet) -> None:
    method = search(data, ema=0.9)
    target, online = method.siamese.target, method.siamese.online
    names = {name for name, _ in online.named_parameters() if "predictor" not in name}
    assert {name for name, _ in target.named_parameters()} == names
    assert not any(item.requires_grad for item in target.parameters())
    before = values(target)
    assert all(torch.equal(before[name], values(online)[name]) for name in names)
    method.step()
    after, led = values(target), values(online)
    for name in names:
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * led[name])
    method.step()
    own, other = dict(target.named_buffers()), dict(online.named_buffers())
    assert any(not torch.equal(own[name], other[name]) for name in own if "running" in name)


def test_both_networks_run_the_same_paths_and_every_operation_on_them_learns(
    data: DataSet,
) -> None:
    method = search(data, sampling="random", num_paths=3)
    ran: dict[str, list[Path]] = {"online": [], "target": []}
    for name in ran:
        stage = getattr(method.siamese, name)
        stage.block.register_forward_pre_hook(lambda _, args, kept=ran[name]: kept.append(args[1]))
    method.step()
    paths = method.sampled(0, 0, 0)
    assert ran["target"] == [path for path in paths for _ in range(2)]
    assert ran["online"] == ran["target"]
    # The last norms start at zero; from the second step on nothing is behind a zero.
    method.siamese.online.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(0)
    pair = (
        torch.randn(8, 3, 16, 16, generator=generator),
        torch.randn(8, 3, 16, 16, generator=generator),
    )
    method.siamese.gradients(paths, [pair] * len(paths))
    block = method.siamese.online.block
    for path in paths:
        part = block.part(path, 0)
        for name, item in part.named_parameters():
            assert item.grad is not None, name
            assert float(item.grad.abs().sum()) > 0, (path, name)


def test_schedules_go_by_batches_and_an_update_is_at_its_last_one(data: DataSet) -> None:
    """Four batches of 8 an epoch, two an update: the first update is at batch 1 of 8."""
    method = search(data, accumulate=2, epochs=2, warmup_epochs=1, lr=0.4)
    first, second, third = (method.step().metrics for _ in range(3))
    for at, found in ((1, first), (3, second), (5, third)):
        assert found["ema"] == pytest.approx(1 - 0.01 * (math.cos(math.pi * at / 8) + 1) / 2)
    assert first["lr"] == pytest.approx(0.4 * (1 - 3 / 4 * (1 - 1e-4)))
    assert second["lr"] == pytest.approx(0.4 * (1 - 1 / 4 * (1 - 1e-4)))
    assert third["lr"] == pytest.approx(0.4 * (1 + math.cos(math.pi / 2)) / 2)


def test_the_attention_branch_trains(data: DataSet) -> None:
    method = search(data, lr=4.0)
    while len(method.siamese.chosen) < 1:
        method.step()
    starts = values(method.siamese.online.block)
    for _ in range(method.training_steps):
        method.step()
    block = method.siamese.online.block
    attention = [name for name in starts if "mix.qkv" in name]
    gammas = [name.replace("mix.qkv.weight", "last_norm.weight") for name in attention]
    assert attention
    moved = values(block)
    assert any(not torch.equal(moved[name], starts[name]) for name in attention)
    assert any(float(moved[name].abs().max()) > 0 for name in gammas)


def test_gradients_are_summed_over_paths_and_divided_by_the_accumulation(data: DataSet) -> None:
    def gradient(paths: tuple[Path, ...], accumulate: int) -> Tensor:
        networks = siamese(NATS)
        pair = noise(1, 6)
        targets = networks.main.targets(paths, [p[-1] for p in paths], [pair] * len(paths))
        networks.main.targets = lambda *_: targets  # type: ignore[method-assign]
        networks.gradients(paths, [pair] * len(paths), accumulate=accumulate)
        weight = networks.online.head.projector[0].weight.grad  # type: ignore[index,union-attr]
        assert isinstance(weight, Tensor)
        return weight

    one = gradient(((0, 1),), 1)
    torch.testing.assert_close(gradient(((0, 1), (0, 1)), 1), 2 * one, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient(((0, 1),), 4), one / 4)


def test_the_mean_over_devices_is_the_gradient_of_their_parts(data: DataSet) -> None:
    """Two replicas on the CPU stand for two GPUs: each has half of the batch."""
    paths, pair = ((0, 1), (1, 0)), noise(1, 8)
    both = siamese(NATS, devices=2)
    both.gradients(paths, [pair] * 2)
    both.reduce()
    halves = []
    for half in range(2):
        alone = siamese(NATS)
        part = (pair[0].chunk(2)[half], pair[1].chunk(2)[half])
        alone.gradients(paths, [part] * 2)
        halves.append([item.grad for item in alone.online.parameters()])
    for item, first, second in zip(both.online.parameters(), *halves, strict=True):
        if item.grad is not None:
            assert first is not None
            assert second is not None
            torch.testing.assert_close(item.grad, (first + second) / 2)
    with torch.no_grad():
        for item in both.online.parameters():
            item += 1
    both.follow(0.5)
    copied = both.replicas[1]
    for mine, other in zip(both.online.parameters(), copied.online.parameters(), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(both.target.parameters(), copied.target.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_chosen_block_is_frozen_in_its_weights_and_statistics(data: DataSet) -> None:
    method = search(data)
    while not method.siamese.chosen:
        method.step()
    frozen = method.siamese.main.frozen[0]
    state = {name: item.clone() for name, item in frozen.state_dict().items()}
    assert not any(item.requires_grad for item in frozen.parameters())
    for _ in range(3):
        method.step()
    assert all(torch.equal(item, state[name]) for name, item in frozen.state_dict().items())
    assert method.siamese.interface == method.cut.interface(0, method.siamese.chosen[0])
    assert method.paths == method.cut.paths(1, method.siamese.interface)


def siamese(space: SearchSpace, devices: int = 1) -> Siamese:
    cut = blockwise(space)
    return Siamese(
        cut, inputs=TensorSpec(shape=(3, 16, 16)), sizes=SIZES, seed=0, devices=[CPU] * devices
    )


def noise(seed: int, count: int) -> Views:
    made = torch.randn(2, count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return made[0], made[1]


@pytest.mark.parametrize("space", [HYTRA, NATS], ids=["hytra", "nats"])
def test_the_trie_ranks_as_the_loop_over_paths_does(space: SearchSpace) -> None:
    networks = siamese(space)
    networks.choose(networks._cut.paths(0, networks.interface)[-1])
    with torch.no_grad():
        for stage in (networks.online, networks.target):
            for item in stage.parameters():
                item += 0.1 * torch.randn(item.shape, generator=torch.Generator().manual_seed(2))
    before = {name: item.clone() for name, item in networks.online.state_dict().items()}
    paths = networks._cut.paths(1, networks.interface)
    ranking = BlockRanking(
        networks.online, networks.target, paths, lambda path: networks._cut.interface(1, path),
        [features(networks, noise(1, 10))],
    )  # fmt: skip
    batches = [noise(2, 6), noise(3, 5)]
    found = sum(ranking.losses(features(networks, views)) for views in batches)
    for name, item in networks.online.state_dict().items():
        assert torch.equal(item, before[name]), name
    assert all(norm.momentum == 0.1 for norm in batch_norms(networks.online))
    expected, done = naive_ranking.rank(
        networks.online, networks.target, networks.main.frozen, paths,
        lambda path: networks._cut.interface(1, path), noise(1, 10), batches,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert isinstance(found, Tensor)
    assert torch.equal(found.argsort(), expected.argsort())
    # 4 k + 8 block forwards a path and batch, for k frozen blocks; the trie runs far fewer.
    assert done.frozen + done.ranked == (4 + 8) * len(paths) * len(batches)
    assert ranking.work.layers == 2 * (1 + len(batches)) * 2 * len(trie(paths))


def features(networks: Siamese, views: Views) -> Views:
    return networks.main.features(views[0]), networks.main.features(views[1])


def test_the_tries_of_the_published_blocks_have_the_known_numbers_of_layers() -> None:
    assert [len(trie(legal_paths(k))) for k in (4, 3, 2, 1)] == [74, 148, 128, 30]
    four = tuple(product(range(4), repeat=4))
    assert len(trie(four)) == 340


def test_a_path_may_be_the_beginning_of_another() -> None:
    root = trie(((), (1,), (0, 2), (0,), (0, 1)))

    def leaves(node: Node) -> list[Path]:
        own = [node.path] if node.leaf else []
        return own + [path for child in node.children for path in leaves(child)]

    assert sorted(leaves(root)) == [(), (0,), (0, 1), (0, 2), (1,)]
    assert len(root) == 4


def test_statistics_come_from_both_views() -> None:
    networks = siamese(NATS)
    first, second = noise(1, 10)
    paths = networks._cut.paths(0, 0)
    views = noise(4, 6)

    def scores(calibration: Views) -> Tensor:
        return BlockRanking(
            networks.online, networks.target, paths, lambda path: path[-1], [calibration]
        ).losses(views)

    assert not torch.allclose(scores((first, second)), scores((second, second)))
    torch.testing.assert_close(scores((first, second)), scores((second, first)))


def brute(
    options: list[dict[int, list[Option]]], start: int, limit: float
) -> list[tuple[float, tuple[Path, ...]]]:
    found = []
    everything = [[item for rows in block.values() for item in rows] for block in options]
    for picks in product(*[list(dict.fromkeys(items)) for items in everything]):
        interface, legal = start, True
        for block, pick in zip(options, picks, strict=True):
            legal &= pick in block.get(interface, [])
            interface = pick.interface
        if legal and sum(pick.cost for pick in picks) <= limit:
            found.append((sum(p.score for p in picks), tuple(p.path for p in picks)))
    return sorted(found)


@pytest.mark.parametrize("limit", [math.inf, 60, 30, 14])
def test_the_best_networks_within_a_limit_are_exact(limit: float) -> None:
    generator = torch.Generator().manual_seed(int(min(limit, 99)))
    options: list[dict[int, list[Option]]] = []
    for block, interfaces in enumerate(((3,), (3, 2), (2, 1, 0))):
        rows: dict[int, list[Option]] = {}
        for interface in interfaces:
            drawn = torch.rand(5, 2, generator=generator).tolist()
            rows[interface] = [
                Option((block, interface, at), score, float(round(30 * price)), interface - at % 2)
                for at, (score, price) in enumerate(drawn)
            ]
        options.append(rows)
    expected = brute(options, 3, limit)
    if not expected:
        with pytest.raises(InfeasibleError, match="above the limit"):
            next(best_networks(options, start=3, limit=limit))
        return
    found = list(best_networks(options, start=3, limit=limit))
    assert [paths for _, paths in found] == [paths for _, paths in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected])


def test_the_best_within_a_limit_may_differ_from_every_greedy_choice() -> None:
    """Cheap and good in one block costs the other block its best path."""
    options = [
        {0: [Option((0,), 0.0, 10, 0), Option((1,), 1.0, 2, 0)]},
        {0: [Option((0,), 0.0, 10, 0), Option((1,), 5.0, 2, 0)]},
    ]
    assert next(best_networks(options, limit=12)) == (1.0, ((1,), (0,)))


def test_a_search_ends_with_legal_networks_in_the_order_of_their_scores(data: DataSet) -> None:
    method = search(data, views="byol", num_paths=2)
    assert len({id(pair) for pair in method._pairs(0, 0, 0, 2)}) == 2
    assert len({id(pair) for pair in search(data)._pairs(0, 0, 0, 2)}) == 1
    reports = run(method)
    assert [report.step for report in reports] == list(range(1, method.total + 1))
    losses = [report.metrics["loss"] for report in reports if "loss" in report.metrics]
    assert all(-4 <= loss <= 4 for loss in losses)
    found = list(islice(method.networks(), 30))
    scores = [score for score, _ in found]
    assert scores == sorted(scores)
    for score, paths in found:
        HYTRA.check(method.cut.join(paths))
        total = sum(ranked[path] + 4 for ranked, path in zip(method.scores, paths, strict=True))
        assert score == pytest.approx(total)
    greedy = tuple(method.siamese.chosen)
    assert greedy in [paths for _, paths in method.networks()]


def priced(method: BossNAS, paths: tuple[Path, ...]) -> tuple[float, float]:
    total, given, interface = [0.0, 0.0], method._data.inputs, method.cut.start
    for block, path in enumerate(paths):
        part, given = method._costs.of(block, interface, path, given)
        interface = method.cut.interface(block, path)
        total = [total[0] + part["flops"], total[1] + part["num_params"]]
    return total[0], total[1]


def test_limits_hold_and_the_best_within_them_is_the_best_of_all_that_hold_them(
    data: DataSet,
) -> None:
    free = search(data, NATS, epochs=1)
    run(free)
    costs = {paths: priced(free, paths) for _, paths in free.networks()}
    for paths in islice(costs, 2):
        network = NATS.build(free.cut.join(paths), inputs=data.inputs, num_classes=3)
        counted = cost(network, data.inputs)
        assert costs[paths] == (counted.flops, counted.num_params)
    flops = sorted(item[0] for item in costs.values())[len(costs) // 3]
    size = sorted(item[1] for item in costs.values())[len(costs) // 3]
    limits = (
        SimpleNamespace(metric="flops", max=float(flops), min=None),
        SimpleNamespace(metric="num_params", max=float(size), min=None),
    )
    capped = search(data, NATS, limits=limits, epochs=1)
    run(capped)
    expected = [
        paths
        for _, paths in free.networks()
        if costs[paths][0] <= flops and costs[paths][1] <= size
    ]
    assert [paths for _, paths in capped.networks()] == expected
    with pytest.raises(InfeasibleError, match="above the limit"):
        search(data, NATS, limits=(SimpleNamespace(metric="flops", max=10.0, min=None),))
    with pytest.raises(InvalidInputError, match="cannot keep the limit on 'latency_ms'"):
        search(data, NATS, limits=(SimpleNamespace(metric="latency_ms", max=1.0, min=None),))


def test_a_search_resumes_bit_for_bit_in_every_block_and_amid_a_ranking(data: DataSet) -> None:
    whole = search(data, epochs=1)
    reports = run(whole)
    method = search(data, epochs=1)
    assert (method.training_steps, method.ranking_steps) == (4, 2)
    done = []
    for step in range(1, whole.total + 1):
        done.append(method.step())
        if step % 6 in (0, 3, 5):
            saved = pack(method.state_dict())
            method = search(data, epochs=1)
            method.load_state_dict(unpack(saved))
            assert pack(method.state_dict()) == saved
    assert done == reports
    assert method.best(5) == whole.best(5)


def test_a_checkpoint_of_another_search_is_refused(data: DataSet) -> None:
    state = copy.deepcopy(search(data).state_dict())
    with pytest.raises(InvalidInputError, match="not of a BossNAS search"):
        search(data, NATS).load_state_dict(state)


def test_no_test_image_and_no_label_is_looked_at(data: DataSet) -> None:
    blind = copy.deepcopy(data)
    object.__setattr__(blind, "test", None)
    for split in (blind.train, blind.val):
        split.labels.fill_(0)
    object.__setattr__(blind, "to", lambda device: blind)
    method, seen = search(blind, epochs=1), search(data, epochs=1)
    assert run(method) == run(seen)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup_epochs": 3}, "more than the 2 epochs"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"sampling": "fair"}, "use 'random'"),
        ({"views": "simclr"}, "unknown views 'simclr'"),
        ({"num_devices": 2}, "num_devices is 2"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_wrong_settings_are_refused_with_the_value(
    data: DataSet, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        search(data, **params)


def test_a_search_needs_a_space_in_blocks_and_data(data: DataSet) -> None:
    with pytest.raises(InvalidInputError, match="not cut into blocks"):
        search(data, make_space("nas-bench-201"))
