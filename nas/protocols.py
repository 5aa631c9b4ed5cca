"""The two seams of search, and the space that both stand on.

A method is a resumable stepper: its caller owns time, checkpoints and cancellation,
the method owns the mathematics. A user's own space, method or evaluator is one file
whose package registers it under the entry-point groups of ``nas.plugins``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from zoo.canonical import Json
from zoo.spec import Architecture, BlockSpec, Evaluation, TensorSpec


@runtime_checkable
class SearchSpace(Protocol):
    """What may be chosen, and how a choice becomes blocks."""

    def describe(self) -> dict[str, Json]:
        """Return ``{"name": …, "params": {…}}``, complete enough to build the space again."""

    def cardinalities(self) -> tuple[int, ...]:
        """Return the number of options of each variable of ``Architecture.choices``."""

    def size(self) -> int:
        """Return the number of architectures, equivalent ones counted apart."""

    def sample(self, rng: random.Random) -> Architecture: ...

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Return a legal architecture that differs in one decision."""

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Yield every legal architecture that differs in one decision, once."""

    def check(self, architecture: Architecture) -> None:
        """Raise ``InvalidInputError`` unless ``architecture`` belongs to this space."""

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        """Return the chain of block specs: stem, cells, head."""

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        """Return the plain network: ``zoo.builders.build_chain`` of ``blocks``.

        Maps ``(batch, *inputs.shape)`` to ``(batch, num_classes)``.
        """

    def summary(self, architecture: Architecture) -> str:
        """Return the architecture in one readable line (a genotype)."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One architecture that a step evaluated; ``evaluation`` is None if that failed."""

    architecture: Architecture
    evaluation: Evaluation | None
    feasible: bool = True
    reason: str | None = None
    arm: str = "search"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did: ``step`` of ``total`` steps are now done.

    ``metrics`` are numbers for the progress curve, e.g. ``{"loss": …, "hypervolume": …}``.
    """

    step: int
    total: int
    message: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    scored: tuple[Scored, ...] = ()

    @property
    def done(self) -> bool:
        return self.step >= self.total


class Limit(Protocol):
    """A bound on one metric; ``zoo.schemas.Limit`` is one."""

    @property
    def metric(self) -> str: ...

    @property
    def max(self) -> float | None: ...

    @property
    def min(self) -> float | None: ...


@runtime_checkable
class SearchMethod(Protocol):
    """One search algorithm, advanced one step at a time by its caller."""

    def step(self) -> StepReport:
        """Advance by one step; a step after the last one raises ``ConflictError``."""

    def best(self, k: int) -> list[Architecture]:
        """Return the ``k`` best distinct architectures so far, best first."""

    def state_dict(self) -> dict[str, Any]:
        """Return all state as nested dicts and lists of tensors, numbers, strings and None.

        A method built with the same arguments that loads it continues bit for bit on CPU.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Evaluator(Protocol):
    """Scores one architecture; deterministic in its arguments but for measured latency.

    One that looks scores up instead has a class attribute ``looks_up = True``: they are
    then kept by architecture, not by what it computes, and nothing is measured beside them.
    One whose scores vary though its arguments do not has ``noisy = True``: a search then
    takes the mean of up to ``nas.dedup.Policy.repeats`` evaluations of a function.
    """

    def describe(self) -> dict[str, Json]:
        """Return all that determines the scores (task, recipe, seed, version, device).

        It is part of the key under which an evaluation is reused.
        """

    def evaluate(self, architecture: Architecture) -> Evaluation:
        """Train and measure.

        Raises:
            TrainerError: The candidate crashed, hung or ran out of memory.
        """
