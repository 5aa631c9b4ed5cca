"""The history of the tables, run up and down with data on both databases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, inspect, select

from zoo.canonical import content_id
from zoo.errors import EnvironmentUnfitError, InvalidInputError
from zoo.jobs import Candidate, JobKind
from zoo.spec import Block, BlockSpec, Chain, Device, Evaluation, Profile, TensorSpec
from zoo.store import migrate, open_store
from zoo.store.database import connect, parse_url
from zoo.store.protocols import Claimed, Edge, Store, WorkerInfo
from zoo.store.tables import Row


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/zoo.db"
    server: str = request.getfixturevalue("postgres_url")
    name = f"migrations_{tmp_path.name[-40:]}".lower().replace("-", "_")
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = connect(parse_url(url))
    yield made
    made.dispose()


def fill(store: Store) -> None:
    """Put at least one row into every table."""
    interface = (TensorSpec(shape=(4,)),)
    spec = BlockSpec(op="test.op", inputs=interface, outputs=interface)
    digest = store.files.put(b"weights")
    block = Block(spec=spec, weights=digest, num_params=1, size_bytes=2**40)
    store.blocks.put_block(block)
    chain = Chain(blocks=(block, block), card={"task": "digits", "metrics": {"accuracy": 0.5}})
    store.blocks.put_chain(chain, onnx=digest)
    store.blocks.set_alias("best", chain.id)
    device = Device(name="cpu", kind="cpu", info={"threads": 2})
    store.devices.announce(WorkerInfo(id="w", devices=(device,), catalogue={}))
    store.devices.acquire(device.place, "w", "shared", lease_s=60)
    store.blocks.put_profile(
        Profile(
            subject=chain.id,
            device=device.id,
            runtime="torch",
            precision="float32",
            batch=1,
            median_ms=1.5,
            p95_ms=2.0,
            samples=(1.0, 2.0),
        )
    )
    store.jobs.submit(JobKind.SEARCH, {"a": [1, None]}, idempotency_key="k")
    job = store.jobs.claim("w", lease_s=60)
    assert job is not None
    store.blocks.add_edges([Edge(child=chain.id, parent=job.id, relation="searched-by")])
    store.jobs.log(job.id, "hello", data={"x": 1})
    store.jobs.save_checkpoint(job.id, job.token, digest, 1)
    architecture = {"choices": [1]}
    store.jobs.put_candidate(
        Candidate(
            job=job.id,
            number=0,
            architecture=architecture,
            architecture_id=content_id(architecture),
        ),
        job.token,
    )
    store.evaluations.claim("key", job=job.id, lease_s=60)
    store.keys.create(
        "k", owner="o", scopes=["read"], expires_at=datetime(2030, 1, 1, tzinfo=UTC), shares=False
    )


def contents(engine: Engine) -> dict[str, list[Any]]:
    """Return all rows of all tables, as the database itself describes them."""
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table)).all()))
            for table in metadata.sorted_tables
        }


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory.from_config(migrate.config()).get_heads()) == 1


def test_the_revisions_make_exactly_the_tables_of_the_program(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert migrate.drift(engine) == []


def test_a_changed_table_is_noticed(engine: Engine) -> None:
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE blocks ADD COLUMN surprise TEXT")
        connection.exec_driver_sql("DROP INDEX ix_blocks_op")
    assert {difference[0] for difference in migrate.drift(engine)} == {
        "remove_column",
        "add_index",
    }


def test_data_survives_every_step_up_and_none_is_in_the_way_down(
    url: str, engine: Engine, tmp_path: Path
) -> None:
    store = open_store(url, files=tmp_path / "files")
    fill(store)
    store.close()
    before = contents(engine)
    assert {name for name, rows in before.items() if not rows} == set()
    assert set(before) == {table.name for table in Row.metadata.sorted_tables} | {"alembic_version"}
    migrate.upgrade(engine)
    assert contents(engine) == before
    migrate.downgrade(engine, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    store = open_store(url, files=tmp_path / "files")
    fill(store)
    store.close()
    assert migrate.drift(engine) == []


def test_each_revision_can_be_undone_and_done_again(engine: Engine) -> None:
    revisions = list(ScriptDirectory.from_config(migrate.config()).walk_revisions())
    for revision in reversed(revisions):
        migrate.upgrade(engine, revision.revision)
        migrate.downgrade(engine, "-1")
        migrate.upgrade(engine, revision.revision)
    assert migrate.drift(engine) == []


def test_the_first_release_s_data_are_read_by_this_one(
    url: str, engine: Engine, tmp_path: Path
) -> None:
    migrate.upgrade(engine, "0001")
    moment = "'2026-11-01 00:00:00+00:00'"
    with engine.execution_options(writes=True).begin() as connection:
        for statement in (
            "INSERT INTO jobs (id, kind, state, spec, owner, name, progress, attempt, token, "
            "num_events, created_at) VALUES ('job_a', 'search', 'succeeded', '{}', 'ann', '', "
            f"'{{}}', 1, 1, 0, {moment})",
            "INSERT INTO architectures (id, document, created_at) "
            f"VALUES ('arch', '{{}}', {moment})",
            "INSERT INTO candidates (job_id, arm, number, architecture_id, state, metrics, "
            "feasible, attempt, saved_s, cost_s) VALUES ('job_a', 'search', 0, 'arch', "
            "'evaluated', '{}', true, 1, 0, 2)",
            "INSERT INTO evaluations (key, metrics, cost_s, repeats, token, job, finished_at) "
            f"VALUES ('old', '{{}}', 2, 1, 1, 'job_a', {moment})",
        ):
            connection.exec_driver_sql(statement)
    migrate.upgrade(engine)
    store = open_store(url, files=tmp_path / "files")
    assert store.jobs.job("job_a").shares
    (candidate,) = store.jobs.candidates("job_a")
    assert (candidate.repeats, candidate.spread, candidate.reused) == (1, {}, False)
    assert store.evaluations.get("old") is not None
    claim = store.evaluations.claim("new", job="job_a", lease_s=60)
    assert isinstance(claim, Claimed)
    result = Evaluation(metrics={}, cost_s=1.0)
    store.evaluations.finish("new", claim.token, result, info={"scope": "owner:ann"})
    store.close()
    migrate.downgrade(engine, "0001")
    left = contents(engine)
    assert len(left["evaluations"]) == len(left["jobs"]) == len(left["candidates"]) == 1
    migrate.upgrade(engine)
    assert migrate.drift(engine) == []


def test_a_migration_that_fails_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE profiles (x TEXT)")  # in the way, half-way
    with pytest.raises(Exception, match="profiles"):
        migrate.upgrade(engine)
    assert inspect(engine).get_table_names() == ["profiles"]


def test_an_older_database_is_refused_with_the_remedy(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(url, files=tmp_path / "files").close()
    monkeypatch.setattr(migrate, "head", lambda: "9999")  # as a later release will have it
    with pytest.raises(EnvironmentUnfitError, match="needs 9999; run `blockyard db upgrade`"):
        open_store(url, files=tmp_path / "files")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "migrations", *arguments], capture_output=True, text=True, cwd=cwd
    )


def test_the_command_works_from_any_folder(tmp_path: Path) -> None:
    database = ["--db", f"sqlite:///{tmp_path}/zoo.db"]
    head = migrate.head()
    for arguments, printed in (
        (["current"], "empty"),
        (["upgrade"], head),
        (["check"], head),
        (["downgrade", "base"], "empty"),
        (["upgrade", head], head),
    ):
        done = run(*arguments, *database, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{printed}\n", "")


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    for arguments, said in (
        (["upgrade", "nope", "--db", f"sqlite:///{tmp_path}/zoo.db"], "nope"),
        (["upgrade", "--db", "mysql://x/y"], "mysql"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        assert said in done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


def test_an_unknown_revision_lists_the_known_ones(engine: Engine) -> None:
    with pytest.raises(InvalidInputError, match=f"nope.*{migrate.head()}"):
        migrate.downgrade(engine, "nope")
