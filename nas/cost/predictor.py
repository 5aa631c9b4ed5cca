"""Latency predicted from counted features, each group of which refines the one before.

The model is additive in milliseconds: latency is a sum over what a network executes. Its
features come in groups from coarse to fine (what is counted analytically, each kind of
operation, each operation at its shape, pairs of operations), and every group is a residual
model over the coarser ones: its weights are shrunk to zero by a strength that is found
from the data (empirical Bayes), so a fine group counts only as far as the measurements
support it. Errors are relative, and measurements that are far off count less (Huber).

Source:
    MacKay (1992), "Bayesian interpolation": the fixed point for the groups' strengths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nas.cost.drift import Drift
from zoo.canonical import Json
from zoo.errors import CorruptArtifactError, InvalidInputError

Floats = NDArray[np.float64]
Features = Mapping[str, Floats]
"""Groups of features by name, coarse first; each of shape ``(networks, features)``."""

VERSION = 1
ROUNDS = 3
STEPS = 30
HUBER = 1.5
FLOOR = 0.05
"""Latencies below this share of the median weigh as if they were there."""


@dataclass(frozen=True, kw_only=True)
class LatencyPredictor:
    """A fitted additive model; ``save`` writes it as JSON, never as code.

    ``widths`` gives each group's number of features; ``centre`` and ``weights`` are over
    all of them. ``drift`` is what the measuring series was off by, known only to the
    predictor that was fitted on it, and not saved: it says nothing of another series.
    """

    widths: Mapping[str, int]
    centre: Floats
    weights: Floats
    intercept: float
    least_ms: float
    drift: Drift | None = None

    @classmethod
    def fit(
        cls,
        features: Features,
        latency_ms: Sequence[float] | Floats,
        *,
        order: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Self:
        """Fit to measured networks.

        Args:
            features: Of the measured networks.
            latency_ms: What was measured, above 0.
            order: When each was measured, as its position in the series; given, the
                series' drift is estimated and taken out of the measurements.

        Raises:
            InvalidInputError: The shapes disagree, or a latency is not above 0.
        """
        measured = np.asarray(latency_ms, dtype=np.float64)
        design, widths = _design(features, len(measured))
        if len(measured) < 2 or not np.all(np.isfinite(measured)) or measured.min() <= 0:
            raise InvalidInputError(
                "latencies must be at least two, finite and above 0 ms; leave failed ones out"
            )
        centre = design.mean(axis=0)
        columns = np.c_[np.ones(len(design)), design - centre]
        groups = np.repeat(np.arange(len(widths)), list(widths.values()))
        base = 1 / np.maximum(measured, FLOOR * np.median(measured))
        weights, clean = base, measured
        strengths = np.ones(len(widths))
        drift: Drift | None = None
        for _ in range(ROUNDS):
            solution, strengths = _solve(columns, clean, weights, groups, strengths)
            predicted = columns @ solution
            if order is not None:
                drift = Drift.fit(order, base * (measured - predicted))
                clean = measured / (1 + drift.at(order))
            off = np.abs(base * (clean - predicted))
            scale = max(1.4826 * float(np.median(off)), 1e-9)
            weights = base * np.sqrt(np.minimum(1.0, HUBER * scale / np.maximum(off, 1e-12)))
        return cls(
            widths=widths,
            centre=centre,
            weights=solution[1:],
            intercept=float(solution[0]),
            least_ms=float(measured.min()),
            drift=drift,
        )

    def predict(
        self, features: Features, *, order: Sequence[int] | NDArray[np.int64] | None = None
    ) -> Floats:
        """Return milliseconds; never less than the least that was ever measured.

        Args:
            features: The groups, of the widths, that the predictor was fitted on.
            order: Positions in the series that was fitted on: predict what was measured
                there, drift included. None predicts the network itself.

        Raises:
            InvalidInputError: Other groups or widths, or ``order`` without a fitted drift.
        """
        count = len(next(iter(features.values()), np.empty(0)))
        design, widths = _design(features, count)
        if dict(widths) != dict(self.widths):
            raise InvalidInputError(f"features are {widths}; this model has {dict(self.widths)}")
        found = np.maximum((design - self.centre) @ self.weights + self.intercept, self.least_ms)
        if order is None:
            return found
        if self.drift is None:
            raise InvalidInputError("this predictor knows of no series; fit it with order=…")
        return found * (1 + self.drift.at(order))

    def to_json(self) -> dict[str, Json]:
        return {
            "format": "blockyard.latency_predictor",
            "version": VERSION,
            "widths": dict(self.widths),
            "centre": self.centre.tolist(),
            "weights": self.weights.tolist(),
            "intercept": self.intercept,
            "least_ms": self.least_ms,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` gave.

        Raises:
            CorruptArtifactError: It is no predictor of this version, or parts are missing.
        """
        if data.get("format") != "blockyard.latency_predictor" or data.get("version") != VERSION:
            raise CorruptArtifactError(f"not a latency predictor of version {VERSION}; fit anew")
        try:
            widths = {str(name): int(width) for name, width in data["widths"].items()}
            centre, weights = (np.asarray(data[name], float) for name in ("centre", "weights"))
            if not len(centre) == len(weights) == sum(widths.values()):
                raise ValueError("the parts disagree in length")
            intercept, least_ms = (float(data[name]) for name in ("intercept", "least_ms"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptArtifactError(f"a latency predictor is damaged: {error}") from error
        return cls(
            widths=widths,
            centre=centre,
            weights=weights,
            intercept=intercept,
            least_ms=least_ms,
        )

    def save(self, path: Path) -> None:
        """Write the predictor as one JSON file."""
        path.write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a predictor.

        Raises:
            CorruptArtifactError: The file is no predictor, or damaged.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptArtifactError(f"{path} cannot be read: {error}") from error
        if not isinstance(data, dict):
            raise CorruptArtifactError(f"{path} is no latency predictor")
        return cls.from_json(data)


def _design(features: Features, count: int) -> tuple[Floats, dict[str, int]]:
    """Return all groups side by side, and their widths."""
    groups = {name: np.asarray(group, dtype=np.float64) for name, group in features.items()}
    for name, group in groups.items():
        if group.ndim != 2 or len(group) != count:
            raise InvalidInputError(
                f"features {name!r} have shape {group.shape}; they must be ({count}, features)"
            )
    if not groups:
        raise InvalidInputError("there are no features; give at least one group")
    return np.concatenate(list(groups.values()), axis=1), {
        name: group.shape[1] for name, group in groups.items()
    }


def _solve(
    columns: Floats, target: Floats, weights: Floats, groups: NDArray[np.int64], start: Floats
) -> tuple[Floats, Floats]:
    """Return weighted ridge weights and the groups' strengths, found together.

    A group's strength is the ratio of the variances of noise and of the group's weights;
    the intercept (the first column) is not shrunk.
    """
    weighted = columns * weights[:, None]
    gram, moment = weighted.T @ weighted, weighted.T @ (target * weights)
    power = float(np.sum((target * weights) ** 2))
    ceiling = 1e6 * gram[0, 0]
    strengths = start
    for _ in range(STEPS):
        penalty = np.r_[1e-9 * gram[0, 0], strengths[groups]]
        inverse = np.linalg.inv(gram + np.diag(penalty + 1e-10 * gram[0, 0]))
        solution = inverse @ moment
        spread = np.diag(inverse)[1:]
        used = np.array(
            [np.sum(groups == g) - s * spread[groups == g].sum() for g, s in enumerate(strengths)]
        )
        noise = max(power - 2 * solution @ moment + solution @ gram @ solution, 1e-12 * power)
        variance = noise / max(len(columns) - 1 - used.sum(), 1.0)
        sizes = np.array([np.sum(solution[1:][groups == g] ** 2) for g in range(len(strengths))])
        found = np.clip(
            np.maximum(used, 1e-9) * variance / np.maximum(sizes, 1e-300),
            1e-9 * gram[0, 0],
            ceiling,
        )
        settled = np.all(np.abs(np.log(found / strengths)) < 0.05)
        strengths = found
        if settled:
            break
    return solution, strengths
