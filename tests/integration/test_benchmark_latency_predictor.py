"""The latency-predictor benchmark runs on the published tables and reports its two keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DATA = os.environ.get("BLOCKYARD_DATA")


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="BLOCKYARD_DATA is not set: no latency tables")
def test_held_back_networks_are_predicted_within_the_gate() -> None:
    done = subprocess.run(
        [sys.executable, "latency_predictor.py", "--json", "--quick"],
        cwd=BENCHMARKS,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "latency_predictor"
    assert report["results"]["within_10_percent"]["value"] >= 0.90
    assert report["results"]["spearman"]["value"] >= 0.95
    for table in report["details"]["tables"].values():
        assert table["right"] <= table["settings"]
