"""How good predicted costs are, in the terms of the field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from zoo.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Agreement of predictions with measurements of the same networks.

    ``within_5_percent``, ``within_10_percent`` and ``within_15_percent`` are shares of
    networks, ``rmse`` is in the unit of the measurements, ``rmspe`` relative to each;
    ``spearman`` is NaN where either side does not vary.
    """

    within_5_percent: float
    within_10_percent: float
    within_15_percent: float
    rmse: float
    rmspe: float
    spearman: float

    @classmethod
    def of(cls, measured: ArrayLike, predicted: ArrayLike) -> Self:
        """Compare predictions with measurements.

        Raises:
            InvalidInputError: Their numbers differ, there are fewer than two, or one
                measurement is not above 0.
        """
        real, guess = (np.asarray(values, dtype=np.float64) for values in (measured, predicted))
        if real.ndim != 1 or real.shape != guess.shape or len(real) < 2 or real.min() <= 0:
            raise InvalidInputError(
                f"measurements of shape {real.shape} and predictions of shape {guess.shape}; "
                "give at least two of each, all measurements above 0"
            )
        from scipy.stats import spearmanr  # takes long to import

        off = guess / real - 1
        within = [float(np.mean(np.abs(off) <= share)) for share in (0.05, 0.10, 0.15)]
        varies = np.ptp(real) > 0 and np.ptp(guess) > 0
        return cls(
            within_5_percent=within[0],
            within_10_percent=within[1],
            within_15_percent=within[2],
            rmse=float(np.sqrt(np.mean((guess - real) ** 2))),
            rmspe=float(np.sqrt(np.mean(off**2))),
            spearman=float(spearmanr(real, guess).statistic) if varies else math.nan,
        )
