"""Pareto fronts: who is not dominated, how well a front is spread, how much it covers.

Point ``p`` dominates ``q`` if it is no worse in every objective and better in one. Equal
points do not dominate each other: all copies of a point on the front are on the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.errors import InvalidInputError

Direction = Literal["maximize", "minimize"]
Points = NDArray[np.float64]


def front(points: Any, directions: Sequence[Direction]) -> NDArray[np.intp]:
    """Return the indices of the points that no other point dominates, ascending.

    One sort and one sweep for two objectives; for more, the front's size times the
    number of points.

    Args:
        points: Shape ``(n, m)``; infinite values are allowed.
        directions: ``maximize`` or ``minimize`` for each of the ``m`` objectives.

    Raises:
        InvalidInputError: A shape or direction does not fit, or a value is NaN.
    """
    costs = _costs(points, directions)
    if len(costs) == 0:
        return np.empty(0, dtype=np.intp)
    return _front_2d(costs) if costs.shape[1] == 2 else _front_any(costs)


def ranks(points: Any, directions: Sequence[Direction]) -> NDArray[np.intp]:
    """Return the rank of every point: 0 on the front, 1 on the front of the rest, and so on.

    Raises:
        InvalidInputError: As for ``front``.
    """
    costs = _costs(points, directions)
    rank = np.zeros(len(costs), dtype=np.intp)
    left = np.arange(len(costs))
    while len(left):
        chosen = front(costs[left], ["minimize"] * costs.shape[1])
        left = np.delete(left, chosen)
        rank[left] += 1
    return rank


def crowding(points: Any) -> Points:
    """Return the crowding distance of every point among ``points``: larger is lonelier.

    The sum over objectives of the gap between a point's two neighbours, in units of the
    objective's range; the ends of a range are infinitely far.

    Source:
        Deb et al. (2002), "A fast and elitist multiobjective genetic algorithm: NSGA-II".
    """
    values = np.asarray(points, dtype=np.float64)
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        low, high = column[order[0]], column[order[-1]]
        if not high > low:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / (high - low)
    return distance


def hypervolume(points: Any, reference: Any, directions: Sequence[Direction]) -> float:
    """Return the volume that the points dominate, up to ``reference``; exact for any ``m``.

    Args:
        points: Shape ``(n, m)``; points not better than the reference everywhere add nothing.
        reference: Shape ``(m,)``, finite.
        directions: ``maximize`` or ``minimize`` for each objective.

    Raises:
        InvalidInputError: A shape or direction does not fit, or a value is not finite.
    """
    corner = _costs(np.asarray(reference, dtype=np.float64)[None], directions)[0]
    costs = _costs(points, directions) if len(points) else np.empty((0, len(corner)))
    if not np.isfinite(corner).all() or not np.isfinite(costs).all():
        raise InvalidInputError("a hypervolume needs finite points and a finite reference")
    costs = costs[(costs < corner).all(axis=1)]
    return _volume(costs, corner)


def _costs(points: Any, directions: Sequence[Direction]) -> Points:
    """Return the points with every objective to be minimised."""
    values = np.asarray(points, dtype=np.float64)
    if values.size == 0:
        values = values.reshape(0, len(directions))
    if values.ndim != 2 or values.shape[1] != len(directions) or not directions:
        raise InvalidInputError(
            f"points have shape {values.shape}; give (n, {len(directions)}), one column a direction"
        )
    for direction in directions:
        if direction not in ("maximize", "minimize"):
            raise InvalidInputError(f"direction {direction!r} is neither maximize nor minimize")
    if np.isnan(values).any():
        raise InvalidInputError("a point has a NaN objective; leave failed candidates out")
    return values * np.where(np.array(directions) == "maximize", -1.0, 1.0)


def _front_2d(costs: Points) -> NDArray[np.intp]:
    """Sweep by the first cost: a point stays if its second is below all seen before it."""
    order = np.lexsort((costs[:, 1], costs[:, 0]))
    first, second = costs[order, 0], costs[order, 1]
    best_before = np.concatenate(([np.inf], np.minimum.accumulate(second)[:-1]))
    stays = second < best_before
    stays[0] = True
    # A copy of a point on the front directly follows it and stays as well.
    starts = np.concatenate(([True], (first[1:] != first[:-1]) | (second[1:] != second[:-1])))
    group = np.cumsum(starts) - 1
    return np.sort(order[stays[starts][group]])


def _front_any(costs: Points) -> NDArray[np.intp]:
    """Take the lexicographically first point, drop what it dominates, repeat."""
    left = np.lexsort(costs.T[::-1])
    chosen: list[NDArray[np.intp]] = []
    while len(left):
        point, rest = costs[left[0]], costs[left]
        copies = (rest == point).all(axis=1)
        chosen.append(left[copies])
        left = left[~copies & (rest < point).any(axis=1)]
    return np.sort(np.concatenate(chosen))


def _volume(costs: Points, corner: Points) -> float:
    """Slice along the last objective; in each slice, the volume of those that reach it."""
    if len(costs) == 0:
        return 0.0
    if costs.shape[1] == 1:
        return float(corner[0] - costs.min())
    costs = costs[front(costs, ["minimize"] * costs.shape[1])]
    if costs.shape[1] == 2:
        costs = costs[np.argsort(costs[:, 0], kind="stable")]
        above = np.concatenate(([corner[1]], costs[:-1, 1]))
        return float(((corner[0] - costs[:, 0]) * (above - costs[:, 1])).sum())
    costs = costs[np.argsort(costs[:, -1], kind="stable")]
    ends = np.concatenate((costs[1:, -1], corner[-1:]))
    depths = ends - costs[:, -1]
    return sum(
        depth * _volume(costs[: i + 1, :-1], corner[:-1]) for i, depth in enumerate(depths) if depth
    )
