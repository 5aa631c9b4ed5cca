"""How every benchmark reports: one JSON object for machines, a table for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version


def result(value: float, baseline: float) -> dict[str, float]:
    """Return one measured key: its value, that of the baseline, and their ratio."""
    return {
        "value": round(value, 4),
        "baseline": round(baseline, 4),
        "ratio": round(value / baseline, 4),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the installed ones among ``packages``."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def print_json(
    name: str,
    *,
    device: Mapping[str, object],
    versions: Mapping[str, str],
    results: Mapping[str, Mapping[str, float]],
    details: Mapping[str, object],
) -> None:
    """Print the JSON object that ends a ``--json`` run, on one line."""
    print(
        json.dumps(
            {
                "name": name,
                "device": device,
                "versions": versions,
                "results": results,
                "details": details,
            }
        ),
        flush=True,
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with aligned columns."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
