"""``blockyard space hash``: architectures in, one functional hash a line out."""

from __future__ import annotations

import subprocess
import sys

import pytest

CELL = "|nor_conv_3x3~0|+|skip_connect~0|skip_connect~1|+|{}~0|{}~1|{}~2|"
POOLED_SUM = CELL.format("none", "none", "avg_pool_3x3")
OTHER = CELL.format("none", "none", "skip_connect")
POOLED_TERMS = "|nor_conv_3x3~0|+|none~0|none~1|+|avg_pool_3x3~0|avg_pool_3x3~1|none~2|"


def run(*words: str, text: str) -> subprocess.CompletedProcess[str]:
    command = "import sys; from ui.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", command, "space", "hash", *words],
        input=text,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_one_hash_a_line_with_and_without_memo() -> None:
    text = f"{POOLED_SUM}\n{POOLED_TERMS}\n{OTHER}\n{POOLED_SUM}\n"
    answers = []
    for extra in ((), ("--no-memo",)):
        done = run("nas-bench-201", "--stdin", "--processes", "1", *extra, text=text)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout.split())
    assert answers[0] == answers[1]
    pooled_sum, pooled_terms, other, again = answers[0]
    assert pooled_sum == pooled_terms == again != other


@pytest.mark.slow
def test_a_line_that_is_no_architecture_is_named() -> None:
    done = run("nas-bench-201", "--stdin", "--processes", "1", text="|nor_conv_7x7~0|\n")
    assert done.returncode == 2
    assert "line 1" in done.stderr
    assert run("darts", text="").returncode == 2
