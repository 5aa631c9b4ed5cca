"""What ``python -m workers`` does once its arguments are read."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from workers.embedded import EmbeddedWorker
from workers.session import Timing
from workers.worker import Worker
from zoo.errors import CapacityError, EnvironmentUnfitError, InvalidInputError
from zoo.jobs import Job, JobState
from zoo.store import open_store
from zoo.store.protocols import Store

SUCCESS, FAILED, INTERRUPTED = 0, 1, 130

PROGRESS_INTERVAL_S = 1.0


def run(options: argparse.Namespace, timing: Timing | None = None) -> int:
    """Open the store, do what was asked, and return the exit code.

    Raises:
        InvalidInputError: No database is named.
        BlockyardError: What the command raises.
    """
    if not options.db:
        raise InvalidInputError("no database; give --db sqlite:///zoo.db or set BLOCKYARD_URL")
    with contextlib.closing(open_store(options.db, files=options.files)) as store:
        if options.command in ("serve", "up"):
            return _serve(options, store)
        commands: dict[str, Callable[[argparse.Namespace, Store, Timing | None], int]] = {
            "worker": _celery_worker if getattr(options, "broker", None) else _worker,
            "run": _run_job,
        }
        return commands[options.command](options, store, timing)


def _worker(options: argparse.Namespace, store: Store, timing: Timing | None) -> int:
    worker = EmbeddedWorker(store, data_root=options.data, timing=timing)
    stopped = threading.Event()
    with _signals(stopped.set):
        worker.start()
        sys.stderr.write(f"worker {worker.id} polls {_shown(options.db)}\n")
        stopped.wait()
        worker.stop()
    return SUCCESS


def _celery_worker(options: argparse.Namespace, store: Store, timing: Timing | None) -> int:
    from celery.signals import worker_shutting_down

    from workers.app import QUEUE, CeleryQueue, make_app, queue_of
    from workers.context import refs
    from workers.tasks import register

    queue = CeleryQueue(options.broker, store)
    worker = Worker(store, data_root=options.data, queue=queue, timing=timing)
    app = make_app(options.broker, [QUEUE, *(queue_of(ref) for ref in refs(worker.devices))])
    register(app, worker)

    def stop(**_: object) -> None:
        worker.stop()

    worker_shutting_down.connect(stop, weak=False)
    worker.open()
    try:
        sys.stderr.write(f"worker {worker.id} listens to the broker\n")
        # A thread beside the consumer: it keeps its connection while a job runs, and unlike
        # a forked process the job may use CUDA and start processes of its own.
        celery = app.Worker(
            hostname=f"{worker.id}@%h",
            pool="threads",
            concurrency=1,
            loglevel=options.log_level.upper(),
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        celery.start()
        return SUCCESS if celery.exitcode in (None, 0) else FAILED
    finally:
        worker.stop()
        worker.close()
        queue.close()


def _run_job(options: argparse.Namespace, store: Store, timing: Timing | None) -> int:
    """Run one job here with its progress on stderr; a signal hands it back."""
    worker = Worker(store, data_root=options.data, timing=timing)
    finished = threading.Event()
    watcher = threading.Thread(
        target=_show_progress, args=(store, options.job_id, finished), daemon=True
    )
    with _signals(worker.stop):
        worker.open()
        watcher.start()
        try:
            store.jobs.reap()  # lest the job still seem to run in a worker that died
            job = worker.run(options.job_id)
        finally:
            finished.set()
            watcher.join()
            worker.close()
    if job is None:
        return _explain_unclaimed(store.jobs.job(options.job_id), interrupted=worker.stopping)
    sys.stderr.write(f"{job.id} {job.state}{f': {job.reason}' if job.reason else ''}\n")
    if job.state is JobState.SUCCEEDED:
        return SUCCESS
    return INTERRUPTED if worker.stopping else FAILED


def _explain_unclaimed(job: Job, *, interrupted: bool) -> int:
    if job.state is JobState.SUCCEEDED:
        return SUCCESS
    if interrupted:
        return INTERRUPTED
    if job.state is JobState.QUEUED:
        raise EnvironmentUnfitError(
            f"job {job.id} asks for the device {job.device}, which is not on this machine; "
            "start a worker where it is"
        )
    hint = "resume it first" if job.state is JobState.PAUSED else "nothing is left to run"
    if job.state is JobState.RUNNING:
        hint = f"worker {job.worker} runs it already"
    raise InvalidInputError(f"job {job.id} is {job.state}: {hint}")


def _show_progress(store: Store, job_id: str, finished: threading.Event) -> None:
    shown = None
    while not finished.wait(PROGRESS_INTERVAL_S):
        try:
            progress = store.jobs.job(job_id).progress
        except CapacityError:
            continue  # the job waits for the database, and so does its progress
        line = f"{progress.get('phase')}: {progress.get('message')}"
        eta = progress.get("eta_s")
        if progress and line != shown:
            shown = line
            sys.stderr.write(line + (f" (about {eta:.0f} s left)\n" if eta else "\n"))
            sys.stderr.flush()


def _serve(options: argparse.Namespace, store: Store) -> int:
    from serving.api import ApiSettings
    from workers.serve import serve

    up = options.command == "up"
    serve(
        store,
        ApiSettings(host=options.host, port=options.port),
        broker=options.broker,
        with_worker=up or options.with_worker,
        data_root=options.data,
        device=options.device,
        pages_port=options.ui_port if up and options.ui else None,
    )
    return SUCCESS


@contextlib.contextmanager
def _signals(act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` on the first SIGINT or SIGTERM; the second one ends the process."""
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, _: FrameType | None) -> None:
        for known, handler in before.items():
            signal.signal(known, handler)
        act()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shown(url: str) -> str:
    """Return a database URL without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:***@{tail}" if at and ":" in head[8:] else url
