"""A split search through the job loop: interrupted, resumed, and its winner in the zoo."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests import embedded, toys
from workers.embedded import EmbeddedWorker
from zoo.jobs import Job, JobKind, JobRequest, JobState
from zoo.store.protocols import Store

url, store, worker = embedded.FIXTURES


def submit(store: Store) -> Job:
    params = {
        "base": "snas", "base_params": {"batch_size": 128}, "checkpoints": [1], "groups": [2],
        "final_epochs": 1, "batches": 1,
    }  # fmt: skip
    spec = toys.search() | {
        "seed": 3,
        "method": {"name": "gm-nas", "params": params},
        "space": {"name": "nas-bench-201", "params": {"channels": 2, "cells": 1}},
    }
    return store.jobs.submit(JobKind.SEARCH, spec)


def test_a_split_search_goes_on_bit_for_bit_and_its_winner_lands_in_the_zoo(
    store: Store, worker: EmbeddedWorker
) -> None:
    whole = toys.succeeded(store, submit(store).id)
    job = submit(store)
    toys.wait_for(lambda: store.jobs.checkpoints(job.id), what="a checkpoint")
    pid = worker.trainer_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    store.jobs.resume(job.id)
    ended = toys.succeeded(store, job.id)
    results: list[Any] = [whole.result, ended.result]
    chains = [result["winners"][0]["chain"] for result in results]
    assert chains[0] == chains[1]
    specs = [block.spec.op for block in store.blocks.chain(chains[0]).blocks]
    assert specs[0] == "nasbench201.stem"
    assert specs.count("nasbench201.cell") == 3
