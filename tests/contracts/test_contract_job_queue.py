"""What every ``JobQueue`` promises: a sent job runs once, and a message proves nothing."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toys
from workers.app import CeleryQueue, check_broker
from workers.embedded import EmbeddedWorker
from workers.protocols import JobQueue
from workers.session import Timing
from zoo.errors import EnvironmentUnfitError, InvalidInputError
from zoo.jobs import Job, JobKind
from zoo.store import open_store
from zoo.store.protocols import Store

PATIENT = Timing(lease_s=20.0, heartbeat_s=0.5, reap_s=60.0, refill_s=600.0, poll_s=30.0)
"""A worker that looks for jobs so rarely that only a message explains a quick start."""

PROGRAM = """
import sys
from tests import toys
from tests.contracts.test_contract_job_queue import PATIENT
from workers import commands
from workers.__main__ import parser
toys.install()
sys.exit(commands.run(parser().parse_args(sys.argv[1:]), PATIENT))
"""


@pytest.fixture(scope="module", params=["embedded", "celery"])
def harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, JobQueue]]:
    """A store and a queue with one worker behind it, for every implementation."""
    toys.install()
    folder = tmp_path_factory.mktemp("queue")
    url = f"sqlite:///{folder}/zoo.db"
    store = open_store(url)
    if request.param == "embedded":
        worker = EmbeddedWorker(store, timing=PATIENT)
        worker.start()
        yield store, worker
        worker.stop()
    else:
        broker: str = request.getfixturevalue("redis_url").removesuffix("/0") + "/5"
        command = [sys.executable, "-c", PROGRAM, "worker", "--db", url, "--broker", broker]
        process = subprocess.Popen(command, env=toys.environment())
        queue = CeleryQueue(broker, store)
        toys.wait_for(store.devices.workers, what="the worker's announcement")
        yield store, queue
        queue.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    store.close()


def submit(store: Store) -> Job:
    return store.jobs.submit(JobKind.PREVIEW, {"search": toys.search(), "samples": 4})


def test_a_sent_job_runs_without_waiting_for_the_next_look(
    harness: tuple[Store, JobQueue],
) -> None:
    store, queue = harness
    for _ in range(2):
        job = submit(store)
        queue.send(job.id)
        toys.succeeded(store, job.id, timeout_s=25)


def test_a_job_sent_many_times_at_once_runs_once(harness: tuple[Store, JobQueue]) -> None:
    store, queue = harness
    job = submit(store)
    threads = [threading.Thread(target=queue.send, args=(job.id,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert toys.succeeded(store, job.id, timeout_s=25).token == 1
    queue.send(job.id)
    after = submit(store)
    queue.send(after.id)
    toys.succeeded(store, after.id, timeout_s=25)
    assert store.jobs.job(job.id).token == 1


def test_an_unknown_id_is_taken_for_the_hint_that_it_is(harness: tuple[Store, JobQueue]) -> None:
    store, queue = harness
    queue.send("job_00000000-0000-4000-8000-000000000000")
    job = submit(store)
    queue.send(job.id)
    toys.succeeded(store, job.id, timeout_s=25)


def test_every_queue_is_a_job_queue(harness: tuple[Store, JobQueue]) -> None:
    assert isinstance(harness[1], JobQueue)


def test_a_broker_that_is_away_is_logged_and_never_raised(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = CeleryQueue(f"redis://127.0.0.1:{port}/0", store, timeout_s=0.5)
    job = submit(store)
    queue.send(job.id)
    assert f"{job.id} waits for the reaper" in caplog.text
    assert queue.missing([job]) == []
    queue.close()
    queue.close()


def test_an_embedded_worker_may_be_closed_twice_and_before_it_started(
    store: Store, tmp_path: Path
) -> None:
    worker = EmbeddedWorker(store)
    worker.close()
    worker.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://127.0.0.1:6379/0",
        "redis://:secret@queue.example:6379/0",
        "rediss://user:secret@queue.example:6379/0",
        "redis+socket:///run/redis.sock",
    ],
)
def test_a_broker_on_this_machine_or_with_a_password_is_used(url: str) -> None:
    assert check_broker(url) == url


@pytest.mark.parametrize("url", ["redis://queue.example:6379/0", "redis://0.0.0.0:6379/0"])
def test_a_broker_that_anyone_can_reach_is_refused(url: str) -> None:
    with pytest.raises(EnvironmentUnfitError, match="without a password"):
        check_broker(url)


def test_a_broker_that_is_no_redis_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="amqp"):
        check_broker("amqp://localhost")
