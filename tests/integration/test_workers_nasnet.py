"""A NASNet search through the job loop: its winner lands in the zoo as blocks."""

from __future__ import annotations

from pathlib import Path

from tests import toys
from zoo.jobs import Arm, JobKind
from zoo.store.protocols import Store

SPACE = {
    "cells": 1,
    "channels": 4,
    "num_blocks": 1,
    "reductions": 1,
    "stem_channels": 4,
    "ops": ["identity", "avg_pool_3x3", "max_pool_3x3", "conv_3x3"],
}


def test_a_searched_nasnet_is_trained_exported_and_stored_as_blocks(
    store: Store, tmp_path: Path
) -> None:
    toys.install()
    settings = {
        "warmup_epochs": 1, "epochs": 2, "batch_size": 128, "controller_every": 3, "samples": 4,
        "reward_batch_size": 64, "final_samples": 8,
    }  # fmt: skip
    spec = toys.search() | {
        "seed": 3,
        "method": {"name": "nasnet-ppo", "params": settings},
        "space": {"name": "nasnet", "params": SPACE},
        "objectives": ["accuracy", "num_params"],
        "limits": [{"metric": "latency_ms", "max": 1000.0}],
    }
    with toys.working(store):
        job = toys.succeeded(store, store.jobs.submit(JobKind.SEARCH, spec).id)
    assert job.result is not None
    (winner,) = job.result["winners"]  # type: ignore[misc]
    chain = store.blocks.chain(winner["chain"])  # type: ignore[index,call-overload,arg-type]
    ops = [block.spec.op for block in chain.blocks]
    assert ops == ["nasnet.stem", "nasnet.cell", "nasnet.cell", "nasnet.head"]
    assert store.blocks.onnx(chain.id)
    (candidate,) = store.jobs.candidates(job.id, arm=Arm.SEARCH)
    assert candidate.metrics["latency_ms"] <= 1000
    told = [event.data or {} for event in store.jobs.events(job.id)]
    metrics = [item["metrics"] for item in told if item.get("kind") == "metrics"]
    shares = {name: value for name, value in metrics[-1].items() if name.startswith("share_")}
    assert shares.keys() == {f"share_{name}" for name in SPACE["ops"]}  # type: ignore[attr-defined]
    assert abs(sum(shares.values()) - 1) < 1e-6
