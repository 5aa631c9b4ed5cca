"""From scores of paths to networks: the best ones in order, within a limit on cost, exactly.

A network's score is the sum of its paths' and so is its cost. Which paths a block may have,
and what they cost, depends on the interface that the block before it left. From the last
block backwards every interface gets the Pareto front of cost and score over all ways to go
on; with it the best score that the rest of a budget allows is known exactly. A best-first
search that is guided by it never takes a wrong turn: the first network that it yields is
the optimum, the next one the second best, and so on.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nas.blockwise import Path
from zoo.errors import InfeasibleError


@dataclass(frozen=True)
class Option:
    """A path of one block: its score (lower is better), cost, and the interface it leaves."""

    path: Path
    score: float
    cost: float
    interface: int


Options: TypeAlias = Sequence[Mapping[int, Sequence[Option]]]
"""For every block: the options after each interface; an interface may have none."""

Front: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Costs, ascending, and the best score that each allows, falling."""


def best_networks(
    options: Options, *, start: int = 0, limit: float = math.inf
) -> Iterator[tuple[float, tuple[Path, ...]]]:
    """Yield all networks of at most ``limit`` cost with their scores, best first.

    Networks of equal score come in the lexical order of their paths.

    Args:
        options: What every block offers.
        start: The interface before the first block.
        limit: Largest sum of costs; exact where sums of costs are (whole numbers).

    Raises:
        InfeasibleError: No network is within the limit.
    """
    fronts = suffixes(options)
    costs, _ = fronts[0].get(start, _EMPTY)
    if not len(costs):
        raise InfeasibleError("no block-wise network is legal")
    if costs[0] > limit:
        raise InfeasibleError(
            f"the smallest network costs {costs[0]:.6g}, above the limit {limit:.6g}",
            nearest={"cost": float(costs[0])},
        )
    heap: list[tuple[float, tuple[Path, ...], float, float, int]] = []

    def push(paths: tuple[Path, ...], score: float, cost: float, interface: int) -> None:
        left = _best(fronts[len(paths)].get(interface, _EMPTY), limit - cost)
        if left < math.inf:
            heapq.heappush(heap, (score + left, paths, score, cost, interface))

    push((), 0.0, 0.0, start)
    while heap:
        _, paths, score, cost, interface = heapq.heappop(heap)
        if len(paths) == len(options):
            yield score, paths
            continue
        for item in options[len(paths)].get(interface, ()):
            push((*paths, item.path), score + item.score, cost + item.cost, item.interface)


def suffixes(options: Options) -> list[dict[int, Front]]:
    """Return the fronts of cost and score from every block to the end, by interface."""
    ends = {item.interface for rows in options[-1].values() for item in rows}
    fronts: list[dict[int, Front]] = [{end: (np.zeros(1), np.zeros(1)) for end in ends}]
    for block in reversed(options):
        after, found = fronts[0], {}
        for interface, rows in block.items():
            parts = [
                (item.cost + after[item.interface][0], item.score + after[item.interface][1])
                for item in rows
                if item.interface in after
            ]
            if parts:
                costs, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
                found[interface] = pareto(costs, scores)
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
