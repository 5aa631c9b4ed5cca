"""Local search: climb from neighbour to better neighbour, start anew on every summit.

Papers: White et al. (2021), "Exploring the Loss Landscape in Neural Architecture Search",
arXiv:2005.02960; for several objectives Paquete, Chiarandini and Stützle (2004), "Pareto
Local Optimum Sets in the Biobjective Traveling Salesman Problem".

| notation | shape | is |
|---|---|---|
| ``archive`` | (n, variables) | what this climb has reached and nothing in it dominates |
| ``queue`` | (n, variables) | neighbours of one of them still to be evaluated, in random order |

The first neighbour that enters the archive is climbed to (``query_until_lower`` of White et
al.), and what it dominates leaves. When the neighbours of one are used up, another of the
archive is taken, and when all are, a random start with an archive of its own. With one
objective the archive is where the climb stands. A feasible candidate dominates every
infeasible one, and of those the one that exceeds the limits less dominates.

Deliberate difference: what was evaluated before is never evaluated again by a climb, but
climbed to at no cost if it enters the archive.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, TypeAlias, final

from nas.methods.ranking import Ranked
from nas.methods.stepping import Sampling
from nas.plugins import MethodContext
from zoo.rng import derive_seed
from zoo.spec import Architecture

Choices: TypeAlias = tuple[int, ...]

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
        self._archive: list[Choices] = []
        self._queue: list[Choices] = []
        self._known: dict[Choices, Ranked | None] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "archive": [list(choices) for choices in self._archive],
            "queue": [list(choices) for choices in self._queue],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._archive = [tuple(choices) for choices in state["archive"]]
        self._queue = [tuple(choices) for choices in state["queue"]]
        self._known = {item.proposal: self._rank(item) for item in self._records}

    def _ask(self, seed: int) -> Choices:
        """Return the next neighbour of the queue, or the one after as many as were refused."""
        if self._queue:
            self._asked = self._queue[self._refused % len(self._queue)]
        else:
            self._asked = self._start(random.Random(seed))
        return self._asked

    def _tell(self, ranked: Ranked | None) -> None:
        rng = random.Random(derive_seed(self._context.seed, "local-search", len(self._records)))
        self._known[self._asked] = ranked
        self._queue = [item for item in self._queue if item != self._asked]
        if self._enters(self._asked):
            self._climb(self._asked, rng)
        if not self._queue:
            self._queue = self._elsewhere(rng)
        if not self._queue:
            self._archive = []

    def _forget(self) -> None:
        """Asking changes nothing."""

    def _start(self, rng: random.Random) -> Choices:
        choices = self._context.space.sample(rng).choices
        for _ in range(FRESH_STARTS):
            if choices not in self._known:
                break
            choices = self._context.space.sample(rng).choices
        return choices

    def _climb(self, to: Choices, rng: random.Random) -> None:
        """Enter ``to``, and on from it whatever known neighbours enter; queue the unknown ones."""
        while True:
            self._archive = [item for item in self._archive if not self._dominates(to, item)]
            self._archive.append(to)
            entering = [item for item in self._neighbours(to) if self._enters(item)]
            if not entering:
                break
            to = entering[0]
        self._queue = self._unknown(to, rng)

    def _elsewhere(self, rng: random.Random) -> list[Choices]:
        """Return the unknown neighbours of some other one of the archive that has any."""
        for item in rng.sample(self._archive, len(self._archive)):
            unknown = self._unknown(item, rng)
            if unknown:
                return unknown
        return []

    def _unknown(self, choices: Choices, rng: random.Random) -> list[Choices]:
        unknown = [item for item in self._neighbours(choices) if item not in self._known]
        rng.shuffle(unknown)
        return unknown

    def _neighbours(self, choices: Choices) -> list[Choices]:
        space = self._context.space
        here = Architecture(space=space.describe(), choices=choices)
        return [neighbour.choices for neighbour in space.neighbours(here)]

    def _enters(self, choices: Choices) -> bool:
        """Say whether a candidate is known, not failed, and better somewhere than each other."""
        return self._known.get(choices) is not None and not any(
            self._dominates(item, choices, equal=True) for item in self._archive
        )

    def _dominates(self, one: Choices, other: Choices, *, equal: bool = False) -> bool:
        """Say whether ``one`` is no worse in anything and better in something (or equal)."""
        a, b = self._known[one], self._known[other]
        assert a is not None
        assert b is not None
        if not (a.feasible and b.feasible):
            return a.violation < b.violation or (equal and a.violation == b.violation)
        signs = [1 if name == "maximize" else -1 for name in self._context.directions]
        gains = [s * (x - y) for s, x, y in zip(signs, a.values, b.values, strict=True)]
        return min(gains) >= 0 and (equal or max(gains) > 0)
