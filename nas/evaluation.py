"""Scores of one architecture: accuracy after a short training, counted and measured cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.cost.analytic import cost
from nas.data import DataSet
from nas.protocols import SearchSpace
from nas.training import Keep, Progress, Recipe, describe_recipe, train
from zoo.canonical import Json
from zoo.errors import TrainerError
from zoo.rng import derive_seed
from zoo.spec import Architecture, Evaluation

VERSION = 1
"""Raised whenever training or counting would give other numbers for the same arguments."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measured time of one call: median and 95th percentile, and on which device (its id)."""

    median_ms: float
    p95_ms: float
    device: str


Measure = Callable[[Architecture], Latency]
"""Measures an untrained architecture where the job wants it to run."""


@dataclass(frozen=True, kw_only=True)
class EvaluatorContext:
    """What an evaluator is given beside its own parameters, one for all candidates.

    ``recipe`` is the training budget and ``device`` where to spend it. ``measure`` says
    where and how latency is measured (None: somebody else adds it), ``target`` names
    that (device, runtime, batch) for the evaluation's identity. ``progress`` hears of
    every epoch; ``clock`` gives seconds that only go forward. ``data_root`` is the folder
    of data files, if there is one. ``resume`` and ``keep`` are those of ``nas.training.train``
    for the one candidate that is evaluated next; an evaluator may leave them alone.
    """

    space: SearchSpace
    data: DataSet
    recipe: Recipe
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    measure: Measure | None = None
    target: str = ""
    progress: Progress | None = None
    clock: Callable[[], float] = time.monotonic
    data_root: Path | None = None
    resume: Mapping[str, Any] | None = None
    keep: Keep | None = None


class TrainingEvaluator:
    """Trains an architecture for a fixed budget, scores it, counts and measures its cost.

    Metrics: ``accuracy`` on the validation split, ``flops``, ``num_params``,
    ``size_bytes``, ``peak_bytes`` and, if there is a ``measure``, ``latency_ms`` and
    ``latency_p95_ms``. Every candidate starts from the same seed, so that equal networks
    score equally.
    """

    def __init__(self, context: EvaluatorContext) -> None:
        self._context = context
        self._data = context.data.to(context.device)

    @property
    def noisy(self) -> bool:
        """Whether equal trainings may differ: sums on a GPU have no fixed order."""
        return self._context.device.type != "cpu"

    def describe(self) -> dict[str, Json]:
        context = self._context
        described = describe(context.data, context.recipe, seed=context.seed, device=context.device)
        return described | {"target": context.target}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        context = self._context
        started = context.clock()
        metrics = train_and_score(
            context.space,
            architecture,
            self._data,
            context.recipe,
            seed=context.seed,
            device=context.device,
            progress=context.progress,
            resume=context.resume,
            keep=context.keep,
        )
        device = None
        if context.measure is not None:
            latency = context.measure(architecture)
            metrics |= {"latency_ms": latency.median_ms, "latency_p95_ms": latency.p95_ms}
            device = latency.device
        return Evaluation(metrics=metrics, cost_s=context.clock() - started, device=device)


def describe(data: DataSet, recipe: Recipe, *, seed: int, device: torch.device) -> dict[str, Json]:
    """Return all that determines the scores of ``train_and_score``, for keys of evaluations."""
    return {
        "evaluator": "training",
        "version": VERSION,
        "data": data.digest,
        "recipe": describe_recipe(recipe),
        "seed": seed,
        "device": device.type,
    }


def fresh_network(
    space: SearchSpace, architecture: Architecture, data: DataSet, *, seed: int
) -> nn.Module:
    """Build the network of an architecture; its weights are a function of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return space.build(architecture, inputs=data.inputs, num_classes=data.num_classes)


def train_and_score(
    space: SearchSpace,
    architecture: Architecture,
    data: DataSet,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: Mapping[str, Any] | None = None,
    keep: Keep | None = None,
) -> dict[str, float]:
    """Train a fresh network and return all metrics but latency.

    Returns:
        ``accuracy`` on the validation split, ``flops``, ``num_params``, ``size_bytes``
        and ``peak_bytes``.

    Raises:
        TrainerError: The loss is not finite, memory ran out, or ``should_stop`` said so.
    """
    module = fresh_network(space, architecture, data, seed=seed)
    counted = cost(module, data.inputs).metrics()
    result = train(
        module,
        data,
        recipe,
        device=device,
        seed=seed,
        progress=progress,
        should_stop=should_stop,
        resume=resume,
        keep=keep,
    )
    if not result.completed:
        raise TrainerError("training was stopped before its budget was spent")
    return {"accuracy": result.metrics["accuracy"]} | counted
