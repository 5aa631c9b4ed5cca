"""Waiting for a job, and running it in a child process where no worker would."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias

from zoo.errors import ConflictError, DeadlineExceededError, EnvironmentUnfitError
from zoo.jobs import Job, JobState

Read: TypeAlias = Callable[[str], Job]
LastWords: TypeAlias = Callable[[], str | None]
"""What a worker of our own said last, once it has ended; None while it runs."""

STOP_TIMEOUT_S = 20.0


def watch_job(read: Read, job_id: str, *, poll_s: float) -> Iterator[Job]:
    """Yield the job now, and again whenever more than its lease changed, until it is final."""
    last: Job | None = None
    while True:
        job = dataclasses.replace(read(job_id), lease_expires_at=None)
        if job != last:
            yield job
            last = job
        if job.state.final:
            return
        time.sleep(poll_s)


def wait_for(
    read: Read,
    job_id: str,
    *,
    timeout_s: float | None,
    alone: Callable[[], bool] = lambda: False,
    local: Callable[[], AbstractContextManager[LastWords]] = lambda: nullcontext(lambda: None),
    poll_s: float = 0.2,
) -> Job:
    """Return the job once it succeeded; from when ``alone`` is true, run it in ``local``.

    Raises:
        ConflictError: It failed, was cancelled, or was paused in a worker of our own.
        DeadlineExceededError: It is not final after ``timeout_s``.
        EnvironmentUnfitError: A worker of our own ended without finishing the job.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    job = read(job_id)
    last_words: LastWords | None = None
    with ExitStack() as stack:
        while not job.state.final and (deadline is None or time.monotonic() < deadline):
            if last_words is None and alone():
                last_words = stack.enter_context(local())
            time.sleep(poll_s)
            # In this order: a worker that has ended has written its result before.
            said = last_words() if last_words is not None else None
            job = read(job_id)
            if said is not None and not job.state.final:
                raise _left_alone(job, said)
    if not job.state.final:
        raise DeadlineExceededError(
            f"job {job_id} is {job.state} after {timeout_s} s; wait longer or cancel it"
        )
    if job.state is not JobState.SUCCEEDED:
        raise ConflictError(f"job {job_id} is {job.state}: {job.reason or 'no reason was given'}")
    return job


@contextmanager
def local_worker(
    job_id: str, *, url: str, files: Path | None, data: Path | None = None
) -> Iterator[LastWords]:
    """Run one job in a child process, which ends with the block."""
    command = [sys.executable, "-m", "workers", "run", job_id]
    for option, folder in (("--files", files), ("--data", data)):
        command += [option, str(folder)] if folder is not None else []
    with tempfile.TemporaryFile() as output:
        worker = subprocess.Popen(
            command,
            # Every user of a machine can read command lines, and a URL may hold a password.
            env=os.environ | {"BLOCKYARD_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

        def last_words() -> str | None:
            if worker.poll() is None:
                return None
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"exit status {worker.returncode}"

        try:
            yield last_words
        finally:
            _stop(worker)


def _left_alone(job: Job, said: str) -> ConflictError | EnvironmentUnfitError:
    if job.state is JobState.PAUSED:
        return ConflictError(f"job {job.id} was paused; resume it and wait again")
    return EnvironmentUnfitError(
        f"the worker for job {job.id} ended: {said}; start one with `blockyard worker`"
    )


def _stop(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is not None:
        return
    worker.terminate()
    try:
        worker.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
