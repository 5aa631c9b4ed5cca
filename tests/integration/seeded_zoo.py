"""A store with a little of everything that the pages and commands show."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

from nas.spaces.darts import DartsSpace
from zoo.builders import build
from zoo.jobs import Arm, Candidate, CandidateState, Job, JobKind, JobState
from zoo.rng import derive_seed
from zoo.schemas import parse_request
from zoo.spec import Architecture, Block, Chain, Device, Profile, TensorSpec
from zoo.store import open_store
from zoo.store.protocols import Edge, Store, WorkerInfo
from zoo.weights import block_of

SPACE = DartsSpace(cells=3, channels=4, nodes=2)
CPU = Device(name="cpu", kind="cpu", info={"model": "a processor", "threads": 2})
CATALOGUE = {
    "spaces": [{"name": "darts", "summary": "cells", "params": {"cells": 3, "channels": 16}}],
    "methods": [
        {"name": "nsga2", "summary": "evolution", "params": {"candidates": 24}},
        {"name": "random", "summary": "chance", "params": {"candidates": 24}},
    ],
    "data": [{"name": "digits", "summary": "1,797 handwritten digits", "params": {}}],
    "evaluators": [],
}
SEARCH = {
    "method": {"name": "nsga2", "params": {"candidates": 24}},
    "space": {"name": "darts", "params": {"cells": 3, "channels": 4, "nodes": 2}},
    "data": "digits",
    "limits": [{"metric": "latency_ms", "max": 3.0}],
    "baseline": True,
}


def request(**changes: object) -> dict[str, Any]:
    """Return a request as it is stored: checked, with every default written out."""
    return parse_request(JobKind.SEARCH, SEARCH | changes).model_dump(mode="json")


class Seed:
    """What was put into the store: the ids that a test looks for."""

    done: Job
    running: Job
    failed: Job
    chain: Chain
    url: str


def seed_store(folder: Path, *, candidates: int = 24) -> Seed:
    """Fill a SQLite store in ``folder`` with jobs, candidates, a chain and a live worker."""
    seed = Seed()
    seed.url = f"sqlite:///{folder / 'zoo.db'}"
    store = open_store(seed.url)
    try:
        store.devices.announce(WorkerInfo(id="worker-1", devices=(CPU,), catalogue=CATALOGUE))
        seed.failed = _failed(store)
        seed.chain = _chain(store, seed.url)
        seed.done = _done(store, seed.chain, candidates)
        seed.running = _running(store)
    finally:
        store.close()
    return seed


def _chain(store: Store, url: str) -> Chain:
    image = TensorSpec(shape=(1, 16, 16))
    architecture = SPACE.sample(random.Random(0))
    blocks: list[Block] = []
    for spec in SPACE.blocks(architecture, inputs=image, num_classes=10):
        blocks.append(block_of(spec, build(spec), store.files))
        store.blocks.put_block(blocks[-1])
    card = {"task": "digits", "metrics": {"accuracy": 0.953, "latency_ms": 2.1}, "seed": 0}
    chain = Chain(blocks=tuple(blocks), card=card)
    onnx = store.files.put(b"an ONNX file")
    store.blocks.put_chain(chain, onnx=onnx)
    store.blocks.set_alias("champion", chain.id)
    rng = random.Random(derive_seed(0, "samples"))
    samples = tuple(sorted(2.0 + rng.expovariate(5) for _ in range(50)))
    for runtime in ("torch", "onnx"):
        store.blocks.put_profile(
            Profile(
                subject=chain.id,
                device=CPU.id,
                runtime=runtime,
                precision="float32",
                batch=1,
                median_ms=samples[25],
                p95_ms=samples[47],
                samples=samples,
            )
        )
    return chain


def _done(store: Store, chain: Chain, candidates: int) -> Job:
    job = store.jobs.submit(JobKind.SEARCH, request(), name="first light", device=None)
    claimed = store.jobs.claim("worker-1", lease_s=60, job_id=job.id)
    assert claimed is not None
    rng = random.Random(derive_seed(candidates, "candidates"))
    for number in range(candidates):
        for arm in (Arm.SEARCH, Arm.BASELINE):
            store.jobs.put_candidate(_candidate(job.id, number, arm, rng), claimed.token)
        store.jobs.log(
            job.id,
            f"candidate {number + 1} of {candidates}: accuracy 0.9, latency_ms 2",
            data={
                "kind": "metrics",
                "phase": "search",
                "step": number + 1,
                "eta_s": None,
                "metrics": {"hypervolume": number / candidates, "feasible": 1.0, "failed": 0.0},
            },
        )
    trained: dict[str, object] = {
        "metrics": dict(chain.card["metrics"]),  # type: ignore[arg-type]
        "chain": chain.id,
        "feasible": True,
        "reason": None,
    }
    winner = _candidate(job.id, 0, Arm.WINNER, rng, **trained)
    store.jobs.put_candidate(winner, claimed.token)
    store.blocks.add_edges([Edge(child=chain.id, parent=job.id, relation="searched-by")])
    curve = {"kind": "curve", "arm": "winner", "number": 0}
    curve |= {"epoch": [1, 2, 3], "loss": [2.1, 1.2, 0.7]}
    store.jobs.log(job.id, "winner candidate 0 was trained for 3 epochs", data=curve)
    store.jobs.log(
        job.id, "candidate 5 failed: the trainer was killed: out of memory", level="warning"
    )
    won = {
        "candidate": 0,
        "chain": chain.id,
        "architecture": winner.architecture,
        "summary": SPACE.summary(Architecture.from_json(winner.architecture)),
        "metrics": chain.card["metrics"],
    }
    savings = store.jobs.savings(job.id)
    result = {"front": [0], "winners": [won], "savings": dict(savings), "baseline_front": [0]}
    return store.jobs.finish(job.id, claimed.token, JobState.SUCCEEDED, result=result)


def _candidate(job: str, number: int, arm: Arm, rng: random.Random, **changes: object) -> Candidate:
    architecture = SPACE.sample(rng)
    if number == 5 and arm is Arm.SEARCH:
        return Candidate(
            job=job,
            number=number,
            architecture=architecture.to_json(),
            architecture_id=architecture.id,
            state=CandidateState.FAILED,
            reason="the trainer was killed: out of memory",
            attempt=3,
        )
    latency = rng.uniform(0.5, 4.0)
    skill = 0.05 if arm == Arm.SEARCH else 0.0
    accuracy = min(0.99, 0.62 + skill + 0.15 * latency - 0.02 * latency**2 + rng.gauss(0, 0.03))
    reused = arm == Arm.SEARCH and number % 7 == 3
    values: dict[str, object] = {
        "job": job,
        "number": number,
        "arm": arm,
        "architecture": architecture.to_json(),
        "architecture_id": architecture.id,
        "state": CandidateState.EVALUATED,
        "metrics": {
            "accuracy": accuracy,
            "latency_ms": latency,
            "flops": 1e6 * latency,
            "num_params": round(1e4 * (1 + latency)),
            "size_bytes": round(4e4 * (1 + latency)),
            "peak_bytes": round(1e5 * (1 + latency)),
            "latency_p95_ms": 1.2 * latency,
        },
        "feasible": latency <= 3,
        "reason": None if latency <= 3 else f"latency_ms is {latency:.3g}, above 3",
        "attempt": 1,
        "reused_from": job if reused else None,
        "saved_s": 3.5 if reused else 0.0,
        "cost_s": 0.0 if reused else 3.5,
    }
    return Candidate(**(values | changes))  # type: ignore[arg-type]


def _running(store: Store) -> Job:
    job = store.jobs.submit(JobKind.SEARCH, request(seed=1), name="under way")
    claimed = store.jobs.claim("worker-1", lease_s=3600, job_id=job.id)
    assert claimed is not None
    progress = {"step": 9, "total": 24, "message": "candidate 9", "eta_s": 42.0, "phase": "search"}
    store.jobs.heartbeat(job.id, claimed.token, lease_s=3600, progress=progress)
    return store.jobs.job(job.id)


def _failed(store: Store) -> Job:
    job = store.jobs.submit(JobKind.SEARCH, request(data="npz:absent.npz"), name="no data")
    claimed = store.jobs.claim("worker-1", lease_s=60, job_id=job.id)
    assert claimed is not None
    reason = "absent.npz is not there; set the path after npz: to a file"
    return store.jobs.finish(job.id, claimed.token, JobState.FAILED, reason=reason)


def multiply(folder: Path, job: Job, candidates: int) -> None:
    """Give a job so many searched candidates, in one statement for speed."""
    with sqlite3.connect(folder / "zoo.db") as database:
        database.execute(
            """
            WITH RECURSIVE numbers(n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM numbers LIMIT ?)
            INSERT INTO candidates (job_id, arm, number, architecture_id, state, signature, metrics,
                feasible, reason, attempt, reused_from, saved_s, cost_s, chain)
            SELECT job_id, arm, n, architecture_id, state, signature,
                json_object('latency_ms', 0.5 + 4 * abs(random() % 10007) / 10007.0,
                            'accuracy', 0.5 + 0.5 * abs(random() % 10007) / 10007.0),
                1, NULL, attempt, NULL, 0, cost_s, NULL
            FROM candidates, numbers WHERE job_id = ? AND arm = 'search' AND number = 0
            """,
            (candidates, job.id),
        )
    database.close()
