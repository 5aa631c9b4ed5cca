"""The benchmarks of BossNAS run in their small forms and end with their JSON objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def benchmark(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, name, *arguments],
        cwd=ROOT / "benchmarks",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def last(printed: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return report


@pytest.mark.slow
def test_the_trie_runs_a_fifth_of_the_layers_of_the_loop_and_ranks_alike() -> None:
    report = last(benchmark("bossnas_ranking.py", "--json", "--quick", "--space=nats-bench-size"))
    assert report["name"] == "bossnas_ranking"
    assert set(report["results"]) == {"trie_vs_naive", "layer_forwards"}
    assert report["results"]["trie_vs_naive"]["value"] > 1
    assert report["results"]["layer_forwards"]["ratio"] < 0.4
    assert all(run["largest_difference"] < 1e-4 for run in report["details"]["runs"].values())


@pytest.mark.slow
def test_the_correlation_is_measured_in_parts(data_root: Path, tmp_path: Path) -> None:
    options = ("--preset=tiny", "--space=nas-bench-macro", f"--state={tmp_path / 'state'}")
    assert "run it again" in benchmark("bossnas_correlation.py", *options, "--part-s=0")
    report = last(benchmark("bossnas_correlation.py", *options, "--json"))
    assert report["details"]["networks"] == 6561
    assert set(report["results"]) == {"kendall", "spearman", "pearson", "true_rank"}
    assert all(abs(report["results"][name]["value"]) <= 1 for name in ("kendall", "pearson"))
    assert 1 <= report["results"]["true_rank"]["value"] <= 6561
