"""Short training: fixed budget, same seed same network, clear ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nas import checkpoint
from nas.data import DataSet, load_dataset
from nas.evaluation import fresh_network
from nas.spaces.darts import DartsSpace, Genotype
from nas.training import FixedRecipe, accuracy, describe_recipe, learning_rate, train
from zoo.errors import InvalidInputError, TrainerError
from zoo.families.drop_path import DropPath

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Three classes of 8x8 images told apart by their brightness."""
    random = np.random.default_rng(0)
    labels = np.arange(150) % 3
    noise = random.integers(0, 60, (150, 1, 8, 8))
    path: Path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, images=(noise + 90 * labels[:, None, None, None]).astype("u1"), labels=labels)
    return load_dataset(f"npz:{path}", root=None, seed=0)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip


RECIPE = FixedRecipe(epochs=3, batch_size=16, lr=0.1)


def test_training_learns_and_scores_the_validation_split(data: DataSet) -> None:
    module = network()
    before = accuracy(module, data, data.val)
    result = train(module, data, replace(RECIPE, epochs=12), device=CPU, seed=0)
    assert result.completed
    assert result.metrics["accuracy"] > max(before, 0.9)
    assert result.metrics["accuracy"] == accuracy(module, data, data.val)
    assert not module.training


def test_the_same_seed_gives_the_same_network_bit_for_bit(data: DataSet) -> None:
    modules = [network() for _ in range(3)]
    for module, seed in zip(modules, (5, 5, 6), strict=True):
        torch.rand(seed)  # the global generator must not matter
        train(module, data, RECIPE, device=CPU, seed=seed)
    first, second, other = (module.state_dict() for module in modules)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_training_leaves_the_global_generator_alone(data: DataSet) -> None:
    before = torch.get_rng_state()
    train(network(), data, RECIPE, device=CPU, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_come_out_contiguous(data: DataSet) -> None:
    module = network()
    train(module, data, RECIPE, device=CPU, seed=0)
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())


def test_progress_hears_of_every_epoch(data: DataSet) -> None:
    heard: list[tuple[int, int, float]] = []

    def progress(done: int, total: int, metrics: dict[str, float]) -> None:
        heard.append((done, total, metrics["loss"]))

    result = train(network(), data, RECIPE, device=CPU, seed=0, progress=progress)
    assert [(done, total) for done, total, _ in heard] == [(1, 3), (2, 3), (3, 3)]
    assert heard[-1][2] == result.metrics["loss"] < heard[0][2]


def test_training_stops_when_it_is_told_to(data: DataSet) -> None:
    answers = itertools.chain([False] * 4, itertools.repeat(True))
    result = train(network(), data, RECIPE, device=CPU, seed=0, should_stop=lambda: next(answers))
    assert not result.completed
    assert result.metrics == {}


def test_the_cost_is_what_the_clock_says(data: DataSet) -> None:
    ticks = iter([10.0, 13.5])
    clock: Callable[[], float] = lambda: next(ticks)  # noqa: E731
    assert train(network(), data, RECIPE, device=CPU, seed=0, clock=clock).cost_s == 3.5


def test_a_loss_that_is_not_finite_is_an_error_with_its_epoch(data: DataSet) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.inner(images) * (float("nan") if self.calls == 8 else 1.0)

    with pytest.raises(TrainerError, match=r"became nan in epoch 2 of 3; lower .* \(0.1\)"):
        train(Failing(), data, RECIPE, device=CPU, seed=0)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 0.4) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[9] == max(rates) == 0.4
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert rates[:10] == sorted(rates[:10])


def test_a_budget_of_one_step_still_trains(data: DataSet) -> None:
    recipe = FixedRecipe(epochs=1, batch_size=10_000)
    module = network()
    before = module[0].weight.clone()  # type: ignore[index,operator]
    train(module, data, recipe, device=CPU, seed=0)
    assert not torch.equal(before, module[0].weight)  # type: ignore[index,arg-type]


def test_accuracy_counts_every_image_once(data: DataSet) -> None:
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(images), 3)

    expected = float((data.test.labels == 1).float().mean())
    assert accuracy(Constant(), data, data.test) == pytest.approx(expected)


# Every element at once, and going on after an epoch.

SPACE = DartsSpace(cells=2, channels=4, nodes=1, ops=("sep_conv_3x3", "skip_connect"))
FULL = FixedRecipe(
    epochs=4,
    batch_size=16,
    lr=0.1,
    schedule="cosine-epoch",
    warmup_epochs=1,
    label_smoothing=0.1,
    no_decay=("norms", "biases"),
    crop="resized",
    color_jitter=(0.4, 0.4, 0.4, 0.2),
    cutout=4,
    drop_path=0.5,
    drop_path_schedule="scheduled",
    dropout=0.2,
    auxiliary=0.4,
    ema=0.9,
)


def cells(data: DataSet) -> nn.Module:
    architecture = SPACE.encode(
        Genotype.parse(
            "normal: sep_conv_3x3(0) + skip_connect(1); reduce: sep_conv_3x3(0) + skip_connect(1)"
        )
    )
    return fresh_network(SPACE, architecture, data, seed=0)


def states(data: DataSet, recipe: FixedRecipe) -> tuple[nn.Module, list[bytes], float]:
    """Train to the end and return the network, what was kept after each epoch, the loss."""
    kept: list[bytes] = []
    module = cells(data)
    result = train(
        module,
        data,
        recipe,
        device=CPU,
        seed=3,
        keep=lambda training: kept.append(checkpoint.pack(training.state_dict())),
    )
    return module, kept, result.metrics["loss"]


@pytest.mark.parametrize(
    "recipe",
    [FULL, replace(FULL, ema=0.0, precision="bfloat16"), FixedRecipe(epochs=3, batch_size=16)],
    ids=["everything", "half precision", "defaults"],
)
def test_a_training_goes_on_after_any_epoch_bit_for_bit(data: DataSet, recipe: FixedRecipe) -> None:
    module, kept, loss = states(data, recipe)
    assert len(kept) == recipe.epochs
    wanted = module.state_dict()
    assert not any("drop" in name or "aux" in name for name in wanted)
    for state in kept:
        torch.rand(7)
        again = cells(data)
        result = train(again, data, recipe, device=CPU, seed=3, resume=checkpoint.unpack(state))
        assert result.metrics["loss"] == loss
        assert result.cost_s > 0
        assert all(torch.equal(wanted[key], value) for key, value in again.state_dict().items())


def test_a_state_of_another_training_is_refused(data: DataSet) -> None:
    state = checkpoint.unpack(states(data, replace(FULL, epochs=1))[1][0])
    with pytest.raises(InvalidInputError, match="another recipe and seed; start anew"):
        train(cells(data), data, replace(FULL, epochs=2), device=CPU, seed=4, resume=state)
    with pytest.raises(InvalidInputError, match="another network"):
        train(
            network(),
            data,
            FixedRecipe(epochs=1),
            device=CPU,
            seed=3,
            resume=state | {"recipe": describe_recipe(FixedRecipe(epochs=1))},
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"cutout": 4},
        {"crop": "resized"},
        {"color_jitter": (0.4, 0.4, 0.4, 0.2)},
        {"auto_augment": True},
        {"drop_path": 0.5},
        {"dropout": 0.5},
        {"auxiliary": 0.4},
        {"ema": 0.9},
        {"precision": "bfloat16"},
        {"nesterov": False},
        {"no_decay": ("norms",)},
        {"clip_norm": None},
        {"clip_norm": 0.01},
        {"schedule": "linear"},
    ],
    ids=str,
)
def test_every_element_changes_what_is_learned(data: DataSet, changes: dict[str, Any]) -> None:
    plain = FixedRecipe(epochs=2, batch_size=32, lr=0.1, weight_decay=0.01, clip_norm=0.1)
    first, second = cells(data), cells(data)
    train(first, data, plain, device=CPU, seed=0)
    train(second, data, replace(plain, **changes), device=CPU, seed=0)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert any(
        not torch.equal(value, second.state_dict()[key])
        for key, value in first.state_dict().items()
    )
    assert all(part.rate == 0 for part in second.modules() if isinstance(part, DropPath))
    assert not second[-2]._forward_hooks  # type: ignore[index,union-attr]


def test_the_averaged_weights_are_the_ones_that_are_scored(data: DataSet) -> None:
    module, kept, _ = states(data, FULL)
    average = checkpoint.unpack(kept[-1])["average"]["average"]
    live = checkpoint.unpack(kept[-1])["weights"]
    name = "0.layers.0.weight"
    assert torch.equal(module.state_dict()[name], average[name])
    assert not torch.equal(live[f"0.{name}"], average[name])


def test_drop_rates_rise_as_the_training_goes_on(data: DataSet) -> None:
    rates: list[float] = []
    module = cells(data)
    paths = [part for part in module.modules() if isinstance(part, DropPath)]
    paths[0].depth = 0.5

    def seen(_: object) -> None:
        rates.extend(part.rate for part in paths)

    recipe = FixedRecipe(epochs=4, batch_size=16, drop_path=0.4, drop_path_schedule="scheduled")
    train(module, data, recipe, device=CPU, seed=0, keep=seen)
    steps = len(data.train) // 16
    shares = [((epoch + 1) * steps - 1) / (4 * steps) for epoch in range(4)]
    assert rates[::2] == pytest.approx([0.2 * share for share in shares])
    assert rates[1::2] == pytest.approx([0.4 * share for share in shares])
    rates.clear()
    linear = replace(recipe, drop_path_schedule="linear")
    train(module, data, linear, device=CPU, seed=0, keep=seen)
    assert rates[::2] == rates[1::2] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_an_unknown_precision_is_an_error(data: DataSet) -> None:
    with pytest.raises(InvalidInputError, match="float16"):
        train(network(), data, replace(RECIPE, precision="float16"), device=CPU, seed=0)
