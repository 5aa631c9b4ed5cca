"""How numbers read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ui.formats import age, count, duration, metric, size, title


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.9, "1 h 00 min"),
        (90_000, "1 d 01 h"),
    ],
)
def test_durations_read_in_their_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_large_numbers_get_prefixes() -> None:
    assert count(999) == "999"
    assert count(999_600) == "1 M"
    assert size(1_234_567) == "1.23 MB"
    assert metric("latency_ms", 2.345) == "2.35 ms"
    assert title("latency_ms") == "latency"
    assert title("latency_p95_ms") == "latency, 95th percentile"
    assert metric("accuracy", 0.95314) == "0.9531"
    assert metric("flops", None) == "–"


def test_ages_count_from_now_and_never_run_backwards() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert age(now - timedelta(seconds=90), now) == "1 min ago"
    assert age(now + timedelta(seconds=5), now) == "just now"
    assert age(None, now) == "–"
