"""The regret benchmark replays every method and ends with its JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import tables

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tabular_regret.py", *arguments],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_regret_benchmark_compares_every_method_with_random_search(tmp_path: Path) -> None:
    tables.write_nasbench201(tmp_path)
    options = ["--tables", "nas-bench-201", "--seeds", "2", "--candidates", "40"]
    done = run("--json", "--data", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "tabular_regret"
    methods = ("evolution", "local-search", "nsga2", "tpe")
    assert set(report["results"]) == {
        f"{method}@nas-bench-201{suffix}" for method in methods for suffix in ("", ":front")
    }
    for curve in report["details"]["curves"].values():
        assert len(curve) == 3
        assert curve == sorted(curve, reverse=True)
        assert min(curve) >= 0
    for method in ("evolution", "local-search"):
        assert report["results"][f"{method}@nas-bench-201"]["ratio"] < 1


def test_without_the_data_the_regret_benchmark_says_so(tmp_path: Path) -> None:
    done = run("--tables", "nas-bench-macro", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "put the table there" in done.stderr
