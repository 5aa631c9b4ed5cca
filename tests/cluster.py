"""Worker processes on a private PostgreSQL and Redis, for tests that kill them."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from tests import toys
from workers.app import CeleryQueue
from zoo.jobs import Arm, Job, JobKind
from zoo.store import open_store
from zoo.store.protocols import Store

PROGRAM = """
import dataclasses, json, os, sys
from tests import toys
from workers import commands
from workers.__main__ import parser
toys.install()
timing = dataclasses.replace(toys.QUICK, **json.loads(sys.argv[1]))
sys.exit(commands.run(parser().parse_args(sys.argv[2:]), timing))
"""


@dataclass
class Cluster:
    """A store, a broker, and the worker processes started on them."""

    store: Store
    queue: CeleryQueue
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command, env=dict(self.environment), stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def alive(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.processes if process.poll() is None]

    def submit(self, *, owner: str = "local", **changes: Any) -> Job:
        job = self.store.jobs.submit(JobKind.SEARCH, toys.search(**changes), owner=owner)
        self.queue.send(job.id)
        return job

    def owner(self, job_id: str) -> subprocess.Popen[bytes]:
        """Return the process whose worker runs the job."""
        worker = toys.wait_for(lambda: self.store.jobs.job(job_id).worker, what="a claim")
        return next(p for p in self.processes if f"-{p.pid}-" in worker)

    def evaluated(self, job_id: str) -> int:
        return len(self.store.jobs.candidates(job_id, arm=Arm.SEARCH))


@contextmanager
def private_database(postgres_url: str) -> Iterator[str]:
    """Make an empty database for the length of the block; yield its URL."""
    name = f"cluster_{uuid.uuid4().hex[:8]}"
    server = make_url(postgres_url)
    admin = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield server.set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def running_cluster(
    database: str, broker: str, folder: Path, *, workers: int, timing: str = "{}"
) -> Iterator[Cluster]:
    """Run worker processes for the length of the block; ``timing`` changes ``toys.QUICK``."""
    toys.install()
    store = open_store(database, files=folder / "files")
    options = ["--files", str(folder / "files"), "--log-level", "info"]
    command = [sys.executable, "-c", PROGRAM, timing, "worker", *options]
    environment = toys.environment() | {"BLOCKYARD_URL": database, "BLOCKYARD_BROKER": broker}
    cluster = Cluster(store, CeleryQueue(broker, store), command, environment, folder / "log")
    for _ in range(workers):
        cluster.start()
    try:
        yield cluster
    finally:
        for process in cluster.alive():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        codes = [process.wait(60) for process in cluster.processes]
        cluster.queue.close()
        store.close()
    assert set(codes) <= {0, -signal.SIGKILL}, cluster.log.read_text()[-3000:]
