"""A search method of one's own: climb to the best neighbour, start anew when stuck."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from nas.plugins import MethodContext
from nas.protocols import Scored, StepReport
from zoo.errors import ConflictError, InvalidInputError, TrainerError
from zoo.rng import derive_seed
from zoo.spec import Architecture, Evaluation


class HillClimber:
    """Climbs one random neighbour at a time in the first objective.

    Args:
        context: Space, evaluator, objectives and seed; other objectives and limits are
            reported, not searched for.
        candidates: Budget.
        patience: Neighbours that may disappoint before a fresh start.

    Raises:
        InvalidInputError: There is no evaluator, or a number is below 1.
    """

    trains = False

    def __init__(self, context: MethodContext, *, candidates: int = 24, patience: int = 6) -> None:
        if context.evaluator is None:
            raise InvalidInputError("a hill climber needs an evaluator")
        if candidates < 1 or patience < 1:
            raise InvalidInputError(f"candidates {candidates} and patience {patience} must be >= 1")
        self._context = context
        self._evaluator = context.evaluator
        self._candidates = candidates
        self._patience = patience
        self._seen: list[tuple[Architecture, float]] = []
        self._here: tuple[Architecture, float] | None = None
        self._disappointed = 0
        self._done = 0

    def step(self) -> StepReport:
        if self._done >= self._candidates:
            raise ConflictError(f"all {self._candidates} candidates are evaluated already")
        rng = random.Random(derive_seed(self._context.seed, "hill-climber", self._done))
        space = self._context.space
        architecture = (
            space.mutate(self._here[0], rng) if self._here is not None else space.sample(rng)
        )
        evaluation, reason = None, None
        try:
            evaluation = self._evaluator.evaluate(architecture)
        except TrainerError as error:
            reason = str(error)
        self._done += 1
        self._learn(architecture, evaluation)
        return StepReport(
            step=self._done,
            total=self._candidates,
            message=f"candidate {self._done}: {space.summary(architecture)}",
            metrics={"best": max((score for _, score in self._seen), default=0.0)},
            scored=(Scored(architecture=architecture, evaluation=evaluation, reason=reason),),
        )

    def best(self, k: int) -> list[Architecture]:
        ordered = sorted(self._seen, key=lambda pair: -pair[1])
        distinct = {architecture.id: architecture for architecture, _ in ordered}
        return list(distinct.values())[:k]

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen": [[list(arch.choices), score] for arch, score in self._seen],
            "here": None if self._here is None else [list(self._here[0].choices), self._here[1]],
            "disappointed": self._disappointed,
            "done": self._done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        def pair(item: list[Any]) -> tuple[Architecture, float]:
            space = self._context.space.describe()
            return Architecture(space=space, choices=tuple(item[0])), item[1]

        self._seen = [pair(item) for item in state["seen"]]
        self._here = None if state["here"] is None else pair(state["here"])
        self._disappointed = state["disappointed"]
        self._done = state["done"]

    def _learn(self, architecture: Architecture, evaluation: Evaluation | None) -> None:
        if evaluation is None:
            return
        sign = 1.0 if self._context.directions[0] == "maximize" else -1.0
        score = sign * evaluation.metrics[self._context.objectives[0]]
        self._seen.append((architecture, score))
        if self._here is None or score > self._here[1]:
            self._here, self._disappointed = (architecture, score), 0
            return
        self._disappointed += 1
        if self._disappointed >= self._patience:
            self._here, self._disappointed = None, 0
