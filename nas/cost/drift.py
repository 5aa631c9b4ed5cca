"""The slow and periodic error of a measuring series, told apart from what is measured.

Latencies of thousands of networks are measured one after another on a machine that warms
up, is throttled and shared. Neighbours in the series then err alike (correlations of 0.5
to 0.9 in published tables), which no property of a network explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LAGS = (1, 2, 3, 4, 5, 6, 7, 8)
WIDTHS = (3.0, 12.0, 50.0, 200.0)
CLIP = 0.02
"""Share of residuals at either end that is clipped: a hiccup must not look like drift."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A linear forecast of a measurement's relative error from the errors around it.

    ``errors`` and ``known`` are dense over positions in the series; positions that were
    not fitted on (held-back networks) are unknown and count for nothing.
    """

    errors: Floats
    known: Floats
    weights: Floats

    @classmethod
    def fit(cls, order: Sequence[int] | NDArray[np.int64], errors: Floats) -> Drift:
        """Learn how the error at a position follows from its neighbours' errors.

        Args:
            order: Position of each measurement in the series, each once.
            errors: Its relative error, ``measured / predicted - 1``.
        """
        positions = np.asarray(order, dtype=np.int64)
        low, high = np.quantile(errors, [CLIP, 1 - CLIP])
        clipped = np.clip(errors, low, high)
        dense = np.zeros(int(positions.max()) + 1)
        known = np.zeros_like(dense)
        dense[positions], known[positions] = clipped, 1.0
        around = _around(dense, known, positions)
        gram = around.T @ around
        ridge = 1e-2 * np.trace(gram) / len(gram) * np.eye(len(gram)) + 1e-300 * np.eye(len(gram))
        weights = np.linalg.solve(gram + ridge, around.T @ clipped)
        return cls(errors=dense, known=known, weights=weights)

    def at(self, order: Sequence[int] | NDArray[np.int64]) -> Floats:
        """Return the relative error forecast at positions, from other positions only."""
        return _around(self.errors, self.known, np.asarray(order, dtype=np.int64)) @ self.weights


def _around(errors: Floats, known: Floats, positions: NDArray[np.int64]) -> Floats:
    """Return each position's neighbours: sums at single lags, and means at several widths.

    A position's own error is never among them.
    """
    size = max(len(errors), int(positions.max(initial=0)) + 1)
    errors, known = (np.pad(values, (0, size - len(values))) for values in (errors, known))
    columns = []
    for lag in LAGS:
        padded = np.pad(errors, lag)
        columns.append(padded[: -2 * lag] + padded[2 * lag :])
    for width in WIDTHS:
        reach = int(3 * width)
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
        kernel[reach] = 0.0
        total, weight = (_smooth(values, kernel) for values in (errors, known))
        columns.append(total / (weight + 0.3))
    return np.stack(columns, axis=1)[positions]


def _smooth(values: Floats, kernel: Floats) -> Floats:
    reach = len(kernel) // 2
    return np.convolve(values, kernel, mode="full")[reach : reach + len(values)]
