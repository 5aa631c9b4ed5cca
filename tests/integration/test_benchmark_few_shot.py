"""The few-shot benchmark measures both keys and ends with its JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    bare = {key: value for key, value in os.environ.items() if key != "BLOCKYARD_DATA"}
    return subprocess.run(
        [sys.executable, "few_shot.py", *arguments],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=bare,
    )


def test_the_few_shot_benchmark_compares_both_forms_on_the_same_gradients() -> None:
    size = ["--cells", "1", "--seeds", "1", "--batches", "2", "--steps", "1", "--repeats", "1"]
    done = run("--json", *size, "--channels", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "few_shot"
    assert set(report["results"]) == {
        "gram_vs_pairwise",
        "gradient_passes",
        "decision_s",
        "together_vs_turns",
        "together_vs_stacked",
    }
    assert report["details"]["operations"] == 7
    assert report["details"]["largest_difference"] < 1e-3
    # Two batches are too few to drop an edge: the race must not have.
    assert report["results"]["gradient_passes"]["ratio"] == 1
    assert report["details"]["same_decision"] == [True]


def test_without_a_file_the_comparison_says_what_it_needs() -> None:
    done = run("--nasbench201", "reduced")
    assert done.returncode == 1
    assert "--state FILE" in done.stderr
