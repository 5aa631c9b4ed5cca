"""What the README shows works as it stands, but for smaller budgets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import wait_for

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SMALLER = {"candidates=8": "candidates=2", "epochs=8": "epochs=1", "epochs=2": "epochs=1"}


def snippet(heading: str, language: str) -> str:
    """Return the first fenced block of a language under a heading."""
    section = README.split(f"### {heading}\n", 1)[1]
    found = re.search(rf"```{language}\n(.*?)```", section, re.S)
    assert found, f"no {language} snippet under {heading!r}"
    return found.group(1)


def environment() -> dict[str, str]:
    """Return variables for a user without any setting, with this virtualenv's commands."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BLOCKYARD_")}
    bin_folder = str(Path(sys.executable).parent)
    return kept | {"PATH": f"{bin_folder}{os.pathsep}{kept['PATH']}"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def addresses(folder: Path) -> set[str]:
    """Return the addresses that a command has announced so far."""
    return set(re.findall(r"http://127\.0\.0\.1:\d+", (folder / "output").read_text()))


@pytest.mark.slow
def test_the_command_line_of_the_readme_runs(tmp_path: Path) -> None:
    script = snippet("The command line", "console")
    lines = [line for line in script.splitlines() if not line.startswith((". ", "blockyard up"))]
    text = "\n".join(lines)
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    result = subprocess.run(
        ["bash", "-euc", text], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "my-digits.onnx").stat().st_size > 1000


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", snippet("The SDK", "python")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    chain_id, accuracy, size = result.stdout.split()[:3]
    assert re.fullmatch(r"[0-9a-f]{12}", chain_id)
    assert 0 <= float(accuracy) <= 1
    assert int(size) > 0


@pytest.mark.slow
def test_up_announces_server_and_pages_and_ends_on_a_signal(tmp_path: Path) -> None:
    assert "blockyard up --ui" in snippet("The command line", "console")
    words = ["blockyard", "up", "--ui", "--port", str(free_port()), "--ui-port", str(free_port())]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            words, cwd=tmp_path, env=environment(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: process.poll() is not None or len(addresses(tmp_path)) == 2, timeout_s=90)
        assert process.poll() is None, (tmp_path / "output").read_text()
    finally:
        process.terminate()
        code = process.wait(timeout=60)
    assert code == 0, (tmp_path / "output").read_text()
