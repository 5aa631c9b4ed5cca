"""What an import drags in: found by running it, since no linter sees imports by name."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )


@pytest.mark.parametrize("module", ["zoo", "zoo.client", "zoo.remote", "ui.cli"])
def test_the_sdk_and_the_command_line_start_without_heavy_libraries(module: str) -> None:
    result = run(
        f"""
        import sys
        import {module}
        heavy = {{"torch", "sqlalchemy", "celery", "optuna", "streamlit", "onnxruntime"}}
        print(*sorted(heavy & sys.modules.keys()))
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


BARE_HOST = ["sqlalchemy", "pydantic", "celery", "optuna", "redis", "fastapi", "alembic"]
SLOW = ["scipy"]
"""Imported where they are used: half as long as torch, for every trainer that starts."""


@pytest.mark.parametrize(
    "module",
    [
        "nas.data",
        "nas.training",
        "nas.evaluation",
        "nas.identity",
        "nas.plugins",
        "nas.spaces.darts",
        "nas.spaces.hybrid",
        "nas.methods.pc_darts",
        "nas.methods.proxyless",
        "nas.methods.few_shot",
        "serving.engine",
        "serving.runners.measure",
        "serving.scheduler",
    ],
)
def test_search_and_engine_run_on_a_bare_gpu_host(module: str) -> None:
    result = run(
        f"""
        import sys
        for name in {BARE_HOST + SLOW!r}:
            sys.modules[name] = None
        import {module}
        """
    )
    assert result.returncode == 0, result.stderr
