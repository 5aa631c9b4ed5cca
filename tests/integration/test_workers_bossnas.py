"""BossNAS through the job loop: interrupted, resumed, and its blocks in the zoo."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests import embedded, toys
from workers.embedded import EmbeddedWorker
from zoo.jobs import Job, JobKind, JobRequest, JobState
from zoo.store.protocols import Store

METHOD = {
    "epochs": 2, "warmup_epochs": 0, "batch_size": 128, "accumulate": 1, "features": 8,
    "hidden": 8, "projection": 4, "calibration_images": 32, "ranking_images": 256,
}  # fmt: skip
SPACE = {"widths": [16, 16, 8, 8], "layers": [1, 2], "stem": 4, "head_dim": 2}


url, store, worker = embedded.FIXTURES


def submit(store: Store, **params: Any) -> Job:
    spec = toys.search() | {
        "seed": 3,
        "method": {"name": "bossnas", "params": METHOD | params},
        "space": {"name": "hytra", "params": SPACE},
    }
    return store.jobs.submit(JobKind.SEARCH, spec)


def chain_of(job: Job) -> Any:
    assert job.result is not None
    return job.result["winners"][0]["chain"]  # type: ignore[index,call-overload]


def test_a_search_on_digits_survives_a_dead_trainer_and_a_pause_and_ends_in_the_zoo(
    store: Store, worker: EmbeddedWorker
) -> None:
    whole = toys.succeeded(store, submit(store).id)
    job = submit(store)
    toys.wait_for(lambda: store.jobs.checkpoints(job.id), what="a checkpoint")
    pid = worker.trainer_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    toys.wait_for(
        lambda: any("going on from" in event.message for event in store.jobs.events(job.id)),
        what="the recovery",
    )
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    store.jobs.resume(job.id)
    ended = toys.succeeded(store, job.id)
    assert chain_of(ended) == chain_of(whole)
    chain = store.blocks.chain(chain_of(whole))
    operations = [block.spec.op for block in chain.blocks]
    assert operations == ["hytra.stem", *["hytra.layer"] * 3, "hytra.head"]


def test_a_search_that_is_cancelled_stops_soon(store: Store, worker: EmbeddedWorker) -> None:
    job = submit(store, epochs=500)
    toys.wait_for(lambda: store.jobs.checkpoints(job.id), what="a checkpoint")
    store.jobs.request(job.id, JobRequest.CANCEL)
    assert toys.finished(store, job.id, timeout_s=10).state is JobState.CANCELLED
