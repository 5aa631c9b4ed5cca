"""How numbers, times and ids read, alike on the terminal, on the pages and in charts."""

from __future__ import annotations

from datetime import datetime

LABELS = {
    "accuracy": "accuracy",
    "val_accuracy": "validation accuracy",
    "latency_ms": "latency (ms)",
    "latency_p95_ms": "latency, 95th percentile (ms)",
    "latency_predicted": "latency from a table",
    "flops": "FLOPs",
    "num_params": "parameters",
    "peak_bytes": "peak memory (bytes)",
    "size_bytes": "size (bytes)",
    "training_energy_kwh": "training energy (kWh)",
}
"""Axis and column titles of the metrics."""


def label(metric: str) -> str:
    """Return the title of a metric; an unknown one is its own title."""
    return LABELS.get(metric, metric)


def title(metric: str) -> str:
    """Return the title of a metric without its unit, to stand before a value that has one."""
    return label(metric).partition(" (")[0]


def metric(name: str, value: float | None) -> str:
    """Write a metric with its unit, short enough for a table."""
    if value is None:
        return "–"
    if name.endswith("_ms"):
        return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"
    if name.endswith("_bytes"):
        return size(value)
    if name in ("flops", "num_params"):
        return count(value)
    return f"{value:.4g}"


def count(value: float) -> str:
    """Write a large number with a decimal prefix: 1.2 M."""
    return _prefixed(value, ("", " k", " M", " G", " T", " P"))


def size(value: float) -> str:
    """Write a number of bytes with a decimal prefix: 1.2 MB."""
    return _prefixed(value, (" B", " kB", " MB", " GB", " TB", " PB"))


def _prefixed(value: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}{units[-1]}"


def duration(seconds: float | None) -> str:
    """Write a time span in its two largest units: 2 h 05 min."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def age(moment: datetime | None, now: datetime) -> str:
    """Write how long ago ``moment`` was, in one unit."""
    if moment is None:
        return "–"
    seconds = int((now - moment).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return "just now"


def short(identity: str) -> str:
    """Shorten an id to what people can tell apart; commands take it as a prefix."""
    return identity[:12]
