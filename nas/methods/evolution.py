"""Regularised evolution: mutate the winner of a tournament, let the oldest die.

Paper: Real et al. (2019), "Regularized Evolution for Image Classifier Architecture Search",
arXiv:1802.01548.

| notation | is |
|---|---|
| ``population`` | the ``population`` youngest candidates that did not fail (P) |
| ``tournament`` | candidates drawn from it, with replacement (S) |

Deliberate differences: with several objectives the parent is drawn from the tournament's
Pareto front, which for one objective is its best; within limits, feasible candidates win
over infeasible ones, and of those the one that exceeds the limits least. The default
population is small where the budget is.
"""

from __future__ import annotations

import random
from typing import final

import numpy as np

from nas.methods.ranking import Ranked
from nas.methods.stepping import Sampling
from nas.pareto import front
from nas.plugins import MethodContext
from zoo.errors import InvalidInputError


@final
class RegularizedEvolution(Sampling):
    """Mutates the best of a random few; a candidate leaves the population by age alone."""

    def __init__(
        self,
        context: MethodContext,
        *,
        candidates: int = 24,
        population: int | None = None,
        tournament: int | None = None,
    ) -> None:
        """Start with an empty population.

        Args:
            context: Space, evaluator, objectives, limits and seed.
            candidates: Budget, duplicates included.
            population: Candidates alive; if None, a tenth of the budget, a quarter with
                several objectives, from 4 to 100.
            tournament: Candidates of whom the best is mutated; if None, a quarter of the
                population, half of it with several objectives, from 2 to 10.

        Raises:
            InvalidInputError: A number is below 1.
        """
        super().__init__(context, candidates)
        alive, drawn = (10, 4) if len(context.objectives) == 1 else (4, 2)
        self._population = population or min(100, max(4, candidates // alive))
        self._tournament = tournament or min(10, max(2, self._population // drawn))
        for name, value in (("population", population), ("tournament", tournament)):
            if value is not None and (isinstance(value, bool) or value < 1):
                raise InvalidInputError(f"{name} is {value!r}; it must be an integer >= 1")

    def _ask(self, seed: int) -> tuple[int, ...]:
        rng = random.Random(seed)
        space = self._context.space
        if len(self._scored) < self._population:
            return space.sample(rng).choices
        alive = self._scored[-self._population :]
        drawn = [rng.choice(alive) for _ in range(self._tournament)]
        return space.mutate(self._winner(drawn, rng).architecture, rng).choices

    def _tell(self, ranked: Ranked | None) -> None:
        """The history is the state."""

    def _forget(self) -> None:
        """Nothing was kept."""

    def _winner(self, drawn: list[Ranked], rng: random.Random) -> Ranked:
        feasible = [item for item in drawn if item.feasible]
        if not feasible:
            return min(drawn, key=lambda item: item.violation)
        points = np.array([item.values for item in feasible])
        return feasible[int(rng.choice(front(points, self._context.directions)))]
