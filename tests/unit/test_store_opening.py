"""Opening a store: which URLs, which revisions, and what a broken database says."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import StatementError

from zoo.errors import (
    CorruptArtifactError,
    EnvironmentUnfitError,
    InvalidInputError,
    NotReadyError,
    StorageFullError,
)
from zoo.jobs import JobKind, JobState
from zoo.store import open_store
from zoo.store.database import connect, parse_url
from zoo.store.protocols import Store
from zoo.store.tables import JobRow


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("zoo.db", "zoo.db"),
        ("", "''"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mysql://root@host/db", "mysql"),
        ("postgresql://host/db", "postgresql"),
        ("http://host:80", "http"),
    ],
)
def test_a_url_of_no_supported_database_is_refused(url: str, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named) as caught:
        open_store(url)
    assert "sqlite:///FILE or postgresql+psycopg://" in str(caught.value)


def test_postgresql_needs_a_folder_and_hides_its_password() -> None:
    with pytest.raises(InvalidInputError, match="folder") as caught:
        open_store("postgresql+psycopg://ann:secret@localhost:1/zoo")
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="does not answer"):
        open_store("postgresql+psycopg://ann@127.0.0.1:1/zoo", files=tmp_path)


def test_a_new_database_is_made_with_its_folder(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/new/folder/zoo.db").close()
    assert (tmp_path / "new/folder/zoo.db").is_file()
    assert (tmp_path / "new/folder/zoo.db.files").is_dir()


def test_threads_may_open_a_new_postgresql_database_at_once(
    postgres_url: str, tmp_path: Path
) -> None:
    import psycopg

    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE opened_at_once")
    url = postgres_url.replace("/postgres?", "/opened_at_once?")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: open_store(url, files=tmp_path).close(), range(6)))


def test_the_revision_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zoo.db"
    open_store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffff'")
    connection.close()
    with pytest.raises(EnvironmentUnfitError, match="ffff.*newer release"):
        open_store(f"sqlite:///{path}")


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(EnvironmentUnfitError, match="theirs"):
        open_store(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()
    assert tables == [("theirs",)]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "zoo.db"
    path.write_bytes(b"these are not the bytes of a database" * 100)
    with pytest.raises(CorruptArtifactError, match="backup"):
        open_store(f"sqlite:///{path}")


def test_a_path_that_cannot_be_a_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(EnvironmentUnfitError, match="check its path"):
        open_store(f"sqlite:///{tmp_path}/folder")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentUnfitError, match="file"):
        open_store(f"sqlite:///{tmp_path}/file/zoo.db")


def test_sqlite_waits_for_its_turn_and_keeps_its_promises(tmp_path: Path) -> None:
    engine = connect(parse_url(f"sqlite:///{tmp_path}/zoo.db"))
    with engine.connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
        }
    engine.dispose()
    assert values == {
        "journal_mode": "wal",
        "busy_timeout": 30_000,
        "foreign_keys": 1,
        "synchronous": 2,
    }


def fill(store: Store) -> None:
    for _ in range(200):
        store.jobs.submit(JobKind.SEARCH, {"long": "x" * 10_000})


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    store: Any = open_store(f"sqlite:///{tmp_path}/zoo.db")
    kept = store.jobs.submit(JobKind.SEARCH, {})

    def limit(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite raises it to the present size

    store._engine.dispose()
    event.listen(store._engine, "connect", limit)
    with pytest.raises(StorageFullError, match="free some space"):
        fill(store)
    event.remove(store._engine, "connect", limit)
    store._engine.dispose()
    assert store.jobs.job(kept.id) == kept
    store.jobs.submit(JobKind.SEARCH, {"long": "x" * 10_000})
    store.close()


def test_text_that_postgresql_cannot_hold_is_an_input_error(pg_store: Store) -> None:
    with pytest.raises(InvalidInputError, match="refuses a value"):
        pg_store.jobs.submit(JobKind.SEARCH, {}, name="nul\x00byte")


@pytest.mark.parametrize("fixture", ["store", "pg_store"])
def test_moments_come_back_aware_and_in_utc(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    opened = request.getfixturevalue(fixture)
    there = datetime(2026, 7, 1, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    store = open_store(
        opened._engine.url.render_as_string(hide_password=False),
        files=tmp_path / "f",
        now=lambda: there,
    )
    moment = store.jobs.job(store.jobs.submit(JobKind.SEARCH, {}).id).created_at
    store.close()
    assert moment == there
    assert moment is not None
    assert moment.tzinfo is UTC


def test_a_moment_without_zone_is_refused(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/zoo.db", now=lambda: datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(StatementError, match="no time zone"):
        store.jobs.submit(JobKind.SEARCH, {})
    store.close()


def test_states_are_kept_as_their_plain_names(store: Any) -> None:
    job = store.jobs.submit(JobKind.SEARCH, {})
    with store._engine.connect() as connection:
        row = connection.execute(JobRow.__table__.select()).one()
    assert (row.id, row.state, row.kind) == (job.id, "queued", "search")
    assert type(store.jobs.job(job.id).state) is JobState
