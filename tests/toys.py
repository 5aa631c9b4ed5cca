"""The toy plug-in on the path, and the small searches that tests run over it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from workers.embedded import EmbeddedWorker
from workers.session import Timing
from zoo.jobs import Job, JobKind, JobState
from zoo.schemas import parse_request
from zoo.store.protocols import Store

PLUGIN = Path(__file__).parent / "plugin"

QUICK = Timing(
    lease_s=4.0,
    heartbeat_s=0.3,
    announce_s=1.0,
    reap_s=0.5,
    refill_s=1.0,
    poll_s=0.1,
    step_s=0.2,
    checkpoint_s=0.2,
    pause_grace_s=3.0,
)


def install() -> None:
    """Put the plug-in on this process's path, as an installed package would be."""
    if str(PLUGIN) not in sys.path:
        sys.path.append(str(PLUGIN))
        import_module("nas.plugins")._entries.cache_clear()
        import_module("blockyard_toys")


def environment() -> dict[str, str]:
    """Return the environment of a child process that has the plug-in."""
    paths = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def search(
    *, space: Mapping[str, Any] | None = None, candidates: int = 6, **changes: Any
) -> dict[str, Any]:
    """Return the validated spec of a small search over the toy space on digits."""
    request: dict[str, Any] = {
        "method": {"name": "random", "params": {"candidates": candidates}},
        "space": {"name": "toy", "params": dict(space or {})},
        "data": "digits",
        "objectives": ["accuracy", "num_params"],
        "recipe": {"epochs": 1, "batch_size": 256},
        "final_recipe": {"epochs": 1, "batch_size": 256},
    }
    return parse_request(JobKind.SEARCH, request | changes).model_dump(mode="json")


def wait_for(check: Callable[[], Any], *, timeout_s: float = 60.0, what: str = "it") -> Any:
    """Return the first true value of ``check``; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {timeout_s:g} s")


def finished(store: Store, job_id: str, *, timeout_s: float = 90.0) -> Job:
    """Return the job once it is final."""

    def final() -> Job | None:
        job = store.jobs.job(job_id)
        return job if job.state.final else None

    job: Job = wait_for(final, timeout_s=timeout_s, what=f"the end of {job_id}")
    return job


def succeeded(store: Store, job_id: str, *, timeout_s: float = 90.0) -> Job:
    """Return the job once it has ended well."""
    job = finished(store, job_id, timeout_s=timeout_s)
    assert job.state is JobState.SUCCEEDED, job.reason
    return job


@contextmanager
def working(store: Store, timing: Timing = QUICK) -> Iterator[EmbeddedWorker]:
    """Run an embedded worker for the length of the block."""
    worker = EmbeddedWorker(store, timing=timing)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
