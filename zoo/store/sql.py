"""The store on SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import final

from sqlalchemy import URL, Engine

from zoo.errors import InvalidInputError
from zoo.store import migrate
from zoo.store.blocks import SqlBlocks
from zoo.store.clock import Clock, ServerClock, utc_now
from zoo.store.database import Database, connect, parse_url, translated
from zoo.store.devices import SqlDevices
from zoo.store.evaluations import SqlEvaluations
from zoo.store.files import FileStore
from zoo.store.jobs import SqlJobs
from zoo.store.keys import SqlKeys


@final
class SqlStore:
    """``Store`` on one database and one folder of files."""

    def __init__(self, engine: Engine, files: FileStore, *, now: Clock, grace_s: float) -> None:
        self._engine = engine
        self._files = files
        database = Database(engine, now)
        self._blocks = SqlBlocks(database, files, grace_s=grace_s)
        self._jobs = SqlJobs(database, files)
        self._evaluations = SqlEvaluations(database)
        self._devices = SqlDevices(database)
        self._keys = SqlKeys(database)

    @property
    def files(self) -> FileStore:
        return self._files

    @property
    def blocks(self) -> SqlBlocks:
        return self._blocks

    @property
    def jobs(self) -> SqlJobs:
        return self._jobs

    @property
    def evaluations(self) -> SqlEvaluations:
        return self._evaluations

    @property
    def devices(self) -> SqlDevices:
        return self._devices

    @property
    def keys(self) -> SqlKeys:
        return self._keys

    def close(self) -> None:
        self._engine.dispose()


def open_sql_store(url: str, *, files: Path | None, now: Clock | None, grace_s: float) -> SqlStore:
    """Open the store as ``zoo.store.open_store`` says."""
    parsed = parse_url(url)
    root = files or _default_files(parsed)
    engine = connect(parsed)
    try:
        migrate.prepare(engine)
        kept = FileStore(root, now=now or utc_now)
        return SqlStore(engine, kept, now=now or _clock(engine), grace_s=grace_s)
    except BaseException:
        engine.dispose()
        raise


def _clock(engine: Engine) -> Clock:
    if engine.dialect.name == "sqlite":  # its processes are of one host
        return utc_now
    with translated():
        return ServerClock(engine)


def _default_files(url: URL) -> Path:
    if url.get_backend_name() != "sqlite" or url.database is None:
        raise InvalidInputError(
            f"{url.render_as_string(hide_password=True)} needs a folder for the files; "
            "give one (`--files DIR`)"
        )
    return Path(f"{url.database}.files")
