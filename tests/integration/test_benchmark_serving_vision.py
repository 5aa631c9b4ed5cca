"""The serving benchmark runs, checks every answer, and ends with its JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_vision_benchmark_measures_all_three_systems() -> None:
    done = subprocess.run(
        [sys.executable, "serving_vision.py", "--json", "--quick", "--clients=8"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "serving_vision"
    assert report["device"]["name"] in ("cpu", "cuda:0")
    assert set(report["results"]) == {"batched_vs_single", "vs_litserve"}
    for result in report["results"].values():
        assert result["value"] > 0
        assert result["baseline"] > 0
        assert result["ratio"] == pytest.approx(result["value"] / result["baseline"], rel=1e-3)
