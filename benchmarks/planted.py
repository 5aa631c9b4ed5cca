"""Planted operations: does each method find the only one that can tell the classes apart?

Every image is a texture: white noise to which itself is added, shifted by ``lag`` pixels
to the right in one class and downwards in the other. Pixels less than ``lag`` apart are
independent in both classes, and look the same at every place; so whatever is computed
from windows of up to ``lag`` pixels and then averaged over the image has the same mean in
both classes. In each space below one operation has a nonlinearity that sees more than
``lag`` pixels, and all others have none: a network without it is at chance, however long
it trains. (That convolutions after the last ReLU do not count is why the dilated ones of
DARTS are as blind here as a skip.)

Each method searches a space of one decision, in its own class and through the job loop
of an in-process worker, once a seed: data, weights and alphas differ. It is right if the
network that it found best has the planted operation. A cell has two edges, which read the
same image: once one carries the operation the other adds nothing, so that it is counted
apart how often both do. By chance one of seven operations is on one of two edges in 27 %
of searches, on both in 2 %. A NASNet of two cells of one block has four sides, so that
one of four operations is on one of them by chance in 68 % of networks: this search is right if
its controller, in the end, gives the planted operation the largest share of its probability
(by chance in 25 %). The same is done with shuffled labels.

Key of the JSON: ``methods_right_of_10``, the least over the methods of right searches, in
ten; the baseline is the most over the methods with shuffled labels. The ratio is null
where that is 0.

Run: ``python benchmarks/planted.py [--seeds 10] [--methods darts …] [--json]``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The thread pools of trainers read it; two trainers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import report

from nas.plugins import catalogue, method_class, space_of
from serving.runners.devices import local_devices
from workers.embedded import EmbeddedWorker
from workers.session import Timing
from zoo.errors import TrainerError
from zoo.jobs import Arm, Job, JobKind, JobState
from zoo.schemas import parse_request
from zoo.spec import Architecture
from zoo.store import open_store
from zoo.store.protocols import Store

TIMING = Timing(poll_s=0.05, checkpoint_s=60.0)
IMAGES = 8000
DEADLINE_S = 3600.0
SHARE = "share_"
"""What the names of an operation's share in ``nasnet-ppo``'s metrics begin with."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One method on one space, the operation planted there, and how to read what it chose."""

    method: str
    space: str
    space_params: dict[str, Any]
    params: dict[str, Any]
    operation: str
    lag: int
    size: int
    chosen: Callable[[Store, Job], set[str]]


def best(read: Callable[[Any, Architecture], set[str]]) -> Callable[[Store, Job], set[str]]:
    """Return what reads the operations of the network that a search found best."""

    def chosen(store: Store, job: Job) -> set[str]:
        found = store.jobs.candidates(job.id, arm=Arm.SEARCH)[0]
        architecture = Architecture.from_json(found.architecture)
        return read(space_of(architecture), architecture)

    return chosen


def favourite(store: Store, job: Job) -> set[str]:
    """Return the operation that the controller had the largest share for, at the last step."""
    told: list[Any] = [event.data for event in store.jobs.events(job.id) if event.data]
    metrics = [data["metrics"] for data in told if data.get("kind") == "metrics"][-1]
    shares = {name: value for name, value in metrics.items() if name.startswith(SHARE)}
    return {max(shares, key=shares.__getitem__).removeprefix(SHARE)}


def _cell(space: Any, architecture: Architecture) -> set[str]:
    """Return the operations of the reduction cell, the only one in a network of one cell."""
    return {op for node in space.decode(architecture).reduce for op, _ in node}


def _blocks(space: Any, architecture: Architecture) -> set[str]:
    return set(space.summary(architecture).split())


def _one_cell(method: str, **changes: Any) -> Task:
    """Return a task for the cell searches by gradient: one cell of one node, eight operations."""
    ops = changes.pop("ops", "darts")
    sharp = ops != "darts"
    params = {"epochs": 2, "batch_size": 32, "augment": False, "arch_lr": 0.01}
    params |= {"lr": 0.1, "lr_min": 0.01, "warmup_epochs": 0}
    return Task(
        method=method,
        space="darts",
        space_params={
            "cells": 1, "nodes": 1, "channels": changes.pop("channels", 4), "ops": ops,
        },
        params=params | changes,
        operation="sharp_dil_conv_5x5" if sharp else "sep_conv_5x5",
        lag=8 if sharp else 5,
        size=20 if sharp else 16,
        chosen=best(_cell),
    )  # fmt: skip


_PLAIN = {"lr_warmup_epochs": 0, "auto_augment": False, "cutout": 0.0}

TASKS: dict[str, Task] = {
    "darts": _one_cell("darts"),
    "pc-darts": _one_cell("pc-darts", channels=8, k=2, epochs=3, lr=0.2, lr_min=0.02),
    "sharp-darts": _one_cell("sharp-darts", ops="sharp-darts", **_PLAIN),
    "proxyless": Task(
        method="proxyless",
        space="mbconv",
        space_params={
            "preset": "cifar", "widths": [8], "depths": [1], "strides": [1], "stem": 8,
            "first": 8, "last": 16, "kernels": [1, 3, 11], "expands": [2],
        },
        params={
            "epochs": 4, "warmup_epochs": 0, "batch_size": 32, "augment": False, "lr": 0.2,
            "arch_lr": 0.02, "arch_every": 1, "held_out": 0.5, "label_smoothing": 0.0,
            "loss": "none",
        },
        operation="11x11_MB2",
        lag=8,
        size=16,
        chosen=best(_blocks),
    ),
    "nasnet-ppo": Task(
        method="nasnet-ppo",
        space="nasnet",
        space_params={
            "cells": 1, "reductions": 1, "num_blocks": 1, "channels": 4, "stem_channels": 4,
            "combines": ["add"], "ops": ["identity", "conv_3x3", "max_pool_3x3", "sep_conv_7x7"],
        },
        params={
            "epochs": 1, "warmup_epochs": 1, "batch_size": 32, "augment": False, "lr": 0.15,
            "clip_norm": 1.0, "controller_every": 3, "samples": 8, "reward_batch_size": 32,
            "held_out": 0.05, "final_samples": 4, "controller_lr": 0.01, "entropy_weight": 0.01,
            "hidden": 32,
        },
        operation="sep_conv_7x7",
        lag=10,
        size=32,
        chosen=favourite,
    ),
}  # fmt: skip
"""Name → task; the published rates are raised, since a search here has 150 to 300 steps."""

LEFT_OUT = {"pc-darts-imagenet": "pc-darts with other defaults"}


@dataclass
class Count:
    """How many searches of a task were right, throughout so, of how many, and their times."""

    right: int = 0
    throughout: int = 0
    of: int = 0
    seconds: list[float] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--workers", type=int, default=2, help="searches at a time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    counts = search_all(options.methods, options.seeds, options.images, options.workers)
    wall_s = time.monotonic() - started

    def of_ten(name: str, shuffled: bool) -> float:
        count = counts[name, shuffled]
        return 10 * count.right / count.of

    value = min(of_ten(name, False) for name in options.methods)
    baseline = max(of_ten(name, True) for name in options.methods)
    missing = sorted(set(trainable()) - {task.method for task in TASKS.values()} - set(LEFT_OUT))
    details = {
        "seeds": options.seeds,
        "wall_s": round(wall_s, 1),
        "without_a_task": missing,
        "methods": {
            name: {
                "operation": TASKS[name].operation,
                "right_of_10": of_ten(name, False),
                "on_every_edge": counts[name, False].throughout,
                "shuffled_right_of_10": of_ten(name, True),
                "search_s": round(float(np.median(counts[name, False].seconds)), 2),
            }
            for name in options.methods
        },
    }
    if options.json:
        ratio = round(value / baseline, 4) if baseline else None
        report.print_json(
            "planted",
            device=local_devices()[0].to_json(),
            versions=report.versions("torch"),
            results={"methods_right_of_10": {"value": value, "baseline": baseline, "ratio": ratio}},
            details=details,
        )
        return 0
    report.print_table(
        f"Right of ten over {options.seeds} seeds, {wall_s:.0f} s",
        ["method", "planted operation", "right", "on every edge", "shuffled", "a search takes"],
        [
            [name, row["operation"], row["right_of_10"],
                row["on_every_edge"], row["shuffled_right_of_10"],
             f"{row['search_s']} s"]
            for name, row in details["methods"].items()
        ],
    )  # fmt: skip
    if missing:
        print(f"without a task: {', '.join(missing)}")
    return 0


def trainable() -> Iterator[str]:
    """Yield the registered methods that train a network while they search."""
    listed: Any = catalogue()["methods"]
    for item in listed:
        if "error" not in item and getattr(method_class(item["name"]), "trains", False):
            yield item["name"]


def search_all(
    names: Sequence[str], seeds: int, images: int, workers: int
) -> dict[tuple[str, bool], Count]:
    """Run every search as a job, and count by task and whether labels were shuffled."""
    counts = {(name, shuffled): Count() for name in names for shuffled in (False, True)}
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        store = open_store(f"sqlite:///{folder}/zoo.db")
        waiting: dict[str, tuple[str, bool]] = {}
        # The first ones are searched while the data of the next are made.
        with working(store, workers):
            for seed in range(seeds):
                for name in names:
                    for shuffled in (False, True):
                        path = write_textures(Path(folder), TASKS[name], images, seed, shuffled)
                        job = submit(store, TASKS[name], path, seed)
                        waiting[job.id] = (name, shuffled)
            for job in ended(store, list(waiting)):
                name, shuffled = waiting[job.id]
                count = counts[name, shuffled]
                count.of += 1
                found = TASKS[name].chosen(store, job)
                count.right += TASKS[name].operation in found
                count.throughout += found == {TASKS[name].operation}
                count.seconds.append(seconds(job))
                labels = "shuffled labels" if shuffled else "labels"
                print(f"{name}, {labels}: {', '.join(sorted(found))}", flush=True)
        store.close()
    return counts


def textures(
    count: int, size: int, lag: int, *, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images ``(count, 1, size, size)`` uint8, labels (0 across, 1 down), those shuffled."""
    rng = np.random.default_rng([seed, size, lag])
    labels = np.arange(count) % 2
    noise = rng.standard_normal((count, size + lag, size + lag))
    right, down = noise[:, :size, lag:], noise[:, lag:, :size]
    added = np.where(labels[:, None, None] == 0, right, down)
    values = (noise[:, :size, :size] + added) / np.sqrt(2)
    images = np.clip(128 + 50 * values, 0, 255).astype(np.uint8)[:, None]
    return images, labels, rng.permutation(labels)


def write_textures(folder: Path, task: Task, count: int, seed: int, shuffled: bool) -> Path:
    """Write the data of one search, unless another one of the same needed it before."""
    paths = [folder / f"{task.size}-{task.lag}-{seed}-{kind}.npz" for kind in ("true", "shuffled")]
    if not paths[0].exists():
        images, *labellings = textures(count, task.size, task.lag, seed=seed)
        for path, labels in zip(paths, labellings, strict=True):
            np.savez(path, images=images, labels=labels)
    return paths[shuffled]


def submit(store: Store, task: Task, data: Path, seed: int) -> Job:
    request = {
        "method": {"name": task.method, "params": task.params},
        "space": {"name": task.space, "params": task.space_params},
        "data": f"npz:{data}",
        "objectives": ["accuracy"],
        # Of the network found, which was chosen before: as short as can be.
        "recipe": {"epochs": 1, "batch_size": 512, "augment": False},
        "winners": 0,
        "seed": seed,
    }
    return store.jobs.submit(
        JobKind.SEARCH, parse_request(JobKind.SEARCH, request).model_dump(mode="json")
    )


@contextmanager
def working(store: Store, number: int) -> Iterator[None]:
    """Run in-process workers, each with a trainer of its own."""
    workers = [EmbeddedWorker(store, timing=TIMING) for _ in range(number)]
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        for worker in workers:
            worker.stop()


def ended(store: Store, ids: list[str]) -> Iterator[Job]:
    """Yield every job once it succeeded.

    Raises:
        TrainerError: One failed, or they took too long.
    """
    deadline = time.monotonic() + DEADLINE_S
    while ids:
        for job in [job for job in map(store.jobs.job, ids) if job.state.final]:
            if job.state is not JobState.SUCCEEDED:
                raise TrainerError(f"a search ended as {job.state}: {job.reason}")
            ids.remove(job.id)
            yield job
        if time.monotonic() > deadline:
            raise TrainerError(f"{len(ids)} searches did not end within {DEADLINE_S:g} s")
        time.sleep(0.1)


def seconds(job: Job) -> float:
    if job.started_at is None or job.finished_at is None:
        return 0.0
    return (job.finished_at - job.started_at).total_seconds()


if __name__ == "__main__":
    sys.exit(main())
