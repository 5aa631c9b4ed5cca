"""The benchmark of the search step runs in its small form and ends with its JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "search_step.py", *arguments],
        cwd=ROOT / "benchmarks",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_forms_of_the_step_are_compared() -> None:
    report: dict[str, Any] = json.loads(
        benchmark("--json", "--quick", "--threads=1").splitlines()[-1]
    )
    assert report["name"] == "search_step"
    assert set(report["results"]) == {"fused_vs_unfused", "peak_memory"}
    for result in report["results"].values():
        assert result["ratio"] == pytest.approx(result["value"] / result["baseline"], rel=1e-2)
    kept = {name: found["saved"] for name, found in report["details"]["memory_mib"].items()}
    assert kept["fused"] < kept["unfused"] == pytest.approx(kept["reference"], rel=0.01)


@pytest.mark.slow
def test_the_search_goes_on_in_parts(tmp_path: Path) -> None:
    state = str(tmp_path / "search.state")
    part = benchmark("--search", state, "--quick", "--part-s=0.01")
    assert "run it again" in part
    report: dict[str, Any] = json.loads(
        benchmark("--search", state, "--quick", "--json").splitlines()[-1]
    )
    assert report["results"]["search_minutes"]["value"] >= 0
    assert "normal:" in report["details"]["genotype"]
    assert "searched in" in benchmark("--search", state, "--quick")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_the_search_says_what_it_would_measure(tmp_path: Path) -> None:
    said = benchmark("--search", str(tmp_path / "search.state"))
    assert "no GPU here" in said
    assert "search_minutes" in said
