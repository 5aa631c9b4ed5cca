"""What makes a functional hash trustworthy: neighbours of its buckets, and proof of a hit.

A hash cuts numbers into buckets, and two roundings of one number may straddle an edge.
``Signature.alternates`` are the hashes with such numbers in the bucket next door; whoever
looks a signature up looks for those too. A hit is then confirmed: both sides have a
``Proof``, numbers from other probes than those of the hash, and these are compared by
their distance, which knows no buckets, at more bits than the hash has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zoo.canonical import Json
from zoo.errors import InvalidInputError

CONFIRMED_BITS = 34
"""Two proofs agree if they differ by at most ``2 ** -CONFIRMED_BITS`` of their largest value."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A functional hash, and the hashes that rounding may have turned it into."""

    key: str
    alternates: tuple[str, ...] = ()

    def among(self, known: Collection[str]) -> str:
        """Return the one of ``known`` that this is, or ``key`` if it is none of them."""
        return next((key for key in (self.key, *self.alternates) if key in known), self.key)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The outcome of a comparison, kept with what was reused on its strength.

    ``deviation`` is the largest difference as a part of the largest value; None where the
    two cannot be compared. ``probe`` is the digest of the probe set, ``bits`` the precision.
    """

    confirmed: bool
    probe: str
    bits: int
    deviation: float | None
    reason: str = ""

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Numbers that confirm or refute that two functions are one.

    Args:
        probe: Digest of the probes, their seeds and the version of the procedure.
        values: Projections of outputs and gradients; not finite where those are not.
        learns_constant: Something normalised is always zero here, but its learned offset is
            not: networks of this hash may differ once trained.
        diverges: Training on the probes left something that is not finite, which says little
            of what the network learns elsewhere.
    """

    probe: str
    values: tuple[float, ...]
    learns_constant: bool = False
    diverges: bool = False

    def compare(self, other: Proof, *, bits: int = CONFIRMED_BITS) -> Certificate:
        """Return whether ``other`` is of the same function."""
        deviation: float | None = None
        reason = ""
        if self.probe != other.probe or len(self.values) != len(other.values):
            reason = "the proofs are of different probes"
        elif self.learns_constant or other.learns_constant:
            reason = "a normalised zero path may learn a constant"
        elif self.diverges or other.diverges:
            reason = "the network diverges on the probes"
        else:
            deviation = _deviation(self.values, other.values)
            if deviation is None:
                reason = "one is finite where the other is not"
            elif deviation > 2.0**-bits:
                reason = f"the second probes differ by {deviation:.1e}"
        return Certificate(
            confirmed=not reason, probe=self.probe, bits=bits, deviation=deviation, reason=reason
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "probe": self.probe,
            "values": [float(value).hex() for value in self.values],
            "learns_constant": self.learns_constant,
            "diverges": self.diverges,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Proof:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInputError: ``data`` is not of that form.
        """
        try:
            return cls(
                probe=str(data["probe"]),
                values=tuple(float.fromhex(value) for value in data["values"]),
                learns_constant=bool(data["learns_constant"]),
                diverges=bool(data.get("diverges", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"{data!r} is no proof of a functional hash") from error


def _deviation(first: Sequence[float], second: Sequence[float]) -> float | None:
    finite = [
        (a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)
    ]
    odd = [
        (a, b)
        for a, b in zip(first, second, strict=True)
        if not (math.isfinite(a) and math.isfinite(b))
    ]
    if any(a != b and not (math.isnan(a) and math.isnan(b)) for a, b in odd):
        return None
    largest = max((max(abs(a), abs(b)) for a, b in finite), default=0.0)
    if largest == 0.0:
        return 0.0
    return max(abs(a - b) for a, b in finite) / largest
