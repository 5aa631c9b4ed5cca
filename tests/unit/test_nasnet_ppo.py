"""The controller, PPO, the weight-sharing supernet, and the search that they make."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.checkpoint import pack, unpack
from nas.cost.analytic import cost
from nas.cost.operations import trace
from nas.data import DataSet, load_dataset
from nas.methods.nasnet_ppo import (
    Controller,
    NasnetPPO,
    clipped_surrogate,
    constrained_reward,
    moving_baseline,
    ppo_loss,
)
from nas.methods.nasnet_ppo.costs import COUNTED, NOMINAL, Prices, measure_latencies
from nas.methods.nasnet_ppo.ppo import Policy
from nas.methods.nasnet_ppo.supernet import SharedCell, SharedInput, Supernet
from nas.plugins import MethodContext, make_method, make_space
from nas.spaces.nasnet import NasnetSpace
from zoo.builders import build_chain
from zoo.errors import InvalidInputError
from zoo.families.nasnet import Cell
from zoo.families.nasnet_operations import OPERATIONS
from zoo.spec import TensorSpec

IMAGE = TensorSpec(shape=(1, 8, 8))
SIZES = (2, 3, 1, 3)


def controller(sizes: tuple[int, ...] = SIZES, seed: int = 0, hidden: int = 5) -> Controller:
    generator = torch.Generator().manual_seed(seed)
    return Controller(sizes, hidden=hidden, generator=generator).double()


def stirred(seed: int = 0) -> Controller:
    """A controller far from uniform."""
    made = controller(seed=seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8)
    return made


def everything(sizes: tuple[int, ...] = SIZES) -> Tensor:
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def test_the_clipped_surrogate_is_the_formula_and_follows_no_ratio_beyond_the_clip() -> None:
    old = torch.log(torch.tensor([0.2, 0.2, 0.2, 0.2, 0.5], dtype=torch.float64))
    new = torch.log(torch.tensor([0.3, 0.1, 0.3, 0.1, 0.5], dtype=torch.float64)).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -2.0, -2.0, 3.0], dtype=torch.float64)
    value = clipped_surrogate(new, old, advantages, clip=0.2)
    # Ratios 1.5, 0.5, 1.5, 0.5, 1: min of r A and clamp(r, .8, 1.2) A.
    expected = (1.2 + 0.5 + -3.0 + -1.6 + 3.0) / 5
    assert value.item() == pytest.approx(expected, abs=1e-12)
    value.backward()
    assert new.grad is not None
    # d(r A)/d log p = r A where the ratio is followed, else 0.
    assert new.grad.tolist() == pytest.approx([0, 0.1, -0.6, 0, 0.6], abs=1e-12)
    entropies = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    loss = ppo_loss(new, old, advantages, entropies, clip=0.2, entropy_weight=0.1)
    assert loss.item() == pytest.approx(-expected - 0.3, abs=1e-12)


def test_baseline_and_constrained_reward_are_their_formulae() -> None:
    assert moving_baseline(None, [0.2, 0.4], decay=0.95) == pytest.approx(0.3)
    expected = 0.95 * (0.95 * 0.5 + 0.05 * 0.2) + 0.05 * 0.4
    assert moving_baseline(0.5, [0.2, 0.4], decay=0.95) == pytest.approx(expected, abs=1e-15)
    assert constrained_reward(0.8, 200.0, ref=100.0, exponent=0.07) == pytest.approx(
        0.8 * 0.5**0.07
    )


def test_probabilities_are_those_of_the_lstm_step_by_step_and_sum_to_one() -> None:
    made = stirred()
    choices = everything()
    log_probs, entropies = made(choices)
    joint = log_probs.sum(1).exp()
    assert joint.sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.isfinite(log_probs).all()
    # The chain rule of entropy: the mean of the sums is the entropy of whole tuples.
    mean = (joint * entropies.sum(1)).sum().item()
    assert mean == pytest.approx(-(joint * joint.log()).sum().item(), abs=1e-12)
    row = choices[11]
    cell = nn.LSTMCell(5, 5).double()
    for theirs, ours in zip(cell.parameters(), made.lstm.parameters(), strict=True):
        theirs.data.copy_(ours)
    state = (torch.zeros(1, 5).double(), torch.zeros(1, 5).double())
    given = made.start[None]
    for at, options in enumerate(SIZES):
        state = cell(given, state)
        logits = made.weight[at, :options] @ state[0][0] + made.bias[at, :options]
        assert logits.log_softmax(0)[row[at]].item() == pytest.approx(log_probs[11, at].item())
        given = made.embeddings[at, row[at]][None]


def test_the_gradient_of_log_probabilities_is_that_of_finite_differences() -> None:
    made = stirred(1)
    choices = everything()[[3, 7, 16]]
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def value() -> Tensor:
        log_probs, entropies = made(choices)
        return (log_probs.sum(1) * weights).sum() + 0.3 * entropies.sum()

    torch.autograd.backward(value())
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        along = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(along, alpha=1e-6)
            above = value()
            parameter.sub_(along, alpha=2e-6)
            slope = (above - value()).item() / 2e-6
            parameter.add_(along, alpha=1e-6)
        assert slope == pytest.approx((parameter.grad * along).sum().item(), rel=1e-5, abs=1e-7)


def test_draws_have_the_probabilities_that_the_controller_says() -> None:
    made = stirred(2)
    drawn = made.sample(20_000, torch.Generator().manual_seed(0))
    expected = made(everything())[0].sum(1).exp()
    codes = {tuple(row): at for at, row in enumerate(everything().tolist())}
    counts = np.bincount([codes[tuple(row)] for row in drawn.tolist()], minlength=len(codes))
    np.testing.assert_allclose(counts / 20_000, expected.detach(), atol=0.012)
    # How likely each option is at all, by enumeration.
    likely = torch.stack(
        [
            torch.stack(
                [expected[everything()[:, at] == option].sum() for option in range(max(SIZES))]
            )
            for at in range(len(SIZES))
        ]
    )
    torch.testing.assert_close(made.marginals(drawn), likely.detach(), rtol=0, atol=5e-3)
    again = made.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    # The likeliest option at every step, given those before.
    greedy = made.greedy()
    for at, options in enumerate(SIZES):
        rows = greedy.repeat(options, 1)
        rows[:, at] = torch.arange(options)
        assert int(made(rows)[0][:, at].argmax()) == int(greedy[at])


def found_by(sizes: tuple[int, ...], optimum: tuple[int, ...], seed: int) -> bool:
    """Let a controller alone learn a reward with interactions; say whether it decides so."""
    policy = Policy(
        Controller(sizes, hidden=16, generator=torch.Generator().manual_seed(seed)),
        lr=2e-2, clip=0.2, entropy_weight=1e-3, decay=0.95, epochs=2,
    )  # fmt: skip
    target = torch.tensor(optimum)
    generator = torch.Generator().manual_seed(100 + seed)
    for _ in range(45):
        choices = policy.controller.sample(20, generator)
        equal = choices == target
        # Each right choice helps; the whole is worth most where two of them agree.
        rewards = 0.5 + 0.05 * equal.double().sum(1) + 0.1 * (equal[:, 1] & equal[:, 3]).double()
        policy.learn(choices, rewards)
    return bool(torch.equal(policy.controller.greedy(), target))


def test_the_controller_finds_the_planted_optimum_on_nine_of_ten_seeds() -> None:
    sizes = (2, 3, 4, 4, 2)
    random_optima = random.Random(0)
    right = 0
    for seed in range(10):
        optimum = tuple(random_optima.randrange(size) for size in sizes)
        right += found_by(sizes, optimum, seed)
    assert right >= 9


def a_space(**changes: Any) -> NasnetSpace:
    settings: dict[str, Any] = {
        "cells": 3, "channels": 4, "num_blocks": 2, "stem_channels": 6,
        "combines": ["add", "concat"],
        "ops": ["identity", "conv_3x3", "max_pool_3x3", "sep_conv_3x3"],
    }  # fmt: skip
    space = make_space("nasnet", settings | changes)
    assert isinstance(space, NasnetSpace)
    return space


def lay_parts(target: nn.Module, source: SharedInput, parts: list[int]) -> None:
    """Copy the shared convolutions of the parts that are there, side by side."""
    weights = [
        torch.cat([conv.convs[part].weight for part in parts], dim=1)  # type: ignore[index]
        for conv in source.convs
    ]
    convolutions = [m for m in target.modules() if isinstance(m, nn.Conv2d)]
    for convolution, weight in zip(convolutions, weights, strict=True):
        convolution.weight.data.copy_(weight)
    (norm,) = [module for module in target.modules() if isinstance(module, nn.BatchNorm2d)]
    norm.load_state_dict(source.norm.state_dict(), strict=False)


def inherit(cell: Cell, shared: SharedCell, previous: list[int], current: list[int]) -> None:
    lay_parts(cell.current, shared.current, current)
    if not isinstance(cell.previous, nn.Identity):
        assert shared.previous is not None
        lay_parts(cell.previous, shared.previous, previous)
    paths = iter(cell.paths)
    for block, (*sides, combine) in enumerate(cell.wiring.blocks):
        for side, (name, state) in enumerate(sides):
            source = shared.path(block, side, name, state).state_dict().values()
            sizes = list(next(paths).parameters())
            for target, tensor in zip(sizes, source, strict=True):
                target.data.copy_(tensor)
        if combine == "concat":
            joined = zip(
                cell.joins[block].parameters(), shared.joins[block].parameters(), strict=True
            )
            for target, tensor in joined:
                target.data.copy_(tensor)
    for fit, state in zip(cell.outputs, cell.wiring.outputs, strict=True):
        if state < 2:
            fits = zip(fit.parameters(), shared.outputs[state].parameters(), strict=True)
            for target, tensor in fits:
                target.data.copy_(tensor)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outputs": "free", "skip": True},
        {"stem": "imagenet", "channels": 8, "skip": True},
        {"stem_channels": 4, "num_blocks": 1},
    ],
)
def test_a_child_computes_what_the_network_derived_from_it_does(changes: dict[str, Any]) -> None:
    space = a_space(**changes)
    inputs = TensorSpec(shape=(3, 18, 18))
    torch.manual_seed(0)
    supernet = Supernet(space, inputs=inputs, num_classes=5).double().train()
    for parameter in supernet.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    rng = random.Random(5)
    for _ in range(6):
        architecture = space.sample(rng)
        genotype = space.decode(architecture)
        network = space.build(architecture, inputs=inputs, num_classes=5).double().train()
        stem, *cells, head = network
        stem.load_state_dict(supernet.stem.state_dict(), strict=False)
        previous, current = [0], [0]
        for cell, shared, site in zip(cells, supernet.cells, space.settings.sites, strict=True):
            assert isinstance(cell, Cell)
            assert isinstance(shared, SharedCell)
            inherit(cell, shared, previous, current)
            previous = previous if site.skip else current
            current = list(genotype.of(site).outputs)
        rows = [supernet.head.linears[part].weight for part in current]
        head[-1].weight.data.copy_(torch.cat(rows, dim=1))
        head[-1].bias.data.copy_(supernet.head.bias)
        images = torch.randn(4, 3, 18, 18, dtype=torch.float64)
        child = supernet(images, genotype)
        assert (child[0] - child[1]).abs().max().item() > 1e-3
        torch.testing.assert_close(child, network(images), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    labels = np.arange(120) % 3
    noise = np.random.default_rng(0).integers(0, 60, (120, 1, 8, 8))
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, images=(noise + 90 * labels[:, None, None, None]).astype("u1"), labels=labels)
    return load_dataset(f"npz:{path}", root=None, seed=0)


def search(data: DataSet, space: NasnetSpace | None = None, **changes: Any) -> NasnetPPO:
    limits = changes.pop("limits", ())
    settings = {
        "warmup_epochs": 1, "epochs": 2, "batch_size": 16, "controller_every": 3, "samples": 4,
        "reward_batch_size": 8, "final_samples": 6,
    }  # fmt: skip
    context = MethodContext(space=space or a_space(), seed=2, data=data, limits=limits)
    method = make_method("nasnet-ppo", settings | changes, context)
    assert isinstance(method, NasnetPPO)
    return method


def test_a_step_changes_the_drawn_child_s_weights_and_no_others(data: DataSet) -> None:
    method = search(data)
    for _ in range(3):
        method.step()
    before = {name: item.detach().clone() for name, item in method.supernet.named_parameters()}
    ran: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.add(module))
        for module in method.supernet.modules()
        if not list(module.children())
    ]
    method._weight_step(1, 0)
    for hook in hooks:
        hook.remove()
    owners = {name: method.supernet.get_submodule(name.rpartition(".")[0]) for name in before}
    changed = {
        name
        for name, item in method.supernet.named_parameters()
        if not torch.equal(item, before[name])
    }
    used = {name for name, owner in owners.items() if owner in ran} | {"head.bias"}
    assert changed == used
    assert 0 < len(changed) < 0.5 * len(before)


def test_scoring_and_the_controller_s_update_leave_the_shared_weights_alone(data: DataSet) -> None:
    method = search(data)
    method.step()
    before = {name: item.clone() for name, item in method.supernet.state_dict().items()}
    policy = method.policy.controller.weight.detach().clone()
    metrics = method._controller_step(1)
    assert {"reward", "arch_accuracy", "baseline", "entropy"} == metrics.keys()
    assert not torch.equal(policy, method.policy.controller.weight)
    method.best(2)
    after = method.supernet.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_controller_is_updated_after_warm_up_at_the_stated_steps(data: DataSet) -> None:
    method = search(data)
    steps = method.steps_per_epoch
    updates = [step for step in range(method.total) if method.updates_controller(step)]
    assert updates == list(range(steps + 2, method.total, 3))
    reports = [method.step() for _ in range(method.total)]
    assert [at for at, it in enumerate(reports) if "reward" in it.metrics] == updates
    assert reports[0].metrics["lr"] == pytest.approx(0.05)
    assert method.learning_rate(method.total) == pytest.approx(0.0005)


def test_a_search_goes_on_bit_for_bit_from_between_two_updates(data: DataSet) -> None:
    space = a_space(cells=1, reductions=1, num_blocks=1)
    whole = search(data, space)
    reports = [whole.step() for _ in range(whole.total)]
    for cut in (2, whole.steps_per_epoch + 4):
        first, second = search(data, space), search(data, space)
        for _ in range(cut):
            first.step()
        second.step()
        second.load_state_dict(unpack(pack(first.state_dict())))
        assert [second.step() for _ in range(cut, whole.total)] == reports[cut:]
        assert pack(second.state_dict()) == pack(whole.state_dict())
    assert second.best(4) == whole.best(4)


@dataclass(frozen=True)
class AtMost:
    metric: str
    max: float | None
    min: float | None = None


def test_children_within_the_limits_come_first_and_costs_lower_rewards(data: DataSet) -> None:
    space = a_space(cells=1, reductions=1)
    told: dict[str, Any] = {"inputs": IMAGE, "num_classes": 3, "latencies": None, "exponent": 0.07}
    costs = Prices(space, limits=[AtMost("num_params", 1.0)], **told)
    rng = random.Random(0)
    drawn = [space.sample(rng) for _ in range(20)]
    counts = sorted(costs.of(child)["num_params"] for child in drawn)
    network = space.build(drawn[0], inputs=IMAGE, num_classes=3)
    assert costs.of(drawn[0])["num_params"] == sum(p.numel() for p in network.parameters())
    method = search(data, space, limits=(AtMost("num_params", counts[4]),))
    method.step()
    for child in method.best(3):
        assert costs.of(child)["num_params"] <= counts[4]
    # Nothing is so small: what is nearest comes first.
    beyond = search(data, space, limits=(AtMost("num_params", 10.0),)).best(3)
    sizes = [costs.of(child)["num_params"] for child in beyond]
    assert sizes == sorted(sizes)
    assert sizes[0] <= counts[4]


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_costs_from_shapes_are_those_of_every_operator_traced(stem: str) -> None:
    space = a_space(
        ops=list(OPERATIONS), num_blocks=4, cells=2, channels=8, outputs="free", stem=stem
    )
    inputs = TensorSpec(shape=(3, 23, 18))
    every = [AtMost(name, 1.0) for name in COUNTED]
    told: dict[str, Any] = {"inputs": inputs, "num_classes": 3, "latencies": None, "exponent": 1.0}
    fast, traced = Prices(space, limits=every[:3], **told), Prices(space, limits=every, **told)
    rng = random.Random(4)
    for _ in range(3):
        child = space.sample(rng)
        network = space.build(child, inputs=inputs, num_classes=3)
        expected = cost(network, inputs).metrics()
        assert traced.of(child) == expected
        del expected["peak_bytes"]
        assert fast.of(child) == expected


def test_latency_is_a_line_fitted_to_measured_networks() -> None:
    space = a_space(cells=1, reductions=1, num_blocks=1)
    limits = [AtMost("latency_ms", 2.0)]
    told: dict[str, Any] = {"inputs": IMAGE, "num_classes": 3, "limits": limits, "exponent": 0.07}
    nominal = Prices(space, latencies=None, **told)
    child = space.sample(random.Random(1))

    def measure(specs: Any) -> float:
        return 3.0 * NOMINAL.latency_ms(trace(build_chain(specs), IMAGE)) + 0.25

    line = measure_latencies(space, measure, inputs=IMAGE, num_classes=3)
    assert line == pytest.approx({"scale": 3.0, "overhead": 0.25})
    fitted = Prices(space, latencies=line, **told)
    expected = 3.0 * nominal.of(child)["latency_ms"] + 0.25
    assert fitted.of(child)["latency_ms"] == pytest.approx(expected)
    nominal.load_state_dict(fitted.state_dict())
    assert nominal.of(child) == fitted.of(child)
    assert NasnetPPO.wants_latencies({}, limits)
    assert not NasnetPPO.wants_latencies({}, [AtMost("flops", 1.0), AtMost("latency_ms", None)])


def dots(folder: Path, *, shuffled: bool) -> DataSet:
    """Make images of two dots, four pixels apart, side by side or one above the other.

    Isotropic operations cannot tell these, nor can the stem's 3x3 kernel.
    """
    rng = np.random.default_rng(0)
    count, side, gap = 600, 12, 4
    labels = np.arange(count) % 2
    images = rng.integers(0, 40, (count, 1, side, side)).astype("u1")
    for picture, label in zip(images[:, 0], labels, strict=True):
        across, along = rng.integers(0, side), rng.integers(0, side - gap)
        pair = ((across, along), (across, along + gap))
        for row, column in pair if label == 0 else (dot[::-1] for dot in pair):
            picture[row, column] = 255
    path = folder / f"dots-{shuffled}.npz"
    np.savez(path, images=images, labels=rng.permutation(labels) if shuffled else labels)
    return load_dataset(f"npz:{path}", root=None, seed=0)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_search_finds_the_one_informative_operation_and_nothing_in_shuffled_labels(
    tmp_path: Path, shuffled: bool
) -> None:
    space = a_space(
        cells=1, reductions=1, num_blocks=1, channels=8, stem_channels=8, combines=["add"],
        ops=["identity", "avg_pool_3x3", "max_pool_3x3", "conv_1x1", "conv_1x7_7x1"],
    )  # fmt: skip
    method = search(
        dots(tmp_path, shuffled=shuffled), space, warmup_epochs=4, epochs=8, batch_size=64,
        lr=0.1, controller_every=2, samples=8, reward_batch_size=64, controller_lr=2e-2,
        hidden=16, augment=False,
    )  # fmt: skip
    while not (report := method.step()).done:
        pass
    shares = {name: value for name, value in report.metrics.items() if name.startswith("share_")}
    assert len(shares) == 5
    assert sum(shares.values()) == pytest.approx(1)
    (best,) = method.best(1)
    (accuracy,) = method._held_out_accuracy([best], all_images=True)
    if shuffled:
        assert accuracy < 0.75
    else:
        assert "conv_1x7_7x1" in space.summary(best)
        assert accuracy > 0.95
        drawn = method.policy.controller.sample(50, torch.Generator().manual_seed(0))
        having = ["conv_1x7_7x1" in space.summary(method._child(row)) for row in drawn.tolist()]
        assert sum(having) > 40
        # One of four sides is enough, so that another operation may have more of the others.
        assert shares["share_conv_1x7_7x1"] > 0.2
    leader = max(shares, key=shares.__getitem__)
    assert f"{leader.removeprefix('share_')} leads with" in report.message
    assert report.step == method.total


def test_wrong_settings_and_states_are_refused(data: DataSet) -> None:
    for wrong, said in (
        ({"samples": 0}, "samples is 0"),
        ({"lr_min": 1.0}, r"lr_min is 1\.0; it must be from 0 to lr"),
        ({"ppo_clip": 0.0}, "ppo_clip"),
        ({"baseline_decay": 1.0}, "baseline_decay"),
        ({"held_out": 1.0}, "held_out"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            search(data, **wrong)
    with pytest.raises(InvalidInputError, match="takes the space 'nasnet', not 'darts'"):
        make_method("nasnet-ppo", {}, MethodContext(space=make_space("darts"), data=data))
    with pytest.raises(InvalidInputError, match="the limit on flops is 0"):
        search(data, limits=(AtMost("flops", 0.0),))
    other = search(data, a_space(num_blocks=1)).state_dict()
    with pytest.raises(InvalidInputError, match="this state is not of a NASNet search"):
        search(data).load_state_dict(other)
    assert math.isfinite(search(data).step().metrics["loss"])
