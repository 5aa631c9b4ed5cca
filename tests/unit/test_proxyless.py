"""ProxylessNAS as a resumable stepper: schedules, what moves when, caps, resumption, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.checkpoint import pack, unpack
from nas.data import DataSet, Split
from nas.methods.proxyless import Proxyless, layers
from nas.methods.proxyless.gates import one_hot, straight_through
from nas.plugins import MethodContext, make_method
from nas.protocols import SearchMethod, StepReport
from nas.spaces.darts import DartsSpace
from nas.spaces.mbconv import MBConvSpace
from zoo.errors import (
    ConflictError,
    InfeasibleError,
    InvalidInputError,
    TrainerError,
    UnknownNameError,
)
from zoo.spec import TensorSpec

SPACE = MBConvSpace(
    preset="cifar", widths=(4, 6), depths=(3, 1), strides=(1, 2), stem=4, first=4, last=8,
    kernels=(3, 5), expands=(1, 2),
)  # fmt: skip
TASK: dict[str, Any] = {"inputs": TensorSpec(shape=(1, 8, 8)), "num_classes": 3}


def limit(metric: str, bound: float) -> Any:
    return SimpleNamespace(metric=metric, max=bound, min=None)


def latencies(each: float = 2.0) -> dict[str, float]:
    """Return a table in which an operation takes longer the more parameters it has."""
    return {
        str(layer): each + (layer.kernel or 0) * (layer.expand or 0) / 10
        for layer in layers(SPACE, **TASK)
    }


@pytest.fixture(scope="module")
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8, generator=generator)
    split = Split(images=images, labels=torch.arange(64) % 3)
    return DataSet(
        name="made", digest="0" * 64, num_classes=3, class_names=("a", "b", "c"), licence="none",
        inputs=TASK["inputs"], mean=(0.5,), std=(0.3,), train=split, val=split, test=split,
    )  # fmt: skip


def search(
    data: DataSet,
    *,
    seed: int = 7,
    limits: tuple[Any, ...] = (),
    measured: Mapping[str, float] | None = None,
    **params: Any,
) -> Proxyless:
    context = MethodContext(
        space=SPACE, seed=seed, data=data, limits=limits, latencies=measured or latencies()
    )
    settings = {
        "warmup_epochs": 1, "epochs": 3, "batch_size": 10, "arch_every": 2, "held_out": 0.2,
        "ref": 12.0, "rl_updates": 3, "rl_samples": 3, "rl_batch_size": 8,
    }  # fmt: skip
    method = make_method("proxyless", settings | params, context)
    assert isinstance(method, Proxyless)
    assert isinstance(method, SearchMethod)
    return method


def run(method: Proxyless) -> list[StepReport]:
    reports = [method.step()]
    while not reports[-1].done:
        reports.append(method.step())
    return reports


def weights(method: Proxyless) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in method.supernet.named_parameters()}


def test_the_defaults_are_the_published_ones() -> None:
    data_of_one_class_each = torch.arange(4000) % 4
    images = torch.zeros(4000, 3, 8, 8, dtype=torch.uint8)
    split = Split(images=images, labels=data_of_one_class_each)
    made = DataSet(
        name="made", digest="0" * 64, num_classes=4, class_names=tuple("abcd"), licence="none",
        inputs=TensorSpec(shape=(3, 8, 8)), mean=(0.5,) * 3, std=(0.3,) * 3,
        train=split, val=split, test=split,
    )  # fmt: skip
    method = Proxyless(MethodContext(space=SPACE, data=made), cost="flops", loss="none")
    assert (method.warmup_epochs, method.epochs, method.batch_size) == (40, 120, 256)
    group = method._weight_optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 4e-5, True)
    adam = method.arch._optimizer
    assert (adam.lr, adam.betas, adam.eps, adam.weight_decay) == (1e-3, (0.0, 0.999), 1e-8, 0.0)
    assert method.learning_rate(0) == 0.05
    warm = 40 * method.steps_per_epoch
    assert method.learning_rate(warm) == 0.025
    assert 0 < method.learning_rate(warm - 1) < 1e-4
    assert method.cost_loss.ref == 300e6
    assert method._gates == "full_v2"
    starts = method.arch.alphas[method.arch.mask]
    assert 5e-4 < float(starts.std()) < 2e-3
    assert [method.arch_updates(41, index) for index in range(10)] == [0, 0, 0, 0, 1] * 2
    assert method.arch_updates(40, 4) == method.arch_updates(39, 4) == 0


def test_the_rate_falls_along_a_cosine_in_each_phase(data: DataSet) -> None:
    method = search(data, warmup_epochs=2, epochs=3, warmup_lr=0.4, lr=0.1)
    each = method.steps_per_epoch
    assert each == 5
    for step in (0, 3, 9):
        wanted = 0.2 * (1 + math.cos(math.pi * step / 10))
        assert method.learning_rate(step) == pytest.approx(wanted)
    for step in (10, 14, 24):
        wanted = 0.05 * (1 + math.cos(math.pi * (step - 10) / 15))
        assert method.learning_rate(step) == pytest.approx(wanted)
    assert method.step().metrics["lr"] == 0.4


def test_reinforce_updates_are_spread_over_the_epoch(data: DataSet) -> None:
    def schedule(updates: int, batch_size: int) -> list[int]:
        method = search(data, arch_update="reinforce", rl_updates=updates, batch_size=batch_size)
        return [i for i in range(method.steps_per_epoch) if method.arch_updates(2, i)]

    for batch_size in (2, 4, 5, 10, 52):
        batches = 52 // batch_size
        for updates in (1, 2, 3, 5, 8, 300):
            runs = min(updates, batches)
            lengths = [batches // runs + (at < batches % runs) for at in range(runs)]
            wanted = [sum(lengths[: at + 1]) - 1 for at in range(runs)]
            assert schedule(updates, batch_size) == wanted


def test_weights_and_alphas_are_trained_on_disjoint_images_of_all_classes(data: DataSet) -> None:
    first, second = search(data)._batches.parts
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(64))
    labels = data.train.labels
    assert torch.bincount(labels[second]).tolist() == [4, 4, 4]
    again, other = search(data)._batches, search(data, seed=8)._batches
    assert torch.equal(again.parts[1], second)
    assert not torch.equal(other.parts[1], second)


def test_alphas_rest_in_warm_up_and_in_the_epoch_after_it(data: DataSet) -> None:
    method = search(data)
    start = method.arch.alphas.clone()
    for _ in range(2 * method.steps_per_epoch):
        assert "arch_loss" not in method.step().metrics
        assert torch.equal(method.arch.alphas, start)
    assert "arch_loss" not in method.step().metrics
    assert "arch_loss" in method.step().metrics
    assert not torch.equal(method.arch.alphas, start)


def test_only_the_sampled_path_moves_others_stay_bit_for_bit(data: DataSet) -> None:
    method = search(data, weight_decay=0.1)
    for step in range(method.steps_per_epoch):
        paths = method.arch.draw("weights", 0, step).paths
        before = weights(method)
        method.step()
        for name, value in weights(method).items():
            parts = name.split(".")
            sampled = parts[0] != "blocks" or int(parts[3]) == paths[int(parts[1])]
            assert torch.equal(value, before[name]) != sampled, name
        momenta = method.state_dict()["momenta"]
        assert any(item is None for item in momenta)


@pytest.mark.parametrize("gates", ["full", "full_v2", "two"])
def test_an_update_of_alphas_leaves_every_weight_alone(data: DataSet, gates: str) -> None:
    method = search(data, gates=gates)
    before, start = weights(method), method.arch.alphas.clone()
    method._gradient_step(2, 1, 0)
    after = weights(method)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in method.supernet.parameters())
    assert not torch.equal(method.arch.alphas, start)
    assert (method.arch.alphas[~method.arch.mask] == 0).all()


def test_full_and_full_v2_search_alike(data: DataSet) -> None:
    found = []
    for gates in ("full", "full_v2"):
        method = search(data, gates=gates)
        run(method)
        found.append(method.arch.alphas)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["mul#log", "add#linear", "none"])
def test_one_update_is_adam_on_the_gates_and_the_latency_s_gradient(
    data: DataSet, loss: str
) -> None:
    method = search(data, loss=loss, ref=9.0)
    draw = method.arch.draw("alphas", 2, 1, 0)
    before = method.arch.alphas.clone()
    images, labels = method._batches.held_out(2, 0, 10)

    gates = one_hot(draw.active, before.shape[1], torch.float32)
    entropy = F.cross_entropy(method.supernet.gated(images, gates, draw, "full"), labels)
    torch.autograd.backward(entropy)
    assert gates.grad is not None
    expected = float(method.table.expected(draw.probs))
    factor, slope = {
        "mul#log": (
            0.2 * (math.log(expected) / math.log(9)) ** 0.3,
            0.2 * float(entropy.detach()) * 0.3 * (math.log(expected) / math.log(9)) ** 0.3
            / (math.log(expected) * expected),
        ),
        "add#linear": (1.0, 0.1 / 9),
        "none": (1.0, 0.0),
    }[loss]  # fmt: skip
    gradient = straight_through(draw.probs, gates.grad.double() * factor)
    gradient = gradient + slope * straight_through(draw.probs, method.table.ops)
    rows = draw.active != method.arch.zeros
    assert rows.any()
    wanted = before - 1e-3 * gradient / (gradient.abs() + 1e-8) * rows.unsqueeze(-1)

    method._gradient_step(2, 1, 0)
    # The first step of Adam has the sign of the gradient; its size must not matter here.
    clear = (gradient.abs() > 1e-5) | ~rows.unsqueeze(-1)
    torch.testing.assert_close(method.arch.alphas[clear], wanted[clear], rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(
        method.arch._optimizer.second[rows], (1e-3 * gradient.square())[rows], rtol=1e-3, atol=1e-12
    )


def test_the_latency_alone_drives_alphas_to_the_fast_operations(data: DataSet) -> None:
    slow = search(data, loss="add#linear", weight=50.0, arch_lr=0.2, arch_every=1, epochs=4)
    start = slow.expected_cost()
    run(slow)
    assert slow.expected_cost() < start - 0.5


@pytest.mark.parametrize("loss", ["mul#log", "none"])
def test_reinforce_moves_alphas_and_its_baseline_before_it_is_used(
    data: DataSet, loss: str
) -> None:
    method = search(data, arch_update="reinforce", loss=loss)
    before = weights(method)
    assert method._baseline is None
    first = method._reinforce_step(2, 0, 0)
    assert method._baseline == pytest.approx(float(first["reward"]))
    second = method._reinforce_step(2, 1, 0)
    wanted = 0.01 * float(first["reward"]) + 0.99 * float(second["reward"])
    assert method._baseline == pytest.approx(wanted)
    after = weights(method)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "params",
    [{}, {"gates": "two"}, {"gates": "full"}, {"arch_update": "reinforce"}, {"cost": "flops"}],
)
def test_a_resumed_search_continues_bit_for_bit_from_every_step(
    data: DataSet, params: dict[str, Any]
) -> None:
    params = params | {"ref": None}
    undisturbed = search(data, **params)
    states, reports = [unpack(pack(undisturbed.state_dict()))], []
    while undisturbed._step < undisturbed.total:
        reports.append(undisturbed.step())
        states.append(unpack(pack(undisturbed.state_dict())))
    assert reports[-1].done
    for at in (0, 4, 9, 11, 12, 18):
        torch.rand(3)  # the global generator must not matter
        resumed = search(data, measured=latencies(3.0), **params)
        resumed.load_state_dict(states[at])
        assert resumed.step() == reports[at]
        assert pack(resumed.state_dict()) == pack(states[at + 1])
    assert resumed.total == undisturbed.total


def test_a_state_is_a_copy_that_later_steps_leave_alone(data: DataSet) -> None:
    method = search(data)
    for _ in range(12):
        method.step()
    state = method.state_dict()
    before = pack(state)
    other = search(data)
    other.load_state_dict(state)
    method.step()
    other.step()
    assert pack(state) == before
    assert pack(method.state_dict()) == pack(other.state_dict())


def test_the_seed_decides_everything_and_the_global_generator_nothing(data: DataSet) -> None:
    before = torch.get_rng_state()

    def after_a_step(seed: int) -> bytes:
        method = search(data, seed=seed)
        method.step()
        return pack(method.state_dict())

    assert after_a_step(1) == after_a_step(1)
    assert after_a_step(1) != after_a_step(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_best_begin_with_the_likeliest_operation_of_every_block(data: DataSet) -> None:
    method = search(data)
    run(method)
    best = method.best(5)
    assert len(set(best)) == 5
    assert list(best[0].choices) == method.arch.probabilities().argmax(-1).tolist()
    assert method.best(0) == []


@pytest.mark.parametrize(
    ("metric", "bound"), [("latency_ms", 14.0), ("flops", 40e3), ("num_params", 480)]
)
def test_what_is_derived_under_a_cap_meets_it(data: DataSet, metric: str, bound: float) -> None:
    method = search(data, limits=(limit(metric, bound), limit("accuracy", 1.0)))
    assert method.cap is not None
    free = search(data).best(1)[0]
    assert method.cap.table.total(free.choices) > bound
    best = method.best(12)
    costs = [method.cap.table.total(item.choices) for item in best]
    assert max(costs) <= bound
    assert len(set(best)) == 12
    assert costs[0] > 0.7 * bound
    everyone = [method.cap.table.total(item.choices) for item in method.best(10**6)]
    assert min(costs) == min(everyone)


def test_the_cap_is_the_default_reference_of_its_cost(data: DataSet) -> None:
    capped = search(data, limits=(limit("latency_ms", 14.0),), ref=None)
    assert capped.cost_loss.ref == 14
    assert search(data, limits=(limit("num_params", 700),), ref=None).cost_loss.ref == 80


def test_a_cap_out_of_reach_is_refused_before_any_training(data: DataSet) -> None:
    with pytest.raises(InfeasibleError, match=r"at most 1: the smallest reachable is \d"):
        search(data, limits=(limit("latency_ms", 1.0),))


def test_a_table_in_the_parameters_goes_before_what_was_measured(data: DataSet) -> None:
    table = {key: {"mean": value, "count": 9} for key, value in latencies(5.0).items()}
    method = search(data, table=table)
    assert method.expected_cost() > search(data).expected_cost() + 10
    del table[next(iter(table))]
    with pytest.raises(InvalidInputError, match="the latency table has no layer"):
        search(data, table=table)


def test_latencies_are_wanted_only_where_they_are_used() -> None:
    capped = (limit("latency_ms", 1.0),)
    assert Proxyless.wants_latencies({}, ())
    assert not Proxyless.wants_latencies({"table": {}}, capped)
    assert not Proxyless.wants_latencies({"cost": "flops"}, ())
    assert not Proxyless.wants_latencies({"loss": "none"}, ())
    assert Proxyless.wants_latencies({"loss": "none"}, capped)


def test_a_logarithm_of_less_than_one_is_refused_with_the_remedy(data: DataSet) -> None:
    for changes in ({"ref": 0.5}, {"measured": latencies(0.01)}):
        with pytest.raises(InvalidInputError, match="use the loss add#linear"):
            search(data, **changes)  # type: ignore[arg-type]
    search(data, ref=0.5, loss="add#linear")


def test_a_step_after_the_last_is_refused(data: DataSet) -> None:
    method = search(data, warmup_epochs=0, epochs=1, batch_size=50)
    assert method.step().done
    with pytest.raises(ConflictError, match="all 1 steps are done"):
        method.step()


def test_a_state_of_another_search_is_refused(data: DataSet) -> None:
    context = MethodContext(space=replace(SPACE, depths=(2, 1)), seed=7, data=data)
    other = Proxyless(context, loss="none", batch_size=10)
    with pytest.raises(InvalidInputError, match="not of a ProxylessNAS search over"):
        other.load_state_dict(search(data).state_dict())
    with pytest.raises(InvalidInputError, match="not of a ProxylessNAS search"):
        other.load_state_dict({})
    capped = search(data, limits=(limit("latency_ms", 14.0),))
    with pytest.raises(InvalidInputError, match="one of them has a cap"):
        capped.load_state_dict(search(data).state_dict())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"ref": 0.0}, "ref is 0.0"),
        ({"rl_samples": 0}, "rl_samples is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    data: DataSet, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        search(data, **params)


@pytest.mark.parametrize("name", ["gates", "arch_update", "cost", "loss"])
def test_an_unknown_choice_lists_the_choices(data: DataSet, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown {name} 'x'; choose one of: "):
        search(data, **{name: "x"})


def test_another_space_and_too_few_images_are_refused(data: DataSet) -> None:
    with pytest.raises(InvalidInputError, match="searches the space 'mbconv', not 'darts'"):
        Proxyless(MethodContext(space=DartsSpace(), data=data))
    with pytest.raises(InvalidInputError, match="at least 4 images"):
        Proxyless(MethodContext(space=SPACE))
    few = Split(images=data.train.images[:5], labels=torch.arange(5))
    with pytest.raises(InvalidInputError, match="of 5 images 0 would be held out"):
        Proxyless(MethodContext(space=SPACE, data=replace(data, train=few)), loss="none")


def test_an_update_in_which_nothing_depends_on_a_gate_changes_nothing(data: DataSet) -> None:
    space = MBConvSpace(preset="cifar", widths=(4,), depths=(1,), strides=(1,), stem=4, first=4,
                        last=8, kernels=(3,), expands=(1,))  # fmt: skip
    settings = {"warmup_epochs": 0, "epochs": 3, "batch_size": 10, "arch_every": 1, "loss": "none"}
    method = make_method("proxyless", settings, MethodContext(space=space, seed=0, data=data))
    assert isinstance(method, Proxyless)
    with torch.no_grad():
        method.arch.alphas[:, 1] = 50.0  # ``zero`` is always active
    before = method.arch.alphas.detach().clone()
    run(method)
    assert torch.equal(method.arch.alphas, before)


def test_a_search_that_diverges_says_so(data: DataSet) -> None:
    method = search(data, warmup_lr=1e30)
    with pytest.raises(TrainerError, match="lower the learning rate"):
        run(method)


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["full_v2", "two"])
def test_the_only_operation_that_sees_the_labels_is_ranked_first(gates: str) -> None:
    # Columns repeat every eight pixels, or flip their sign: stem and first block see five
    # columns, with a kernel of 3 seven, of 7 eleven.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (2048,), generator=generator)
    base = torch.rand(2048, 1, 4, 8, generator=generator) < 0.5
    flip = (labels == 1).view(-1, 1, 1, 1)
    images = torch.cat([base, base ^ flip, base], dim=3).to(torch.uint8) * 255
    split = Split(images=images, labels=labels)
    made = DataSet(
        name="made", digest="0" * 64, num_classes=2, class_names=("a", "b"), licence="none",
        inputs=TensorSpec(shape=(1, 4, 24)), mean=(0.5,), std=(0.5,),
        train=split, val=split, test=split,
    )  # fmt: skip
    space = MBConvSpace(
        preset="cifar", widths=(16,), depths=(1,), strides=(1,), stem=16, first=8, last=32,
        kernels=(3, 7), expands=(4, 6),
    )  # fmt: skip
    method = Proxyless(
        MethodContext(space=space, seed=1, data=made), warmup_epochs=3, epochs=4, batch_size=64,
        gates=gates, arch_every=1, warmup_lr=0.1, lr=0.1, arch_lr=0.05, loss="none",
        held_out=0.3, label_smoothing=0.0, augment=False,
    )  # fmt: skip
    assert run(method)[-1].metrics["arch_accuracy"] > 0.85
    assert space.summary(method.best(1)[0]).startswith("7x7")
    assert float(method.arch.probabilities()[0, 2:].sum()) > 0.7
