"""From scores of paths to networks: the best ones in order, within limits on cost, exactly.

A network's score is the sum of its paths' and so are its costs. Which paths a block may have,
and what they cost, depends on the interface that the block before it left. From the last
block backwards every interface gets the Pareto front of cost and score over all ways to go
on; with it the best score that the rest of a budget allows is known exactly. A best-first
search that is guided by it never takes a wrong turn: the first network that it yields is
the optimum, the next one the second best, and so on.

With limits on two costs the front of both says which ways lead on at all, and the guide is
the largest of several bounds, each the best score within one weighted sum of the costs.
What is yielded is as exact; some turns may be wrong.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nas.blockwise import Path
from zoo.errors import InfeasibleError

_BLENDS = (0.25, 0.5, 0.75)
"""Shares of the first cost in the weighted sums that guide a search within two limits."""

_SLACK = 1 + 1e-9
"""Weighted sums are rounded: a bound must not exclude what is just within both limits."""


@dataclass(frozen=True)
class Option:
    """A path of one block: its score (lower is better), cost, and the interface it leaves.

    ``second`` is another cost, if two are limited.
    """

    path: Path
    score: float
    cost: float
    interface: int
    second: float = 0.0


Options: TypeAlias = Sequence[Mapping[int, Sequence[Option]]]
"""For every block: the options after each interface; an interface may have none."""

Front: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Costs, ascending, and the best score that each allows, falling."""


def best_networks(
    options: Options,
    *,
    start: int = 0,
    limit: float = math.inf,
    second_limit: float = math.inf,
) -> Iterator[tuple[float, tuple[Path, ...]]]:
    """Yield all networks within the limits with their scores, best first.

    Networks of equal score come in the lexical order of their paths.

    Args:
        options: What every block offers.
        start: The interface before the first block.
        limit: Largest sum of costs; exact where sums of costs are (whole numbers).
        second_limit: Largest sum of second costs.

    Raises:
        InfeasibleError: No network is within the limits.
    """
    guide = _Guide(options, start, limit, second_limit)
    heap: list[tuple[float, tuple[Path, ...], float, tuple[float, float], int]] = []

    def push(
        paths: tuple[Path, ...], score: float, spent: tuple[float, float], interface: int
    ) -> None:
        left = guide.left(len(paths), interface, spent)
        if left < math.inf:
            heapq.heappush(heap, (score + left, paths, score, spent, interface))

    push((), 0.0, (0.0, 0.0), start)
    while heap:
        _, paths, score, spent, interface = heapq.heappop(heap)
        if len(paths) == len(options):
            yield score, paths
            continue
        for item in options[len(paths)].get(interface, ()):
            now = (spent[0] + item.cost, spent[1] + item.second)
            push((*paths, item.path), score + item.score, now, item.interface)


class _Guide:
    """Knows the best score of the blocks to come, or a bound of it.

    Raises:
        InfeasibleError: No network is within the limits.
    """

    def __init__(self, options: Options, start: int, limit: float, second_limit: float) -> None:
        self._limit, self._second = limit, second_limit
        self._fronts = [suffixes(options)]
        self._shares = [(1.0, 0.0, limit)]
        self._reach: list[dict[int, Front]] | None = None
        costs, _ = self._fronts[0][0].get(start, _EMPTY)
        if not len(costs):
            raise InfeasibleError("no block-wise network is legal")
        if costs[0] > limit:
            raise InfeasibleError(
                f"the smallest network costs {costs[0]:.6g}, above the limit {limit:.6g}",
                nearest={"cost": float(costs[0])},
            )
        if second_limit == math.inf:
            return
        self._reach = suffixes(options, lambda item: (item.cost, item.second))
        least = _best(self._reach[0][start], limit)
        if least > second_limit:
            raise InfeasibleError(
                f"networks that cost at most {limit:.6g} have a second cost of at least "
                f"{least:.6g}, above its limit {second_limit:.6g}",
                nearest={"cost": limit, "second": least},
            )
        shares = [(0.0, 1.0, second_limit)]
        if limit < math.inf:
            bound = limit * second_limit * _SLACK
            shares += [(blend * second_limit, (1 - blend) * limit, bound) for blend in _BLENDS]
        self._fronts += [suffixes(options, _blended(a, b)) for a, b, _ in shares]
        self._shares += shares

    def left(self, block: int, interface: int, spent: tuple[float, float]) -> float:
        """Return the score that blocks from ``block`` on add at least; infinity if none fits."""
        if self._reach is not None:
            front = self._reach[block].get(interface, _EMPTY)
            if _best(front, self._limit - spent[0]) > self._second - spent[1]:
                return math.inf
        return max(
            _best(fronts[block].get(interface, _EMPTY), limit - a * spent[0] - b * spent[1])
            for fronts, (a, b, limit) in zip(self._fronts, self._shares, strict=True)
        )


def _cost_and_score(item: Option) -> tuple[float, float]:
    return item.cost, item.score


def _blended(first: float, second: float) -> Callable[[Option], tuple[float, float]]:
    return lambda item: (first * item.cost + second * item.second, item.score)


def suffixes(
    options: Options, values: Callable[[Option], tuple[float, float]] = _cost_and_score
) -> list[dict[int, Front]]:
    """Return the fronts of cost and score from every block to the end, by interface.

    Args:
        options: What every block offers.
        values: What of an option counts as cost and as score.
    """
    ends = {item.interface for rows in options[-1].values() for item in rows}
    fronts: list[dict[int, Front]] = [{end: (np.zeros(1), np.zeros(1)) for end in ends}]
    for block in reversed(options):
        after, found = fronts[0], {}
        for interface, rows in block.items():
            parts = []
            for item in rows:
                if item.interface in after:
                    cost, score = values(item)
                    costs, scores = after[item.interface]
                    parts.append((cost + costs, score + scores))
            if parts:
                joined = (np.concatenate(column) for column in zip(*parts, strict=True))
                found[interface] = pareto(*joined)
        fronts.insert(0, found)
    return fronts


def pareto(costs: NDArray[np.float64], scores: NDArray[np.float64]) -> Front:
    """Return the points that no other has both at most the cost and at most the score of."""
    order = np.lexsort((scores, costs))
    costs, scores = costs[order], scores[order]
    best = np.minimum.accumulate(scores)
    kept = np.r_[True, scores[1:] < best[:-1]]
    return costs[kept], scores[kept]


_EMPTY: Front = (np.zeros(0), np.zeros(0))


def _best(front: Front, budget: float) -> float:
    """Return the best score of at most ``budget`` cost; infinity if there is none."""
    at = int(np.searchsorted(front[0], budget, side="right"))
    return float(front[1][at - 1]) if at else math.inf
