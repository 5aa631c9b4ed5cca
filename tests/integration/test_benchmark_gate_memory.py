"""The benchmark of gate memory runs, and holds what it is there to hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_default_mode_needs_no_more_than_one_and_a_half_paths() -> None:
    done = subprocess.run(
        [sys.executable, "gate_memory.py", "--json", "--batch=1", "--draws=1"],
        cwd=ROOT / "benchmarks",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "gate_memory"
    assert set(report["results"]) == {"full_v2_vs_single", "full_v2_alike"}
    assert all(item["ratio"] <= 1.5 for item in report["results"].values())
    saved = report["details"]["saved_mib"]
    alike = [saved[f"{mode}, weights with gradients"] for mode in ("two", "full")]
    assert saved["single"] < alike[0] < alike[1]
