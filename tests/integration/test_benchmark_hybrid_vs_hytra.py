"""The comparison of both hybrid spaces runs one ranker on each and ends with its JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_both_spaces_are_ranked_and_their_networks_trained(tmp_path: Path) -> None:
    labels = np.arange(80) % 2
    noise = np.random.default_rng(0).integers(0, 90, (80, 1, 16, 16))
    images = (noise + 90 * labels[:, None, None, None]).astype("u1")
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    small = ["--data", f"npz:{tmp_path / 'x.npz'}", "--batch-size", "32", "--cap", "1000000"]
    small += ["--epochs", "1", "--train-epochs", "1", "--networks", "2", "--quick"]
    done = subprocess.run(
        [sys.executable, "hybrid_vs_hytra.py", "--json", *small],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "hybrid_vs_hytra"
    assert set(report["results"]) == {
        "accuracy", "over_random_hybrid", "over_random_hytra", "kendall_hybrid", "kendall_hytra",
    }  # fmt: skip
    for found in report["details"]["searches"]:
        assert found["networks"] > 1
        assert found["macs"] <= report["details"]["cap"]
        assert 0 <= found["accuracy"] <= 1
