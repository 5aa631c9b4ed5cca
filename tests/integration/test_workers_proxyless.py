"""ProxylessNAS through the job loop: layers measured, caps held, interruptions survived."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests import embedded, toys
from workers.embedded import EmbeddedWorker
from zoo.jobs import Arm, Job, JobKind, JobRequest, JobState
from zoo.store.protocols import Store

SPACE = {
    "preset": "cifar", "widths": [4], "depths": [6], "strides": [1], "stem": 4,
    "first": 4, "last": 8, "kernels": [3, 7], "expands": [2, 6],
}  # fmt: skip


url, store, worker = embedded.FIXTURES


def submit(store: Store, *, limits: list[dict[str, Any]] | None = None, **params: Any) -> Job:
    settings = {
        "warmup_epochs": 1, "epochs": 2, "batch_size": 128, "arch_every": 2, "loss": "add#linear",
        "ref": 1.0,
    }  # fmt: skip
    spec = toys.search() | {
        "seed": 3,
        "method": {"name": "proxyless", "params": settings | params},
        "space": {"name": "mbconv", "params": SPACE},
        "objectives": ["accuracy", "latency_ms"],
        "limits": limits or [],
    }
    return store.jobs.submit(JobKind.SEARCH, spec)


def said(store: Store, job: Job) -> list[str]:
    return [event.message for event in store.jobs.events(job.id)]


def latency_of(store: Store, job: Job) -> float:
    (candidate,) = store.jobs.candidates(job.id, arm=Arm.SEARCH)
    return float(candidate.metrics["latency_ms"])


def test_the_derived_network_meets_the_cap_as_measured_or_the_search_says_that_none_does(
    store: Store, worker: EmbeddedWorker
) -> None:
    # Free of any pressure on latency it keeps most of its blocks, and so can lose some.
    free = toys.succeeded(store, submit(store, loss="none").id)
    cap = 0.75 * latency_of(store, free)
    capped = toys.succeeded(store, submit(store, limits=[{"metric": "latency_ms", "max": cap}]).id)
    assert latency_of(store, capped) <= cap
    assert capped.result is not None
    assert capped.result["front"] == [0]
    job = submit(store, limits=[{"metric": "latency_ms", "max": 1e-3}])
    failed = toys.finished(store, job.id)
    assert failed.state is JobState.FAILED
    assert failed.reason is not None
    assert "latency_ms of at most 0.001: the smallest reachable" in failed.reason


def test_a_search_goes_on_bit_for_bit_after_a_pause_and_a_dead_trainer(
    store: Store, worker: EmbeddedWorker
) -> None:
    changes = {"cost": "flops", "ref": None, "loss": "mul#log", "epochs": 6, "gates": "two"}
    whole = toys.succeeded(store, submit(store, **changes).id)
    job = submit(store, **changes)
    toys.wait_for(lambda: store.jobs.checkpoints(job.id), what="a checkpoint")
    pid = worker.trainer_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    toys.wait_for(
        lambda: any("going on from" in line for line in said(store, job)), what="the recovery"
    )
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    store.jobs.resume(job.id)
    ended = toys.succeeded(store, job.id)
    assert ended.result is not None
    assert whole.result is not None
    assert ended.result["winners"][0]["chain"] == whole.result["winners"][0]["chain"]  # type: ignore[index,call-overload]
