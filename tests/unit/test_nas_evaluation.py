"""What the training evaluator reports, and what makes two evaluations the same one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from nas.data import DataSet, load_dataset
from nas.evaluation import (
    EvaluatorContext,
    Latency,
    TrainingEvaluator,
    fresh_network,
    train_and_score,
)
from nas.protocols import Evaluator
from nas.spaces.darts import DartsSpace
from nas.training import FixedRecipe
from zoo.canonical import canonical_json
from zoo.errors import TrainerError
from zoo.spec import METRICS, Architecture

SPACE = DartsSpace(cells=1, channels=2, nodes=1, ops=("skip_connect", "max_pool_3x3"))
ARCHITECTURE = SPACE.sample(random.Random(0))
RECIPE = FixedRecipe(epochs=1, batch_size=128)
CPU = torch.device("cpu")


COMPUTED = METRICS.keys() - {"training_energy_kwh"}


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_dataset("digits", root=None, seed=0)


def measure(architecture: Architecture) -> Latency:
    return Latency(median_ms=2.0, p95_ms=3.0, device="d1")


def test_an_evaluation_has_every_metric_there_is(data: DataSet) -> None:
    ticks = iter([1.0, 6.0])
    context = EvaluatorContext(
        space=SPACE, data=data, recipe=RECIPE, measure=measure, clock=lambda: next(ticks)
    )
    evaluator = TrainingEvaluator(context)
    assert isinstance(evaluator, Evaluator)
    evaluation = evaluator.evaluate(ARCHITECTURE)
    assert set(evaluation.metrics) == COMPUTED | {"latency_p95_ms"}
    assert evaluation.metrics["latency_ms"] == 2.0
    assert evaluation.metrics["latency_p95_ms"] == 3.0
    assert 0 < evaluation.metrics["accuracy"] <= 1
    assert evaluation.cost_s == 5.0
    assert evaluation.device == "d1"


def test_without_a_measure_there_is_no_latency(data: DataSet) -> None:
    evaluator = TrainingEvaluator(EvaluatorContext(space=SPACE, data=data, recipe=RECIPE))
    evaluation = evaluator.evaluate(ARCHITECTURE)
    assert set(evaluation.metrics) == COMPUTED - {"latency_ms"}
    assert evaluation.device is None


def test_scores_are_a_function_of_the_arguments(data: DataSet) -> None:
    def scores(seed: int) -> dict[str, float]:
        torch.rand(1)
        return train_and_score(SPACE, ARCHITECTURE, data, RECIPE, seed=seed, device=CPU)

    assert scores(1) == scores(1)
    assert scores(1) != scores(2)


def test_fresh_weights_are_a_function_of_the_seed(data: DataSet) -> None:
    first, second, other = (
        fresh_network(SPACE, ARCHITECTURE, data, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_the_description_changes_with_all_that_determines_scores(data: DataSet) -> None:
    context = EvaluatorContext(space=SPACE, data=data, recipe=RECIPE)
    others = [
        replace(context, seed=1),
        replace(context, recipe=replace(RECIPE, lr=0.1)),
        replace(context, data=load_dataset("digits", root=None, seed=1)),
        replace(context, target="d1/torch/1"),
    ]
    described = [canonical_json(TrainingEvaluator(item).describe()) for item in (context, *others)]
    assert len(set(described)) == len(described)
    assert described[0] == canonical_json(TrainingEvaluator(replace(context)).describe())


def test_a_stopped_training_is_no_evaluation(data: DataSet) -> None:
    with pytest.raises(TrainerError, match="stopped"):
        train_and_score(
            SPACE, ARCHITECTURE, data, RECIPE, seed=0, device=CPU, should_stop=lambda: True
        )
