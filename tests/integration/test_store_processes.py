"""The store under several processes at once, some of them killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from zoo.jobs import JobKind
from zoo.store.clock import ServerClock
from zoo.store.database import connect, parse_url
from zoo.store.protocols import Store

DRAIN = """
    import sys
    from pathlib import Path
    from zoo.store import open_store

    store = open_store(sys.argv[1], files=Path(sys.argv[2]))
    while (job := store.jobs.claim(sys.argv[3], lease_s=60)) is not None:
        store.files.put(b"shared by all")
        store.jobs.log(job.id, "claimed")
        print(job.id, flush=True)
    store.close()
"""

WRITE = """
    import sys
    from pathlib import Path
    from zoo.store import open_store

    store = open_store(sys.argv[1], files=Path(sys.argv[2]))
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        store.files.put(b"%d" % number * 1000)
        store.jobs.log(sys.argv[3], "working", data={"n": number})
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def where(store: Store) -> tuple[str, str]:
    url = store._engine.url.render_as_string(hide_password=False)  # type: ignore[attr-defined]
    return url, str(store.files.root)  # type: ignore[attr-defined]


@pytest.mark.parametrize("fixture", ["store", "pg_store"])
def test_processes_that_race_claim_each_job_once(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    store: Store = request.getfixturevalue(fixture)
    made = {store.jobs.submit(JobKind.SEARCH, {}).id for _ in range(30)}
    racing = [start(DRAIN, *where(store), f"w{number}") for number in range(3)]
    claimed: Counter[str] = Counter()
    for process in racing:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        claimed.update(output.split())
    assert claimed == Counter(made)
    assert {store.jobs.job(job_id).token for job_id in made} == {1}
    assert all(len(store.jobs.events(job_id)) == 1 for job_id in made)


@pytest.mark.parametrize("fixture", ["store", "pg_store"])
def test_a_killed_writer_leaves_whole_rows_and_whole_files(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store: Store = request.getfixturevalue(fixture)
    job = store.jobs.submit(JobKind.SEARCH, {})
    for turn in range(2):
        writer = start(WRITE, *where(store), job.id)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        wanted = len(store.jobs.events(job.id)) + 5 * (turn + 1)
        deadline = time.monotonic() + 30
        while len(store.jobs.events(job.id)) < wanted:
            assert time.monotonic() < deadline
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        events = store.jobs.events(job.id)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert store.files.verify() == []
    store.jobs.log(job.id, "the lock of the dead is free")
    if fixture == "store":
        with sqlite3.connect(tmp_path / "zoo.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


def test_a_store_survives_the_loss_of_its_connections(pg_store: Store, postgres_url: str) -> None:
    """As after a restart of the database: the next transaction finds a new connection."""
    job = pg_store.jobs.submit(JobKind.SEARCH, {})
    name = pg_store._engine.url.database  # type: ignore[attr-defined]
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        ).fetchall()
    assert ended
    assert pg_store.jobs.job(job.id) == job


def test_the_same_rows_come_out_of_both_databases(store: Store, pg_store: Store) -> None:
    spec = {
        "float": 0.1,
        "large": 2**53,
        "text": "ü\U0001f600",
        "none": None,
        "order": {"b": 1, "a": 2},
    }
    first, second = (each.jobs.submit(JobKind.SEARCH, spec, name="n") for each in (store, pg_store))
    for each, job in ((store, first), (pg_store, second)):
        read = each.jobs.job(job.id)
        assert read.spec == spec
        assert list(read.spec["order"]) == ["b", "a"]  # type: ignore[arg-type]


def test_many_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    code = "import sys; from zoo.store import open_store; open_store(sys.argv[1]).close()"
    url = f"sqlite:///{tmp_path}/zoo.db"
    running = [
        subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()


def test_all_hosts_go_by_the_clock_of_the_database_server(
    postgres_url: str, new_database: Callable[[], str]
) -> None:
    url, passed = new_database(), 0.0
    engine = connect(parse_url(url))
    clock = ServerClock(engine, monotonic=lambda: passed)
    first = clock()
    assert abs(first - datetime.now(UTC)) < timedelta(seconds=5)  # it runs on this host
    passed = 50.0
    assert clock() - first == timedelta(seconds=50)
    passed = 70.0  # nobody waited, so the server says that little time went by
    assert clock() - first < timedelta(seconds=20)
    before, passed = clock(), 140.0
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)".encode())
    assert clock() - before == timedelta(seconds=70)  # it goes on while the server is away
    engine.dispose()
