"""How well a score orders networks whose accuracy is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from zoo.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Kendall's τ (ties accounted for, τ-b), Spearman's ρ, Pearson's r: SciPy's."""

    kendall: float
    spearman: float
    pearson: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def correlations(predicted: ArrayLike, actual: ArrayLike) -> Correlation:
    """Correlate what is predicted with what is true; higher must mean better on both sides.

    Args:
        predicted: ``(n,)``, n at least 2.
        actual: ``(n,)``.

    Raises:
        InvalidInputError: The numbers are not as many, fewer than two, not finite, or all alike.
    """
    given, true = (np.asarray(values, dtype=np.float64) for values in (predicted, actual))
    if given.shape != true.shape or given.ndim != 1 or len(given) < 2:
        raise InvalidInputError(
            f"predictions {given.shape} and truth {true.shape} cannot be correlated; give two "
            "lists of as many numbers, at least two"
        )
    for what, values in (("predictions", given), ("true values", true)):
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InvalidInputError(f"entry {at} of the {what} is {values[at]}; leave it out")
    if min(float(np.ptp(given)), float(np.ptp(true))) == 0:
        raise InvalidInputError("all predictions, or all true values, are alike: no correlation")
    from scipy.stats import kendalltau, pearsonr, spearmanr  # takes long to import

    return Correlation(
        kendall=float(kendalltau(given, true).statistic),
        spearman=float(spearmanr(given, true).statistic),
        pearson=float(pearsonr(given, true).statistic),
    )


def true_rank(actual: ArrayLike, chosen: int) -> int:
    """Return the place of entry ``chosen`` by ``actual``, from 1; equal ones share the best."""
    values = np.asarray(actual, dtype=np.float64)
    return 1 + int((values > values[chosen]).sum())
