"""Two users' searches on one database whose workers are killed: every key is evaluated once."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests import toys
from tests.cluster import Cluster, private_database, running_cluster
from zoo.jobs import Arm, CandidateState, Job, JobState

pytestmark = pytest.mark.slow

TIMING = {"lease_s": 2.5}

AUDIT = """
CREATE TABLE recorded (key text, token bigint, job text);
CREATE FUNCTION note_recorded() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO recorded VALUES (NEW.key, OLD.token, NEW.job);
    RETURN NEW;
END $$;
CREATE TRIGGER note_recorded AFTER UPDATE OF metrics ON evaluations FOR EACH ROW
    WHEN (NEW.metrics IS NOT NULL AND OLD.metrics::text IS DISTINCT FROM NEW.metrics::text)
    EXECUTE FUNCTION note_recorded();
"""
"""Every result that is ever written, whatever overwrites it later; a second one would show."""


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    with private_database(postgres_url) as url:
        yield url


def sql(database: str, statement: str) -> list[tuple[Any, ...]]:
    url = make_url(database).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def scores(cluster: Cluster, job: Job) -> list[tuple[object, ...]]:
    return [
        (item.number, item.architecture_id, item.state, item.metrics.get("accuracy"))
        for item in cluster.store.jobs.candidates(job.id, arm=Arm.SEARCH)
    ]


def winners(job: Job) -> list[object]:
    result: Any = job.result
    return [winner["chain"] for winner in result["winners"]]


def submit(cluster: Cluster, owner: str, candidates: int, delay_s: float) -> Job:
    space = {"widths": list(range(4, 4 + candidates)), "twins": 3, "delay_s": delay_s}
    method = {"name": "random", "params": {"candidates": candidates}}
    return cluster.submit(owner=owner, seed=71, space=space, method=method)


def kill_at_random(
    cluster: Cluster, jobs: list[Job], *, kills: int, within_s: float, seed: int
) -> int:
    """Kill workers at random moments while the jobs run; return how many of them had a job.

    A job that has evaluated nothing since its last kill is spared: one that goes on dying so
    is put in quarantine, and rightly.
    """
    rng = random.Random(seed)
    busy = 0
    seen: dict[str, int] = {}
    for _ in range(kills):
        time.sleep(rng.uniform(0.1, within_s))
        states = [cluster.store.jobs.job(job.id) for job in jobs]
        if all(job.state.final for job in states):
            break
        running = {job.worker or "": job.id for job in states if job.state is JobState.RUNNING}
        alive = cluster.alive()
        held = {
            process.pid: job
            for process in alive
            for worker, job in running.items()
            if f"-{process.pid}-" in worker
        }
        evaluated = {job: cluster.evaluated(job) for job in held.values()}
        ready = [
            it
            for it in alive
            if (job := held.get(it.pid)) is None or evaluated[job] > seen.get(job, -1)
        ]
        working = [it for it in ready if it.pid in held]
        victim = rng.choice(ready if busy or not working else working)  # at least one has a job
        if victim.pid in held:
            busy += 1
            seen[held[victim.pid]] = evaluated[held[victim.pid]]
        victim.kill()
        victim.wait()
        cluster.start()
    return busy


def check(database: str, cluster: Cluster, jobs: list[Job]) -> None:
    """Hold SQL against what was asked for: each key has one result, under its present token."""
    assert sql(database, "SELECT key FROM recorded GROUP BY key HAVING count(*) > 1") == []
    assert sql(database, "SELECT key FROM evaluations WHERE metrics IS NULL") == []
    differing = """
        SELECT e.key FROM evaluations e LEFT JOIN recorded r ON r.key = e.key
        WHERE r.token IS DISTINCT FROM e.token OR r.job IS DISTINCT FROM e.job
    """
    assert sql(database, differing) == []
    kinds = sql(
        database,
        "SELECT info->>'kind', count(*), count(DISTINCT signature) FROM evaluations "
        "WHERE scope IS NULL GROUP BY 1 ORDER BY 1",
    )
    candidates = [it for job in jobs for it in cluster.store.jobs.candidates(job.id)]
    scored = [it for it in candidates if it.arm is Arm.SEARCH]
    assert {it.state for it in scored} == {CandidateState.EVALUATED}
    functions = len({it.signature for it in scored})
    assert kinds == [("latency", functions, functions), ("training", functions, functions)]
    # Each was paid for by one job, once, and taken by all other candidates.
    assert sum(not it.reused for it in scored) == functions
    origins = [it.job for job in jobs for it in cluster.store.jobs.origins(job.id)]
    assert set(origins) <= {job.id for job in jobs}
    assert origins


def run(
    database: str,
    broker: str,
    folder: Path,
    *,
    candidates: int,
    kills: int,
    within_s: float = 1.5,
    delay_s: float = 0.02,
    timeout_s: float = 250.0,
) -> tuple[int, int]:
    """Search undisturbed in private, then for everybody under kills; compare and check.

    Returns:
        How many working workers were killed, and the number of the jobs' claims.
    """
    timing = json.dumps(TIMING)
    with running_cluster(database, broker, folder, workers=4, timing=timing) as cluster:
        sql(database, AUDIT)
        sizes = {"alice": candidates, "bob": candidates + 4}
        for owner in sizes:
            cluster.store.keys.create(owner, owner=f"{owner} alone", scopes=["read"], shares=False)
        quiet = [submit(cluster, f"{owner} alone", size, delay_s) for owner, size in sizes.items()]
        expected = [toys.succeeded(cluster.store, job.id, timeout_s=timeout_s) for job in quiet]
        jobs = [submit(cluster, owner, size, delay_s) for owner, size in sizes.items()]
        toys.wait_for(lambda: cluster.evaluated(jobs[0].id), what="the first candidate")
        busy = kill_at_random(cluster, jobs, kills=kills, within_s=within_s, seed=candidates)
        ended = [toys.succeeded(cluster.store, job.id, timeout_s=timeout_s) for job in jobs]
        for ours, theirs in zip(ended, expected, strict=True):
            assert scores(cluster, ours) == scores(cluster, theirs)
            assert winners(ours) == winners(theirs)
        check(database, cluster, jobs)
        return busy, sum(job.token for job in ended)


def test_two_users_evaluate_every_key_once_while_workers_are_killed(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    busy, claims = run(database, redis_url, tmp_path, candidates=12, kills=3)
    assert busy >= 1
    assert claims > 2  # somebody took over


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_two_users_evaluate_every_key_once_under_fifty_kills(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    busy, claims = run(
        database,
        redis_url,
        tmp_path,
        candidates=600,
        kills=50,
        within_s=16.0,
        delay_s=0.1,
        timeout_s=3000.0,
    )
    assert busy >= 10
    assert claims > 10
