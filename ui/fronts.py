"""Pareto fronts and hypervolumes of two metrics, in time that sorting needs.

The command line and the pages draw fronts of whatever two axes a user picks, without
importing the search half (and with it torch).
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def costs(values: ArrayLike, direction: str) -> Floats:
    """Return ``values`` such that smaller is better, whatever ``direction`` says."""
    array = np.asarray(values, dtype=np.float64)
    return -array if direction == "maximize" else array


def front(first: Floats, second: Floats) -> NDArray[np.intp]:
    """Return the indices of the points that no other point dominates, along ``first``.

    Args:
        first: Shape ``(points,)``; smaller is better.
        second: Shape ``(points,)``; smaller is better.

    Returns:
        Indices in ascending order of ``first``; of equal points only the earliest.
    """
    order = np.lexsort((np.arange(first.size), second, first))
    ranked = second[order]
    best_before = np.concatenate(([np.inf], np.minimum.accumulate(ranked)[:-1]))
    return order[ranked < best_before]


Box = tuple[tuple[float, float], tuple[float, float]]
"""The least and the greatest value of each of two objectives."""


def box_of(first: Floats, second: Floats) -> Box:
    """Return the box around points; curves are comparable only within one box."""
    return (float(first.min()), float(first.max())), (float(second.min()), float(second.max()))


def hypervolume_curve(first: Floats, second: Floats, box: Box) -> Floats:
    """Return after each point the share of ``box`` that is dominated by the points so far.

    Args:
        first: Shape ``(points,)`` in order of arrival; smaller is better.
        second: Shape ``(points,)``; smaller is better.
        box: Holds every point.
    """
    a = _unit(first, *box[0])
    b = _unit(second, *box[1])
    xs: list[float] = []
    ys: list[float] = []
    area = 0.0
    curve = np.empty(first.size)
    for index in range(first.size):
        area += _insert(xs, ys, float(a[index]), float(b[index]))
        curve[index] = area
    return curve


def _unit(values: Floats, low: float, high: float) -> Floats:
    return (values - low) / (high - low) if high > low else np.zeros(values.size)


def _insert(xs: list[float], ys: list[float], x: float, y: float) -> float:
    """Add a point to the staircase ``xs`` ascending, ``ys`` descending; return the area won."""
    start = bisect_left(xs, x)
    if (start > 0 and ys[start - 1] <= y) or (
        start < len(xs) and xs[start] == x and ys[start] <= y
    ):
        return 0.0
    ceiling = ys[start - 1] if start > 0 else 1.0
    left, won, end = x, 0.0, start
    while end < len(xs) and ys[end] >= y:
        won += (xs[end] - left) * (ceiling - y)
        left, ceiling = xs[end], ys[end]
        end += 1
    right = xs[end] if end < len(xs) else 1.0
    won += (right - left) * (ceiling - y)
    xs[start:end] = [x]
    ys[start:end] = [y]
    return won
