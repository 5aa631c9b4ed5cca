"""Measured latency of operations, kept in a versioned file; a network's is their sum.

The sum is exact where operations run one after another without fusion, and is checked on
whole networks when a table is built (``Additivity``). An operation that was not measured
is measured now or is an error: it never counts as zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zoo.canonical import Json, plain
from zoo.errors import CorruptArtifactError, InvalidInputError, NotFoundError

FORMAT = "blockyard.latency_table"
VERSION = 1

Floats = NDArray[np.float64]

Measure = Callable[[str], "Entry"]
"""Measures one operation by its key, on the table's device and in its runtime."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Milliseconds of one operation: median and interquartile range of ``count`` samples.

    ``macs`` and ``moved_bytes`` are 0 where a table does not say.
    """

    median_ms: float
    spread_ms: float
    count: int
    macs: int = 0
    moved_bytes: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.median_ms) and self.median_ms >= 0 and self.spread_ms >= 0):
            raise InvalidInputError(
                f"a latency of {self.median_ms} ms, spread {self.spread_ms} ms, is no measurement"
            )

    def to_json(self) -> dict[str, Json]:
        return {
            "median_ms": self.median_ms,
            "spread_ms": self.spread_ms,
            "count": self.count,
            "macs": self.macs,
            "moved_bytes": self.moved_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Additivity:
    """How far sums were from whole networks that were measured too.

    ``errors`` are relative, ``sum / measured - 1``, one a network, each with the overhead
    that the *other* networks showed; ``plain_errors`` are those of the bare sums.
    ``spearman`` is the rank correlation, None for fewer than three networks.
    """

    errors: tuple[float, ...]
    plain_errors: tuple[float, ...]
    spearman: float | None = None

    @property
    def median_error(self) -> float:
        """Return the median of the absolute relative errors."""
        return float(np.median(np.abs(self.errors)))

    @classmethod
    def compare(
        cls, sums_ms: Sequence[float], measured_ms: Sequence[float], counts: Sequence[int]
    ) -> Self:
        """Compare sums with measurements of the same networks.

        Args:
            sums_ms: Sums of the operations' latencies alone.
            measured_ms: What the whole networks took.
            counts: How many operations each network executes.

        Raises:
            InvalidInputError: There is none, or their numbers differ.
        """
        if not sums_ms or not len(sums_ms) == len(measured_ms) == len(counts):
            raise InvalidInputError(
                f"{len(sums_ms)} sums, {len(measured_ms)} measurements, {len(counts)} counts; "
                "give one each, at least one"
            )
        sums, measured, number = (np.asarray(v, float) for v in (sums_ms, measured_ms, counts))
        errors = []
        for place in range(len(sums)):
            others = np.arange(len(sums)) != place
            each = overhead_ms(sums[others], measured[others], number[others])
            errors.append(float((sums[place] + each * number[place]) / measured[place] - 1))
        correlation = None
        if len(sums) > 2:
            from scipy.stats import spearmanr  # as long to import as half of torch

            value = float(spearmanr(sums, measured).statistic)
            correlation = value if math.isfinite(value) else None
        return cls(
            errors=tuple(errors),
            plain_errors=tuple((sums / measured - 1).tolist()),
            spearman=correlation,
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "errors": list(self.errors),
            "plain_errors": list(self.plain_errors),
            "median_error": self.median_error,
            "spearman": self.spearman,
        }


def overhead_ms(sums_ms: Floats, measured_ms: Floats, counts: Floats) -> float:
    """Return what a network pays for each operation beside the operation itself.

    It is the call through modules in an eager runtime: the median over networks of what
    their sums lack, per operation; 0 without networks, and never below.
    """
    if not len(sums_ms):
        return 0.0
    return max(0.0, float(np.median((measured_ms - sums_ms) / counts)))


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Latencies of operations on one device, in one runtime, precision and batch size.

    ``device`` is the device's id and what determines its speed, ``clocks`` what was known
    of its clock rates while measuring, ``space`` the search space that was covered,
    ``overhead_ms`` what a network pays beside each operation (see ``overhead_ms``), and
    ``energy`` a fitted energy model as ``nas.cost.energy`` writes it, if power was metered.
    """

    device: Mapping[str, Json]
    runtime: str
    precision: str
    batch: int
    entries: Mapping[str, Entry]
    clocks: Mapping[str, Json] = field(default_factory=dict)
    space: Mapping[str, Json] = field(default_factory=dict)
    overhead_ms: float = 0.0
    additivity: Additivity | None = None
    energy: Mapping[str, Json] | None = None

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def entry(self, key: str) -> Entry:
        """Return the measurement of an operation.

        Raises:
            NotFoundError: It was not measured.
        """
        try:
            return self.entries[key]
        except KeyError:
            raise NotFoundError(
                f"operation {key} is not in this latency table of {len(self.entries)}; "
                "build the table for the space that has it, or measure the operation"
            ) from None

    def total_ms(self, keys: Iterable[str]) -> float:
        """Return the sum of operations' medians, each with the table's overhead.

        Raises:
            NotFoundError: One was not measured; the message names it.
        """
        return math.fsum(self.entry(key).median_ms + self.overhead_ms for key in keys)

    def completed(self, keys: Iterable[str], measure: Measure) -> LatencyTable:
        """Return this table with those of ``keys`` that it lacks, each measured once."""
        missing = dict.fromkeys(key for key in keys if key not in self.entries)
        found = {key: measure(key) for key in missing}
        return replace(self, entries={**self.entries, **found}) if found else self

    def to_json(self) -> dict[str, Json]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "device": plain(self.device),
            "runtime": self.runtime,
            "precision": self.precision,
            "batch": self.batch,
            "clocks": plain(self.clocks),
            "space": plain(self.space),
            "overhead_ms": self.overhead_ms,
            "additivity": self.additivity.to_json() if self.additivity else None,
            "energy": plain(self.energy) if self.energy is not None else None,
            "entries": {key: entry.to_json() for key, entry in sorted(self.entries.items())},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` gave.

        Raises:
            CorruptArtifactError: It is no table of this version, or parts are missing.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise CorruptArtifactError("this is no latency table; build one or import one")
        if data.get("version") != VERSION:
            raise CorruptArtifactError(
                f"a latency table of version {data.get('version')}; this program reads {VERSION}"
            )
        try:
            checked = data["additivity"]
            return cls(
                device=data["device"],
                runtime=data["runtime"],
                precision=data["precision"],
                batch=int(data["batch"]),
                clocks=data["clocks"],
                space=data["space"],
                overhead_ms=float(data["overhead_ms"]),
                additivity=Additivity(
                    errors=tuple(checked["errors"]),
                    plain_errors=tuple(checked["plain_errors"]),
                    spearman=checked["spearman"],
                )
                if checked
                else None,
                energy=data["energy"],
                entries={key: Entry(**entry) for key, entry in data["entries"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, InvalidInputError) as error:
            raise CorruptArtifactError(f"a latency table is damaged: {error}") from error

    def save(self, path: Path) -> None:
        """Write the table as one JSON file."""
        path.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a table.

        Raises:
            CorruptArtifactError: The file cannot be read, or is no table.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptArtifactError(f"{path} cannot be read: {error}") from error
        return cls.from_json(data)
