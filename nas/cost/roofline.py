"""Latency from first principles: arithmetic or memory, whichever takes longer, and a launch.

``ms = Σ max(macs / peak, bytes / bandwidth) + launch``, over the operations executed.

Source:
    Williams et al. (2009), "Roofline: an insightful visual performance model".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from nas.cost.operations import Operation
from nas.cost.table import LatencyTable
from zoo.errors import InvalidInputError

ROUNDS = 25


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A device in three numbers.

    ``macs_per_ms`` and ``bytes_per_ms`` are what it sustains (infinite where no measured
    operation was held up by it), ``launch_ms`` what every
    operation costs before it computes anything.
    """

    macs_per_ms: float
    bytes_per_ms: float
    launch_ms: float

    def __post_init__(self) -> None:
        if self.macs_per_ms <= 0 or self.bytes_per_ms <= 0 or self.launch_ms < 0:
            raise InvalidInputError(
                f"rates {self.macs_per_ms:g} and {self.bytes_per_ms:g} must be above 0, "
                f"and the launch, {self.launch_ms:g} ms, not below"
            )

    def latency_ms(self, operations: Iterable[Operation]) -> float:
        """Return the latency of operations executed one after another."""
        return sum(self._one(item.macs, item.moved_bytes) for item in operations)

    @classmethod
    def fit(cls, table: LatencyTable) -> Self:
        """Find the three numbers from a device's table, least in relative error.

        Which of the two roofs an operation touches and how high the roofs are is settled
        in turns.

        Raises:
            InvalidInputError: No operation of the table says what it computes and moves.
        """
        known = [item for item in table.entries.values() if item.moved_bytes and item.median_ms > 0]
        if len(known) < 3:
            raise InvalidInputError(
                f"only {len(known)} operations of the table say what they move; "
                "a roofline needs three: build the table here instead of importing it"
            )
        macs, moved, measured = (
            np.asarray([getattr(item, name) for item in known], dtype=np.float64)
            for name in ("macs", "moved_bytes", "median_ms")
        )
        computing = macs / moved > np.median((macs / moved)[macs > 0]) if macs.any() else macs > 0
        rates = np.zeros(3)
        for _ in range(ROUNDS):
            design = np.c_[macs * computing, moved * ~computing, np.ones(len(known))]
            rates = _not_negative(design / measured[:, None], np.ones(len(known)))
            settled = macs * rates[0] >= moved * rates[1]
            if np.array_equal(settled, computing):
                break
            computing = settled
        macs_per_ms, bytes_per_ms = (_rate(each) for each in rates[:2])
        return cls(macs_per_ms=macs_per_ms, bytes_per_ms=bytes_per_ms, launch_ms=float(rates[2]))

    def _one(self, macs: int, moved_bytes: int) -> float:
        return max(macs / self.macs_per_ms, moved_bytes / self.bytes_per_ms) + self.launch_ms


def _rate(each: float) -> float:
    """Return how much is done in a millisecond, given what one unit takes."""
    return 1 / float(each) if each > 0 else math.inf


def _not_negative(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the least-squares solution without negative entries."""
    from scipy.optimize import nnls  # takes long to import

    scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
    solution, _ = nnls(design / scale, target)
    return solution / scale
