"""Local search: climb from neighbour to better neighbour, start anew on every summit.

Papers: White et al. (2021), "Exploring the Loss Landscape in Neural Architecture Search",
arXiv:2005.02960; Den Ottelander et al. (2021), "Local Search is a Remarkably Strong
Baseline for Neural Architecture Search", arXiv:2004.08996.

| notation | shape | is |
|---|---|---|
| ``here`` | (variables,) | where the climb stands; None before a start |
| ``queue`` | (n, variables) | neighbours of ``here`` still to be evaluated, in random order |
| ``weights`` | (objectives,) | what this climb wants, drawn uniformly from the simplex |

The first better neighbour is taken (their ``query_until_lower``). Several objectives are
made one by a weighted Chebyshev distance: the largest weighted shortfall from the best
value seen, in units of the range seen; the weights are drawn anew for every climb. With
one objective that is the objective. Feasible candidates are better than infeasible ones,
and of those the one that exceeds the limits least.

Deliberate difference: what was evaluated before is never evaluated again by a climb, but
climbed to at no cost if it is better.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from nas.methods.ranking import Ranked
from nas.methods.stepping import Sampling
from nas.plugins import MethodContext
from zoo.rng import derive_seed
from zoo.spec import Architecture

Choices: TypeAlias = tuple[int, ...]
Height: TypeAlias = Callable[[Choices], tuple[float, float]]

FRESH_STARTS = 64
"""Draws among which a start that was never evaluated is looked for."""


@final
class LocalSearch(Sampling):
    """Climbs to the first better neighbour; where there is none, starts anew at random."""

    def __init__(self, context: MethodContext, *, candidates: int = 24) -> None:
        """Stand nowhere.

        Args:
            context: Space, evaluator, objectives, limits and seed.
            candidates: Budget.
        """
        super().__init__(context, candidates)
        self._here: Choices | None = None
        self._queue: list[Choices] = []
        self._weights = [1.0] * len(context.objectives)
        self._known: dict[Choices, Ranked | None] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "here": None if self._here is None else list(self._here),
            "queue": [list(choices) for choices in self._queue],
            "weights": list(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._here = None if state["here"] is None else tuple(state["here"])
        self._queue = [tuple(choices) for choices in state["queue"]]
        self._weights = list(state["weights"])
        self._known = {item.proposal: self._rank(item) for item in self._records}

    def _ask(self, seed: int) -> Choices:
        self._asked = self._queue[0] if self._queue else self._start(random.Random(seed))
        return self._asked

    def _tell(self, ranked: Ranked | None) -> None:
        rng = random.Random(derive_seed(self._context.seed, "local-search", len(self._records)))
        self._known[self._asked] = ranked
        if self._here is None:
            drawn = [rng.expovariate(1.0) for _ in self._context.objectives]
            self._weights = [weight / sum(drawn) for weight in drawn]
        else:
            self._queue = self._queue[1:]
        if ranked is not None:
            height = self._height([*self._scored, ranked])
            if self._here is None or height(self._asked) > height(self._here):
                self._climb(self._asked, height, rng)
        if not self._queue:
            self._here = None

    def _forget(self) -> None:
        """Asking changes nothing."""

    def _start(self, rng: random.Random) -> Choices:
        choices = self._context.space.sample(rng).choices
        for _ in range(FRESH_STARTS):
            if choices not in self._known:
                break
            choices = self._context.space.sample(rng).choices
        return choices

    def _climb(self, to: Choices, height: Height, rng: random.Random) -> None:
        """Stand at ``to``, or higher where known neighbours lead; queue the unknown ones."""
        space = self._context.space
        while True:
            here = Architecture(space=space.describe(), choices=to)
            around = [neighbour.choices for neighbour in space.neighbours(here)]
            higher = [item for item in around if height(item) > height(to)]
            if not higher:
                break
            to = higher[0]
        self._here = to
        self._queue = [item for item in around if item not in self._known]
        rng.shuffle(self._queue)

    def _height(self, scored: Sequence[Ranked]) -> Height:
        """Return how good a known candidate is: feasible or not, then by what this climb wants.

        What failed or was never evaluated is below everything.
        """
        sign = np.where(np.array(self._context.directions) == "maximize", -1.0, 1.0)
        costs = np.array([item.values for item in scored if item.feasible]).reshape(-1, len(sign))
        best = costs.min(axis=0, initial=np.inf)
        worst = costs.max(axis=0, initial=-np.inf)
        scale = np.array(self._weights) / np.where(worst > best, worst - best, 1.0)

        def height(choices: Choices) -> tuple[float, float]:
            ranked = self._known.get(choices)
            if ranked is None:
                return -np.inf, -np.inf
            if not ranked.feasible:
                return -ranked.violation, -np.inf
            return 0.0, -float((scale * (np.array(ranked.values) * sign - best)).max())

        return height
