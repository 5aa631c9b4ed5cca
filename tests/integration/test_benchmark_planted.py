"""The planted operation is found through the job loop, and with shuffled labels it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_method_finds_the_planted_operation_and_shuffled_labels_hide_it() -> None:
    done = subprocess.run(
        [sys.executable, "planted.py", "--json", "--seeds=1", "--methods=darts", "--workers=1"],
        cwd=ROOT / "benchmarks",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "planted"
    assert report["results"]["methods_right_of_10"]["value"] == 10
    assert report["results"]["methods_right_of_10"]["baseline"] == 0
    assert report["details"]["methods"]["darts"]["operation"] == "sep_conv_5x5"
