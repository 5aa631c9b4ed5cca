"""Energy of a network, metered or estimated, and never one passed off as the other.

The estimate is ``joules = a · macs + b · bytes``, both coefficients fitted to networks whose
energy was metered on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from zoo.canonical import Json
from zoo.errors import CorruptArtifactError, InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules of one call, and whether a meter said so (``nvml``, ``rapl``) or a fit."""

    joules: float
    source: str

    @property
    def measured(self) -> bool:
        return not self.source.startswith("fitted")


@dataclass(frozen=True, kw_only=True)
class EnergyModel:
    """Energy as a sum of what is computed and what is moved.

    ``fitted_to`` names the meter, ``error`` is the median relative error on the networks
    that were fitted.
    """

    joules_per_mac: float
    joules_per_byte: float
    fitted_to: str
    error: float

    @classmethod
    def fit(
        cls,
        macs: Sequence[float],
        moved_bytes: Sequence[float],
        joules: Sequence[float],
        *,
        meter: str,
    ) -> Self:
        """Fit to metered networks, least in relative error; no coefficient is negative.

        Raises:
            InvalidInputError: There are fewer than two networks, or one used no energy.
        """
        from scipy.optimize import nnls  # takes long to import

        target = np.asarray(joules, dtype=np.float64)
        design = np.c_[np.asarray(macs, np.float64), np.asarray(moved_bytes, np.float64)]
        if len(target) < 2 or len(target) != len(design) or target.min() <= 0:
            raise InvalidInputError("fit energy to two networks or more, each of above 0 joules")
        relative = design / target[:, None]
        scale = np.maximum(relative.max(axis=0), 1e-300)
        solution, _ = nnls(relative / scale, np.ones(len(target)))
        rates = solution / scale
        error = float(np.median(np.abs(design @ rates / target - 1)))
        return cls(
            joules_per_mac=float(rates[0]),
            joules_per_byte=float(rates[1]),
            fitted_to=meter,
            error=error,
        )

    def estimate(self, *, macs: float, moved_bytes: float) -> Energy:
        """Return the fitted energy of a network, marked as such."""
        joules = self.joules_per_mac * macs + self.joules_per_byte * moved_bytes
        return Energy(joules=joules, source=f"fitted to {self.fitted_to}")

    def to_json(self) -> dict[str, Json]:
        return {
            "joules_per_mac": self.joules_per_mac,
            "joules_per_byte": self.joules_per_byte,
            "fitted_to": self.fitted_to,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` gave.

        Raises:
            CorruptArtifactError: A part is missing.
        """
        try:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise CorruptArtifactError(f"an energy model lacks {error}; fit it anew") from error
