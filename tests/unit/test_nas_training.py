"""Short training: fixed budget, same seed same network, clear ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nas.data import DataSet, load_dataset
from nas.training import FixedRecipe, accuracy, describe_recipe, learning_rate, train
from zoo.errors import TrainerError
from zoo.schemas import Recipe

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


def test_recipes_with_equal_fields_are_described_alike() -> None:
    assert describe_recipe(Recipe(epochs=3)) == describe_recipe(FixedRecipe(epochs=3))
    assert describe_recipe(Recipe(epochs=3)).keys() == Recipe.model_fields.keys()
