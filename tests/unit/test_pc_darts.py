"""PC-DARTS as a resumable stepper: order of updates, schedule, resumption, errors."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.checkpoint import pack, unpack
from nas.data import DataSet, Split
from nas.methods.pc_darts import PCDarts
from nas.plugins import MethodContext, make_method
from nas.protocols import SearchMethod, StepReport
from nas.spaces.darts import DartsSpace
from zoo.errors import ConflictError, InvalidInputError, TrainerError
from zoo.spec import TensorSpec

SPACE = DartsSpace(cells=3, channels=4, nodes=1, ops=("none", "skip_connect", "sep_conv_3x3"))


def dataset(images: Tensor, labels: Tensor) -> DataSet:
    split = Split(images=images, labels=labels)
    classes = int(labels.max()) + 1
    return DataSet(
        name="made",
        digest="0" * 64,
        num_classes=classes,
        class_names=tuple(str(label) for label in range(classes)),
        licence="none",
        inputs=TensorSpec(shape=tuple(images.shape[1:])),
        mean=(0.5,),
        std=(0.5,),
        train=split,
        val=split,
        test=split,
        flips=False,
    )


@pytest.fixture(scope="module")
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (25, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return dataset(images, torch.arange(25) % 3)


def search(data: DataSet, **params: Any) -> PCDarts:
    settings: dict[str, Any] = {"epochs": 4, "warmup_epochs": 2, "batch_size": 5, "k": 2}
    return PCDarts(MethodContext(space=SPACE, seed=7, data=data), **(settings | params))


def run(method: PCDarts) -> list[StepReport]:
    return [method.step() for _ in range(method.total)]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def leaves(state: object) -> list[object]:
    if isinstance(state, dict):
        return [leaf for key in sorted(state) for leaf in leaves(state[key])]
    if isinstance(state, list):
        return [leaf for item in state for leaf in leaves(item)]
    return [state]


def equal_states(first: object, second: object) -> bool:
    a, b = leaves(first), leaves(second)
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


def test_it_is_registered_and_a_search_method(data: DataSet) -> None:
    context = MethodContext(space=SPACE, seed=0, data=data)
    method = make_method("pc-darts", {"k": 2, "epochs": 1, "batch_size": 8}, context)
    assert isinstance(method, PCDarts)
    assert isinstance(method, SearchMethod)
    assert PCDarts.trains


def test_architecture_parameters_rest_bit_for_bit_until_the_warm_up_ends(data: DataSet) -> None:
    method = search(data)
    start = tensors(method.arch)
    for _ in range(2 * method.steps_per_epoch):
        weights = tensors(method.supernet)
        report = method.step()
        assert "arch_loss" not in report.metrics
        assert same(tensors(method.arch), start)
        assert not same(tensors(method.supernet), weights)
    assert "arch_loss" in method.step().metrics
    moved = tensors(method.arch)
    assert all(not torch.equal(moved[name], start[name]) for name in start)


def test_each_half_of_a_step_moves_only_its_own_parameters(data: DataSet) -> None:
    method = search(data)
    batch = method._batch(0, 0, part=1)
    weights, arch = tensors(method.supernet), tensors(method.arch)
    method.updates.architecture(*batch, *batch)
    assert same(tensors(method.supernet), weights)
    assert all(parameter.grad is None for parameter in method.supernet.parameters())
    moved = tensors(method.arch)
    assert not same(moved, arch)
    gradients = {name: parameter.grad for name, parameter in method.arch.named_parameters()}
    method.updates.weights(*batch)
    assert same(tensors(method.arch), moved)
    assert gradients == {name: p.grad for name, p in method.arch.named_parameters()}
    assert not same(tensors(method.supernet), weights)


def test_one_step_is_adam_on_the_second_half_then_clipped_sgd_on_the_first(data: DataSet) -> None:
    method = search(data, warmup_epochs=0, clip_norm=0.01)
    supernet, arch = copy.deepcopy(method.supernet), copy.deepcopy(method.arch)
    report = method.step()

    images, labels = method._batch(0, 0, part=1)
    loss = F.cross_entropy(supernet(images, arch()), labels)
    assert report.metrics["arch_loss"] == pytest.approx(loss.item(), rel=1e-6)
    with torch.no_grad():
        for p, g in zip(
            arch.parameters(), torch.autograd.grad(loss, list(arch.parameters())), strict=True
        ):
            g = g + 1e-3 * p
            # Adam's first step: both moments, corrected for their start at zero.
            p -= 6e-4 * g / (g.abs() + 1e-8)
    for ours, p in zip(method.arch.parameters(), arch.parameters(), strict=True):
        torch.testing.assert_close(ours, p, rtol=1e-4, atol=1e-8)

    images, labels = method._batch(0, 0, part=0)
    loss = F.cross_entropy(supernet(images, method.arch()), labels)
    grads = torch.autograd.grad(loss, list(supernet.parameters()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    assert norm > 0.01
    with torch.no_grad():
        for p, g in zip(supernet.parameters(), grads, strict=True):
            p -= 0.1 * (g * 0.01 / (norm + 1e-6) + 3e-4 * p)
    for ours, p in zip(method.supernet.parameters(), supernet.parameters(), strict=True):
        torch.testing.assert_close(ours, p, rtol=1e-4, atol=1e-6)


def test_the_two_halves_are_disjoint_and_each_image_is_seen_once_an_epoch(data: DataSet) -> None:
    method = search(data)
    first, second = (method._order(1, half).tolist() for half in (0, 1))
    assert sorted(first) == list(range(12))
    assert sorted(second) == list(range(12, 25))
    assert method._order(1, 0).tolist() != method._order(2, 0).tolist()
    sizes = [len(method._batch(0, index, part=0)[1]) for index in range(method.steps_per_epoch)]
    assert sizes == [5, 5, 2]
    assert [len(method._batch(0, i, part=1)[1]) for i in range(3)] == sizes


def test_the_learning_rate_is_the_cosine_of_its_own_epoch(data: DataSet) -> None:
    method = search(data, epochs=50, lr=0.1)
    for epoch in (0, 1, 25, 49):
        wanted = 0.05 * (1 + math.cos(math.pi * epoch / 50))
        assert method.settings.learning_rate(epoch) == pytest.approx(wanted)
    assert method.step().metrics["lr"] == 0.1
    assert method.settings.learning_rate(49) > 0
    assert search(data, epochs=50, lr_min=0.01).settings.learning_rate(25) == pytest.approx(0.055)


def test_a_resumed_search_continues_bit_for_bit_from_every_step(data: DataSet) -> None:
    undisturbed = search(data)
    states, reports = [unpack(pack(undisturbed.state_dict()))], []
    while undisturbed._step < undisturbed.total:
        reports.append(undisturbed.step())
        states.append(unpack(pack(undisturbed.state_dict())))
    assert reports[-1].done
    for at, state in enumerate(states[:-1]):
        torch.rand(3)  # the global generator must not matter
        resumed = search(data)
        resumed.load_state_dict(state)
        assert resumed.step() == reports[at]
        assert equal_states(resumed.state_dict(), states[at + 1])
    assert resumed.best(5) == undisturbed.best(5)


def test_a_state_is_a_copy_that_later_steps_leave_alone(data: DataSet) -> None:
    method = search(data, warmup_epochs=0)
    method.step()
    state = method.state_dict()
    before = pack(state)
    other = search(data, warmup_epochs=0)
    other.load_state_dict(state)
    method.step()
    other.step()
    assert pack(state) == before
    assert pack(method.state_dict()) == pack(other.state_dict())


def test_the_seed_decides_everything(data: DataSet) -> None:
    def after_a_step(seed: int) -> bytes:
        method = PCDarts(
            MethodContext(space=SPACE, seed=seed, data=data),
            epochs=1, warmup_epochs=0, batch_size=8, k=2,
        )  # fmt: skip
        method.step()
        return pack(method.state_dict())

    assert after_a_step(1) == after_a_step(1)
    assert after_a_step(1) != after_a_step(2)


def test_building_and_stepping_leave_the_global_generator_alone(data: DataSet) -> None:
    before = torch.get_rng_state()
    search(data, warmup_epochs=0).step()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_best_are_distinct_and_begin_with_the_derived_one(data: DataSet) -> None:
    method = search(data)
    best = method.best(6)
    assert len(set(best)) == 6
    assert best[0] == SPACE.encode(method.genotype())
    assert method.best(0) == []
    assert len(method.best(10**6)) == SPACE.size()


def test_a_step_after_the_last_is_refused(data: DataSet) -> None:
    method = search(data, epochs=1, batch_size=12)
    assert method.step().done
    with pytest.raises(ConflictError, match="all 1 steps are done"):
        method.step()


def test_a_state_of_another_space_is_refused(data: DataSet) -> None:
    context = MethodContext(space=replace(SPACE, nodes=2), seed=7, data=data)
    other = PCDarts(context, epochs=1, k=2)
    with pytest.raises(InvalidInputError, match="not of a PC-DARTS search over"):
        other.load_state_dict(search(data).state_dict())
    with pytest.raises(InvalidInputError, match="not of a PC-DARTS search"):
        other.load_state_dict({})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr_min": 1.0}, "lr_min is 1.0"),
        ({"k": 3}, "k is 3"),
    ],
)
def test_numbers_out_of_range_are_refused(
    data: DataSet, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        search(data, **params)


def test_a_missing_or_tiny_training_set_is_refused(data: DataSet) -> None:
    with pytest.raises(InvalidInputError, match="at least 4 images"):
        PCDarts(MethodContext(space=SPACE))
    few = dataset(data.train.images[:3], data.train.labels[:3])
    with pytest.raises(InvalidInputError, match="at least 4 images"):
        PCDarts(MethodContext(space=SPACE, data=few))


def test_a_search_that_diverges_says_so(data: DataSet) -> None:
    method = search(data, lr=1e30, clip_norm=1e30)
    with pytest.raises(TrainerError, match="lower the learning rate"):
        run(method)


@pytest.mark.slow
def test_the_only_operation_that_sees_the_labels_is_ranked_first() -> None:
    # Columns repeat every four pixels, or flip their sign: beyond the stem's reach, and a
    # matter of pairs, not of brightness.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (512,), generator=generator)
    base = torch.rand(512, 1, 12, 4, generator=generator) < 0.5
    flip = (labels == 1).view(-1, 1, 1, 1)
    images = torch.cat([base, base ^ flip, base], dim=3).to(torch.uint8) * 255
    space = replace(SPACE, channels=8, ops=("none", "max_pool_3x3", "skip_connect", "dil_conv_5x5"))
    method = PCDarts(
        MethodContext(space=space, seed=1, data=dataset(images, labels)),
        epochs=12, warmup_epochs=2, batch_size=64, k=2, lr=0.05, arch_lr=0.01, augment=False,
    )  # fmt: skip
    assert run(method)[-1].metrics["arch_accuracy"] > 0.9
    assert {op for op, _ in method.genotype().normal[0]} == {"dil_conv_5x5"}
