"""A port that cannot be had is said in one line, before anything is started or announced."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.__main__ import main
from zoo.store import open_store


@pytest.fixture
def taken() -> Iterator[str]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield str(other.getsockname()[1])


@pytest.fixture
def free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("whose", ["server", "pages"])
def test_a_taken_port_ends_it_before_a_worker_lives(
    whose: str, taken: str, free: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/zoo.db"
    port, pages = (taken, free) if whose == "server" else (free, taken)
    assert main(["up", "--db", url, "--port", port, "--ui", "--ui-port", pages]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert taken in said.err
    assert said.err.count("\n") == 1
    store = open_store(url)
    assert store.devices.workers() == ()
    store.close()


def test_a_port_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--db", f"sqlite:///{tmp_path}/zoo.db", "--port", "70000"]) != 0
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "70000" in said
    assert said.count("\n") == 1
