"""Splitting on real networks: distances by brute force, masks in training, what is inherited."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.checkpoint import pack
from nas.data import DataSet, load_dataset
from nas.methods.few_shot import FewShot, GmNas
from nas.methods.few_shot.lanes import Lanes
from nas.methods.few_shot.matching import matching_distances
from nas.methods.few_shot.presets import PRESETS
from nas.methods.one_shot import Confinement, OneShot
from nas.plugins import MethodContext, make_method
from nas.protocols import SearchSpace
from nas.spaces.darts import DartsSpace
from nas.spaces.mbconv import MBConvSpace
from nas.spaces.nasbench201 import NasBench201Space
from nas.spaces.nats_size import NatsSizeSpace
from nas.supernet import Mixture
from nas.supernet_elastic import ElasticSupernet
from nas.supernet_nasbench201 import KIND, NasBench201Supernet, SearchCell
from zoo.errors import InvalidInputError, TrainerError
from zoo.families.nasbench201 import EDGES, OPERATIONS, Cell
from zoo.spec import TensorSpec

NB201 = NasBench201Space(channels=2, cells=1)
DARTS = DartsSpace(cells=3, channels=4, nodes=1, ops=("none", "skip_connect", "sep_conv_3x3"))
MBCONV = MBConvSpace(
    preset="cifar", widths=(4, 6), depths=(2, 1), strides=(1, 2), stem=4, first=4, last=8,
    kernels=(3, 5), expands=(2,),
)  # fmt: skip
BASES: dict[str, tuple[SearchSpace, str, dict[str, Any]]] = {
    "darts on nas-bench-201": (NB201, "darts", {"nesterov": True}),
    "darts-2nd on nas-bench-201": (NB201, "darts", {"order": 2}),
    "snas on nas-bench-201": (NB201, "snas", {}),
    "rsps on nas-bench-201": (NB201, "rsps", {}),
    "darts": (DARTS, "darts", {"fused": False}),
    "pc-darts": (DARTS, "pc-darts", {"fused": False, "k": 2, "warmup_epochs": 0}),
    "snas": (DARTS, "snas", {"fused": False}),
    "rsps": (DARTS, "rsps", {}),
    "rsps with elastic kernels": (MBCONV, "rsps", {}),
    "snas with elastic kernels": (MBCONV, "snas", {}),
    "proxyless": (MBCONV, "proxyless", {"warmup_epochs": 1, "loss": "none", "arch_every": 1}),
}


@pytest.fixture
def pytorch_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of PyTorch's threads; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> DataSet:
    whole = load_dataset("digits", root=None, seed=0)
    train = replace(whole.train, images=whole.train.images[:48], labels=whole.train.labels[:48])
    return replace(whole, train=train)


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest, data: DataSet) -> OneShot:
    space, name, params = BASES[request.param]
    context = MethodContext(space=space, seed=2, data=data)
    made: Any = make_method(name, {"epochs": 3, "batch_size": 12, **params}, context)
    return made


def context(space: SearchSpace, data: DataSet) -> MethodContext:
    return MethodContext(space=space, seed=5, data=data)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def some_mask(base: OneShot) -> Tensor:
    """Leave the second edge that can be split one operation, and the last the first two."""
    mask = base.options()
    edges = base.splittable()
    for edge, kept in ((edges[1], 1), (edges[-1], 2)):
        mask[edge, mask[edge].nonzero().flatten()[kept:]] = False
    return mask


@pytest.mark.parametrize(
    ("space", "base", "batch_size", "decay", "nesterov"),
    [
        (NB201, "darts", 48, 5e-4, True),
        (NB201, "snas", 48, 5e-4, True),
        (NB201, "rsps", 48, 1e-4, True),
        (DARTS, "darts", 64, 3e-4, False),
        (DARTS, "snas", 64, 3e-4, False),
        (DARTS, "rsps", 64, 3e-4, False),
    ],
)
def test_weights_are_trained_with_the_published_optimiser_of_the_space(
    data: DataSet, space: SearchSpace, base: str, batch_size: int, decay: float, nesterov: bool
) -> None:
    params = PRESETS[str(space.describe()["name"]), base].base_params
    made: Any = make_method(base, params, context(space, data))
    found = made.settings
    assert (found.batch_size, found.weight_decay, found.nesterov) == (batch_size, decay, nesterov)
    assert (found.lr, found.lr_min, found.momentum, found.clip_norm) == (0.025, 0.001, 0.9, 5.0)
    if base != "rsps":
        assert (found.arch_lr, found.arch_weight_decay) == (3e-4, 1e-3)
        assert (found.weight_share, found.arch_share) == (0.5, 0.5)


def test_a_confined_base_trains_only_what_its_mask_allows(base: OneShot) -> None:
    mask = some_mask(base)
    base.confine(Confinement(mask=mask, epochs=3, frozen=False, seed=4))
    base.restart()
    alphas = base.state_dict()["arch"]
    moved = alphas.keys() - {"optimizer"}
    for _ in range(2 * base.steps_per_epoch + 2):
        base.step()
    after = base.state_dict()["arch"]
    for architecture in base.propose(4, random.Random(0)):
        base.space.check(architecture)
    assert moved
    made: Any = base
    if hasattr(made, "cells"):
        for kind, mixture in made._relaxed().items():
            at = made.cells.kinds.index(kind) * made.cells.edges
            part = mask[at : at + made.cells.edges]
            assert torch.equal(mixture.ops[~part], torch.zeros(int((~part).sum())))
        for name, value in made.supernet.named_parameters():
            if value.grad is not None and made.name != "RSPS":
                assert name in trainable(made, mask)
        if made.name != "RSPS":
            assert any(not torch.equal(alphas[name], after[name]) for name in moved)
    else:
        probabilities = made.arch.probabilities()
        assert torch.equal(probabilities[~mask], probabilities.new_zeros(int((~mask).sum())))


def trainable(made: Any, mask: Tensor) -> set[str]:
    """Return the names of weights outside edges, and of allowed operations."""
    everything = {id(value): name for name, value in made.supernet.named_parameters()}
    inside = {id(w) for e in (0, 1) for w in made.cells.shared(made.supernet, e, made.options())}
    allowed = {id(w) for e in (0, 1) for w in made.cells.shared(made.supernet, e, mask)}
    return {name for key, name in everything.items() if key not in inside or key in allowed}


def test_measuring_changes_nothing_and_repeats(base: OneShot) -> None:
    base.confine(Confinement(mask=some_mask(base), epochs=3, frozen=False, seed=4))
    base.step()
    made: Any = base
    before = weights(made.supernet)
    edge = base.splittable()[0]
    first = base.operation_gradients(edge, 1, hard=True)
    again = base.operation_gradients(edge, 1, hard=True)
    assert torch.equal(first.rows, again.rows)
    assert first.rows.shape[1] == sum(shape.numel() for shape in first.shapes) > 0
    assert len(first.rows) == int(some_mask(base)[edge].sum())
    for name, value in made.supernet.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_seed_and_a_state_determine_what_follows(base: OneShot) -> None:
    """Another net's training in between leaves no trace: as one supernet takes turns."""
    terms = Confinement(mask=some_mask(base), epochs=3, frozen=False, seed=4)
    base.confine(terms)
    base.restart()
    base.step()
    kept = copy.deepcopy(base.state_dict())
    wanted = base.step()
    base.confine(replace(terms, mask=base.options(), epochs=5, seed=9))
    base.restart()
    base.step()
    base.confine(terms)
    base.load_state_dict(kept)
    assert base.step() == wanted


def test_the_distances_on_nas_bench_201_are_those_of_a_brute_force_computation(
    data: DataSet,
) -> None:
    base: Any = make_method("darts", {"batch_size": 16, "augment": False}, context(NB201, data))
    base.supernet.double()
    base.arch.double()
    lap = base._batch
    base._batch = lambda *args, **part: (lap(*args, **part)[0].double(), lap(*args, **part)[1])
    images, labels = base._batch(-1, 0, part=0)
    for edge in (0, 4):
        found = matching_distances(base.operation_gradients(edge, 0, hard=True).rows)
        theta = torch.softmax(base.arch.alphas_cell, 1).detach()
        gradients = []
        for op in range(5):
            net = copy.deepcopy(base.supernet)
            ops = theta.clone()
            ops[edge] = F.one_hot(torch.tensor(op), 5).double()
            mixture = Mixture(ops=ops, edges=torch.ones(6, dtype=torch.float64))
            net.zero_grad()
            F.cross_entropy(net(images, {KIND: mixture}), labels).backward()
            gradients.append(
                [
                    torch.zeros_like(weight) if weight.grad is None else weight.grad
                    for name, weight in net.named_parameters()
                    if name.startswith("cells.") and f".edges.{edge}." not in name
                ]
            )
        for i, j in combinations(range(5), 2):
            first = torch.cat([gradient.flatten() for gradient in gradients[i]])
            second = torch.cat([gradient.flatten() for gradient in gradients[j]])
            wanted = 1 - (first * second).sum() / (first.norm() * second.norm())
            torch.testing.assert_close(found[i, j], wanted, rtol=0, atol=1e-12)


def test_on_the_darts_space_an_operation_keeps_its_own_weight(data: DataSet) -> None:
    base: Any = make_method("darts", {"fused": False, "batch_size": 16}, context(DARTS, data))
    mixtures = base.updates.mixtures()
    edge = base.cells.edges + 1
    soft = base.cells.set_edge(mixtures, edge, 2, hard=False)
    hard = base.cells.set_edge(mixtures, edge, 2, hard=True)
    assert soft["reduce"].ops[1].tolist() == [0, 0, float(mixtures["reduce"].ops[1, 2])]
    assert hard["reduce"].ops[1].tolist() == [0, 0, 1]
    for kind, row in (("normal", 0), ("normal", 1), ("reduce", 0)):
        assert torch.equal(soft[kind].ops[row], mixtures[kind].ops[row])
    names = {
        name
        for weight in base.cells.shared(base.supernet, edge, base.options())
        for name, other in base.supernet.named_parameters()
        if other is weight
    }
    assert all(name.startswith("cells.") and ".edges." in name for name in names)
    assert not any(
        name.startswith(f"cells.{at}.edges.1.") for name in names for at in DARTS.reductions
    )
    assert any(name.startswith("cells.0.edges.1.") for name in names)


def test_a_path_of_the_nas_bench_201_supernet_is_the_network_of_its_cell() -> None:
    supernet = NasBench201Supernet(NB201, in_chans=3, num_classes=4)
    choices = (3, 0, 2, 4, 1, 3)
    network = NB201.build(
        NB201.architecture(choices), inputs=TensorSpec(shape=(3, 8, 8)), num_classes=4
    )
    parts: list[Any] = list(network.children())
    parts[0].load_state_dict(supernet.stem.state_dict())
    parts[-1].load_state_dict(supernet.head.state_dict())
    for mine, its in zip(parts[1:-1], supernet.cells, strict=True):
        if not isinstance(its, SearchCell):
            mine.load_state_dict(its.state_dict())
            continue
        assert isinstance(mine, Cell)
        for at, (source, target) in enumerate(EDGES):
            kept: Any = its.edges[at]
            if OPERATIONS[choices[at]] != "none":
                state = kept.ops[OPERATIONS[choices[at]]].state_dict()
                mine.edges[f"{source}_{target}"].load_state_dict(state, strict=False)
    ops = F.one_hot(torch.tensor(choices), 5).float()
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = supernet(images, {KIND: Mixture(ops=ops, edges=torch.ones(6))})
    torch.testing.assert_close(found, network(images), rtol=1e-5, atol=1e-6)


def test_elastic_kernels_share_the_centre_of_the_largest() -> None:
    space = replace(MBCONV, kernels=(3, 5, 7), expands=(2, 3))
    supernet = ElasticSupernet(space, inputs=TensorSpec(shape=(3, 8, 8)), num_classes=4).eval()
    block: Any = supernet.blocks[0]
    depthwise = block.paths["3"].depthwise
    assert torch.equal(depthwise.kernel(7), depthwise.weight)
    torch.testing.assert_close(depthwise.kernel(5), depthwise.weight[:, :, 1:6, 1:6])
    with torch.no_grad():
        depthwise.transforms["5"].copy_(2 * torch.eye(25))
    torch.testing.assert_close(depthwise.kernel(3), 2 * depthwise.weight[:, :, 2:5, 2:5])
    choices = [edge.names.index("3x3_MB3") for edge in space.edges]
    network = space.build(
        space.architecture(choices), inputs=TensorSpec(shape=(3, 8, 8)), num_classes=4
    ).eval()
    parts: list[Any] = list(network.children())
    whole: list[Any] = [supernet.stem, supernet.first, supernet.last, supernet.classifier]
    for mine, its in zip([*parts[:2], *parts[-2:]], whole, strict=True):
        mine.load_state_dict(its.state_dict())
    for mine, found in zip(parts[2:-2], supernet.blocks, strict=True):
        its = found.paths["3"]  # type: ignore[union-attr, operator, index]
        layers: list[Any] = list(mine.layers)
        layers[0].load_state_dict(its.expand.state_dict())
        layers[1][0].weight.data.copy_(its.depthwise.kernel(3))
        layers[1][1].load_state_dict(its.depthwise.after[0].state_dict())
        layers[2].load_state_dict(its.project.state_dict())
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ops = F.one_hot(torch.tensor(choices), len(space.edges[1].ops)).float()
    active = tuple((choice,) for choice in choices)
    path = {"chain": Mixture(ops=ops, edges=torch.ones(len(ops)), active=active)}
    torch.testing.assert_close(supernet(images, path), network(images), rtol=1e-5, atol=1e-6)


QUICK: dict[str, Any] = {
    "checkpoints": [1, 2], "groups": [2, 2], "final_epochs": 1, "batches": 1, "candidates": 1,
    "base_params": {"batch_size": 24},
}  # fmt: skip


def advance(search: Any, phase: str, stage: int) -> None:
    while (moment := search._plan.at(search._step)) and (moment.phase, moment.stage) != (
        phase, stage,
    ):  # fmt: skip
        search.step()


def test_weights_and_optimiser_are_inherited_until_the_final_split_restarts_them(
    data: DataSet,
) -> None:
    search = GmNas(context(NB201, data), base="darts", **QUICK)
    frozen = search.base.state_dict()["arch"]["alphas_cell"]
    advance(search, "train", 1)
    parent = search._nets[0].state
    assert parent is search._nets[1].state is not None
    assert parent["momenta"]
    search.step()
    assert search.base.state_dict()["step"] == parent["step"] + 1
    assert torch.equal(search.base.state_dict()["arch"]["alphas_cell"], frozen)
    advance(search, "train", 2)
    assert [net.state for net in search._nets] == [None] * 4
    search.step()
    state = search.base.state_dict()
    assert state["step"] == 1
    assert not torch.equal(state["arch"]["alphas_cell"], frozen)
    whole = torch.stack(search.masks)
    assert len({tuple(mask.flatten().tolist()) for mask in whole}) == 4
    assert torch.equal(whole.any(0), search.base.options())
    sizes = [decision["sizes"] for decision in search.decisions]
    assert sum(sizes[0]) == NB201.size()
    assert [sum(both) for both in sizes[1:]] == sizes[0]
    edges = [decision["edge"] for decision in search.decisions]
    assert edges[0] not in edges[1:]
    assert search.passes == 6 * 5 + 2 * 5 * 5


def test_without_a_restart_the_final_nets_go_on(data: DataSet) -> None:
    terms = QUICK | {"checkpoints": [1], "groups": [2], "restart": False}
    search = GmNas(context(NB201, data), base="snas", **terms)
    start = search.base.state_dict()["arch"]["alphas_cell"]
    advance(search, "train", 1)
    per_epoch = search.base.steps_per_epoch
    assert [net.state["step"] for net in search._nets if net.state] == [per_epoch] * 2
    assert search._nets[0].state is not None
    assert not torch.equal(search._nets[0].state["arch"]["alphas_cell"], start)


@pytest.mark.parametrize("name", ["snas with elastic kernels", "proxyless"])
def test_trained_together_every_net_comes_out_as_alone(
    data: DataSet, name: str, pytorch_threads: Callable[[int], None]
) -> None:
    space, base, params = BASES[name]
    terms = QUICK | {
        "base": base,
        "base_params": params | {"batch_size": 24},
        "checkpoints": [1, 2],
    }
    pytorch_threads(2)  # one on each of two lanes, as many as every net has in turns
    together = GmNas(context(space, data), **terms)
    pytorch_threads(1)
    in_turns = GmNas(context(space, data), **terms, together=False)
    advance(in_turns, "select", 2)
    advance(together, "train", 1)
    assert together.step().message.startswith("sub-supernets 1 to 2 of 2: ")
    advance(together, "select", 2)
    assert in_turns.total - together.total == 4 * together.base.steps_per_epoch + 1
    assert in_turns.decisions == together.decisions
    alone, beside = (search.state_dict()["nets"] for search in (in_turns, together))
    assert len({pack(net) for net in alone}) == 4
    assert [pack(net) for net in beside] == [pack(net) for net in alone]
    for search in (in_turns, together):
        while search._step < search.total:
            search.step()
    assert together.best(3) == in_turns.best(3)
    with pytest.raises(InvalidInputError, match="together was True; it is False now"):
        in_turns.load_state_dict(together.state_dict())


def test_only_small_supernets_are_trained_together_unless_it_is_said(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert GmNas(context(NB201, data), **QUICK)._together
    monkeypatch.setattr("nas.methods.few_shot.search.SMALL", 1000)
    assert not GmNas(context(NB201, data), **QUICK)._together
    assert GmNas(context(NB201, data), **QUICK, together=True)._together


def test_lanes_make_all_calls_and_pass_on_what_failed(
    pytorch_threads: Callable[[int], None],
) -> None:
    pytorch_threads(4)
    lanes, made = Lanes(torch.device("cpu"), 3), []

    def call(number: int) -> int:
        made.append((number, torch.get_num_threads()))
        if number == 1:
            raise TrainerError("the loss became nan")
        return number

    with pytest.raises(TrainerError, match="nan"):
        lanes.run([partial(call, number) for number in range(3)])
    assert sorted(made) == [(0, 1), (1, 1), (2, 1)]
    assert torch.get_num_threads() == 4
    assert lanes.run([partial(call, number) for number in (0, 2)]) == [0, 2]
    assert lanes.run([torch.get_num_threads]) == [4]


def test_the_original_split_gives_every_operation_of_one_edge_a_supernet(data: DataSet) -> None:
    search = FewShot(
        context(NB201, data), base="rsps", edge=3, checkpoint=1, final_epochs=1,
        base_params={"batch_size": 24}, candidates=2,
    )  # fmt: skip
    advance(search, "train", 1)
    assert [mask[3].tolist() for mask in search.masks] == torch.eye(5).bool().tolist()
    for mask in search.masks:
        assert bool(mask[[0, 1, 2, 4, 5]].all())
    advance(search, "select", 1)
    while search._step < search.total:
        search.step()
    assert search._contest is not None
    for contender in search._contest.contenders:
        assert contender.choices[3] == contender.net
    found = search.best(4)
    assert len(found) == 4
    ranking = search._contest.ranking()
    assert found[0].choices == ranking[0].choices
    more = search.best(len(ranking) + 3)
    assert more[:4] == found
    assert len(set(more)) == len(ranking) + 3
    assert {item.choices[3] for item in more[len(ranking) :]} == {ranking[0].net}


def test_a_cap_on_latency_is_measured_where_the_base_promises_to_keep_it() -> None:
    assert not GmNas.caps_latency({})
    assert not GmNas.caps_latency({"base": "snas"})
    assert GmNas.caps_latency({"base": "proxyless"})
    assert FewShot.caps_latency({"base": "proxyless", "base_params": None})


def test_the_contest_reads_the_validation_set_alone(data: DataSet) -> None:
    empty = replace(data.test, images=data.test.images[:0], labels=data.test.labels[:0])
    search = FewShot(
        context(DARTS, replace(data, test=empty)), checkpoint=0, final_epochs=1,
        base_params={"batch_size": 24},
    )  # fmt: skip
    while search._step < search.total:
        report = search.step()
    assert 0 <= report.metrics["held_out_accuracy"] <= 1
    assert search._contest is not None
    assert max(c.seen for c in search._contest.contenders) == len(data.val)


def test_random_search_trains_only_what_a_derived_cell_may_have_on_all_edges(
    data: DataSet,
) -> None:
    made: Any = make_method("rsps", {"epochs": 3, "batch_size": 12}, context(DARTS, data))
    drawn: dict[tuple[str, int], set[int]] = {}
    for _ in range(3 * made.steps_per_epoch):
        made.step()
        for kind in made.arch.kinds:
            active = made.arch.active(kind)
            assert len(active) == made.cells.edges
            for edge, ops in enumerate(active):
                drawn.setdefault((kind, edge), set()).update(ops)
    legal = {at for at, op in enumerate(DARTS.ops) if op != "none"}
    assert set(map(frozenset, drawn.values())) == {frozenset(legal)}


def test_what_cannot_be_split_is_refused(data: DataSet) -> None:
    fused: Any = make_method("darts", {}, context(DARTS, data))
    with pytest.raises(InvalidInputError, match="unfused"):
        fused.operation_gradients(0, 0, hard=True)
    with pytest.raises(InvalidInputError, match="fused to false"):
        GmNas(context(DARTS, data), base_params={"fused": True}, checkpoints=[1], groups=[2])
    with pytest.raises(InvalidInputError, match="finds no edge"):
        GmNas(context(DARTS, data), checkpoints=[1], groups=[3], final_epochs=1)
    with pytest.raises(InvalidInputError, match="evaluator"):
        GmNas(context(NB201, data), base="random")
    for terms, said in (
        ({"edge_rule": "largest"}, "max-inter"),
        ({"sizes": "third"}, "half"),
        ({"objective": "sum"}, "intra"),
        ({"distance": "l1"}, "filter-cosine"),
        ({"groups": [2, 3]}, "makes 2 groups, not 3"),
        ({"batches": 0}, "batches is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"checkpoints": [1.5, 2]}, "checkpoints has 1.5"),
        ({"groups": [2, 2.0]}, "groups has 2.0"),
        ({"final_epochs": 1.5}, "final_epochs is 1.5"),
        ({"batches": 2.5}, "batches is 2.5"),
        ({"racing": "no"}, "racing is 'no'"),
        ({"together": "no"}, "together is 'no'"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            GmNas(context(NB201, data), **terms)
    with pytest.raises(InvalidInputError, match="edge is 9"):
        FewShot(context(NB201, data), edge=9)
    with pytest.raises(InvalidInputError, match="and 'nas-bench-201', not 'nats-bench-size'"):
        GmNas(context(NatsSizeSpace(), data), base="snas")
    for restart in (False, True):
        with pytest.raises(InvalidInputError, match="leaves none after the warm-up"):
            GmNas(
                context(MBCONV, data), base="proxyless", checkpoints=[40 * restart], groups=[2],
                final_epochs=1, restart=restart, base_params={"loss": "none", "batch_size": 24},
            )  # fmt: skip
    empty = replace(data.val, images=data.val.images[:0], labels=data.val.labels[:0])
    with pytest.raises(InvalidInputError, match="validation set, which has no image"):
        GmNas(context(NB201, replace(data, val=empty)))
    with pytest.raises(InvalidInputError, match="not of a few-shot search"):
        FewShot(context(NB201, data)).load_state_dict({"step": 3})
    other = FewShot(context(MBCONV, data), base="rsps", checkpoint=1).state_dict()
    with pytest.raises(InvalidInputError, match="its masks have shapes"):
        FewShot(context(NB201, data)).load_state_dict(other)
