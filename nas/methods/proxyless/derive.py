"""Derivation: the likeliest networks, and the likeliest one within a cap, exactly.

A network's score is the sum over blocks of its operations' log-probabilities.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.methods.proxyless.costs import CostTable
from zoo.errors import InfeasibleError

Rows = Sequence[Sequence[float]]
"""One row of log-probabilities a block, of as many operations as it has."""

Choices = tuple[int, ...]

SHRINKING = 8
"""Networks of falling cost that ``within`` offers after the best one."""


def likeliest(scores: Rows) -> Iterator[Choices]:
    """Yield all choices from the likeliest on; of equal operations the first comes first."""
    orders = [sorted(range(len(row)), key=lambda op: -row[op]) for row in scores]
    start = (0,) * len(scores)
    seen = {start}
    heap = [(0.0, start)]
    while heap:
        loss, ranks = heapq.heappop(heap)
        yield tuple(order[rank] for order, rank in zip(orders, ranks, strict=True))
        for at, (row, order) in enumerate(zip(scores, orders, strict=True)):
            rank = ranks[at] + 1
            if rank < len(order):
                further = (*ranks[:at], rank, *ranks[at + 1 :])
                if further not in seen:
                    seen.add(further)
                    heapq.heappush(heap, (loss + row[order[rank - 1]] - row[order[rank]], further))


def smallest(table: CostTable, scores: Rows) -> Choices:
    """Return the network of least cost; of equal ones the likelier."""
    return tuple(
        min(range(len(row)), key=lambda op: (costs[op], -row[op], op))
        for row, costs in zip(scores, table.ops.tolist(), strict=True)
    )


def best_within(scores: Rows, table: CostTable, cap: float) -> Choices:
    """Return the likeliest network whose cost is at most ``cap``: the exact optimum.

    A choice of one operation a block under one sum is a knapsack; it is solved block by
    block over the set of partial networks that none dominates (cheaper and likelier),
    without those that a Lagrangian bound proves to miss the best one known.

    Raises:
        InfeasibleError: Even the smallest network costs more.
    """
    least = smallest(table, scores)
    if table.total(least) > cap:
        raise InfeasibleError(
            f"the smallest network costs {table.total(least):.6g}, above the cap {cap:.6g}",
            nearest={"choices": list(least), "cost": table.total(least)},
        )
    unbound = next(likeliest(scores))
    if table.total(unbound) <= cap:
        return unbound
    return _Knapsack(scores, table, cap, least).solve()


def within(scores: Rows, table: CostTable, cap: float) -> Iterator[Choices]:
    """Yield distinct networks within ``cap``: the likeliest, then some of falling cost, then all.

    The second part ends with the smallest network of the space, so that one who measures
    them in turn has tried everything before saying that the cap cannot be met.

    Raises:
        InfeasibleError: Even the smallest network costs more.
    """
    best = best_within(scores, table, cap)
    least = smallest(table, scores)
    seen = {best}
    yield best
    top, bottom = table.total(best), table.total(least)
    for part in range(SHRINKING - 1, 0, -1):
        found = best_within(scores, table, bottom + (top - bottom) * part / SHRINKING)
        if found not in seen:
            seen.add(found)
            yield found
    for choices in (least, *likeliest(scores)):
        if choices not in seen and table.total(choices) <= cap:
            seen.add(choices)
            yield choices


class _Knapsack:
    """Dynamic programming over blocks, forwards, with all partial networks as arrays."""

    def __init__(self, scores: Rows, table: CostTable, cap: float, least: Choices) -> None:
        self._scores = [np.asarray(row, dtype=np.float64) for row in scores]
        costs = table.ops.tolist()
        self._costs = [
            np.asarray(row[: len(score)], dtype=np.float64)
            for row, score in zip(costs, self._scores, strict=True)
        ]
        self._budget = cap - table.fixed
        self._table, self._cap = table, cap
        self._multiplier, self._incumbent = self._relax(least)
        # Rounding of sums of a hundred terms; never prunes what is better by more.
        self._slack = 1e-9 * (1 + abs(self._value(self._incumbent)))

    def solve(self) -> Choices:
        costs, scores = np.zeros(1), np.zeros(1)
        trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        floor = self._suffix(None)
        bounds = [(value, self._suffix(value)) for value in self._multipliers()]
        worst = self._value(self._incumbent) - self._slack
        for at, (block_costs, block_scores) in enumerate(
            zip(self._costs, self._scores, strict=True)
        ):
            grown = (costs[:, None] + block_costs).ravel()
            value = (scores[:, None] + block_scores).ravel()
            keep = grown - floor[at + 1] <= self._budget + self._slack
            for multiplier, suffix in bounds:
                bound = value + suffix[at + 1] + multiplier * (self._budget - grown)
                keep &= bound >= worst
            kept = np.flatnonzero(keep)
            kept = kept[np.lexsort((-value[kept], grown[kept]))]
            best = np.maximum.accumulate(value[kept])
            kept = kept[np.r_[True, value[kept][1:] > best[:-1]]] if len(kept) else kept
            trail.append((kept // len(block_costs), kept % len(block_costs)))
            costs, scores = grown[kept], value[kept]
        return self._read(costs, scores, trail)

    def _read(
        self,
        costs: NDArray[np.float64],
        scores: NDArray[np.float64],
        trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> Choices:
        """Follow the likeliest end back; its cost is checked by the table's own sum."""
        for end in np.argsort(-scores, kind="stable"):
            at, choices = int(end), []
            for parents, ops in reversed(trail):
                choices.append(int(ops[at]))
                at = int(parents[at])
            found = tuple(reversed(choices))
            if self._table.total(found) <= self._cap:
                return max(found, self._incumbent, key=self._value)
        return self._incumbent

    def _relax(self, least: Choices) -> tuple[float, Choices]:
        """Find by bisection the price of cost at which the relaxed optimum just fits."""
        low, high, fitting = 0.0, 1.0, least
        while self._table.total(self._priced(high)) > self._cap and high < 1e18:
            high *= 4
        for _ in range(80):
            middle = (low + high) / 2
            choices = self._priced(middle)
            if self._table.total(choices) <= self._cap:
                high = middle
                fitting = max(fitting, choices, key=self._value)
            else:
                low = middle
        return high, fitting

    def _priced(self, price: float) -> Choices:
        pairs = zip(self._scores, self._costs, strict=True)
        return tuple(int(np.argmax(score - price * cost)) for score, cost in pairs)

    def _value(self, choices: Choices) -> float:
        return float(sum(row[op] for row, op in zip(self._scores, choices, strict=True)))

    def _multipliers(self) -> tuple[float, ...]:
        return (0.0, *(self._multiplier * factor for factor in (0.5, 0.8, 0.95, 1.0, 1.1, 1.5)))

    def _suffix(self, price: float | None) -> NDArray[np.float64]:
        """Return the best of score less priced cost over the blocks from each one on.

        Without a price it is minus the least that those blocks cost.
        """
        best = [
            -cost.min() if price is None else (score - price * cost).max()
            for score, cost in zip(self._scores, self._costs, strict=True)
        ]
        return np.concatenate([np.cumsum(best[::-1])[::-1], [0.0]])
