"""One database: its engine, its transactions, and foreign errors put into our words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from zoo.errors import (
    CorruptArtifactError,
    EnvironmentUnfitError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    StorageFullError,
)
from zoo.store.clock import Clock
from zoo.store.folders import make_folder
from zoo.store.tables import Row

BUSY_TIMEOUT_MS = 30_000


def parse_url(url: str) -> URL:
    """Return the parsed URL of a supported database.

    Raises:
        InvalidInputError: It is no URL, or of another database, or SQLite without a file.
    """
    forms = "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidInputError(f"{url!r} is not a database URL; use {forms}") from error
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InvalidInputError(f"{url!r} names no file; use {forms}")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise InvalidInputError(f"{parsed.drivername!r} is not supported; use {forms}")
    return parsed


def connect(url: URL) -> Engine:
    """Return an engine whose transactions are as ``Database`` needs them.

    SQLite: write-ahead log, foreign keys, and a writing transaction takes the write
    lock when it begins, so that it waits for its turn instead of failing half-way.
    """
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20)
    assert url.database is not None
    make_folder(Path(url.database).parent)
    engine = create_engine(url, pool_size=5, max_overflow=60)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # The driver's own transaction control starts transactions late and commits around DDL.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode")
    if cursor.fetchone() != ("wal",):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class Database:
    """Transactions on one engine, and the clock that stamps them."""

    def __init__(self, engine: Engine, now: Clock) -> None:
        self.engine = engine
        self.now = now
        self._writer = engine.execution_options(writes=True)
        self._reader = (
            engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            if engine.dialect.name == "postgresql"
            else engine
        )

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one snapshot."""
        with translated(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session whose work is committed at the end, or not at all."""
        with (
            translated(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def upsert(
        self,
        session: Session,
        row: type[Row],
        values: Mapping[str, Any],
        *,
        keys: Iterable[str],
        update: Iterable[str] = (),
    ) -> bool:
        """Insert, or update the named columns of the row with these keys.

        Returns:
            Whether a row was inserted or updated: with nothing to update, an existing
            row is left as it is and the answer is False.
        """
        insert = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert
        statement = insert(row).values(**values)
        changed = {name: values[name] for name in update}
        if changed:
            statement = statement.on_conflict_do_update(index_elements=list(keys), set_=changed)
        else:
            statement = statement.on_conflict_do_nothing(index_elements=list(keys))
        options = {"preserve_rowcount": True}
        done = session.connection().execute(statement, execution_options=options)
        return done.rowcount == 1


@contextmanager
def translated() -> Iterator[None]:
    """Raise database failures as errors that say what to do."""
    try:
        yield
    except DataError as error:
        raise InvalidInputError(f"the database refuses a value: {_cause(error)}") from error
    except PoolTimeoutError as error:
        raise OverloadedError(
            "all database connections are busy; try again shortly", retry_after_s=1.0
        ) from error
    except OperationalError as error:
        raise _operational(error) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise _away(error) from error
        if "not a database" in str(error.orig) or "malformed" in str(error.orig):
            raise CorruptArtifactError(
                f"the database file is damaged: {_cause(error)}; restore it from a backup"
            ) from error
        raise


def _operational(error: OperationalError) -> Exception:
    cause = _cause(error)
    if "disk is full" in cause or "No space left" in cause or "disk full" in cause:
        return StorageFullError(f"the database cannot write: {cause}; free some space")
    if "unable to open" in cause or "readonly database" in cause:
        return EnvironmentUnfitError(
            f"the database cannot be used: {cause}; check its path and permissions"
        )
    if "locked" in cause or "deadlock" in cause:
        return OverloadedError(
            f"the database is busy: {cause}; try again, or use PostgreSQL for many writers",
            retry_after_s=1.0,
        )
    return _away(error)


def _away(error: SQLAlchemyError) -> NotReadyError:
    return NotReadyError(f"the database does not answer: {_cause(error)}; check that it runs")


def _cause(error: SQLAlchemyError) -> str:
    return " ".join(str(getattr(error, "orig", error)).split())
