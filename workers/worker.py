"""A worker: claims one job at a time, runs it, and says what became of it."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from nas.plugins import catalogue
from serving.runners.devices import local_devices
from workers.context import JobContext, refs
from workers.protocols import JobQueue
from workers.reaper import Reaper
from workers.session import JobStoppedError, Session, Stop, Timing
from workers.supervisor import Trainer
from zoo.canonical import Json
from zoo.errors import (
    BlockyardError,
    CapacityError,
    InfeasibleError,
    NotFoundError,
    StaleTokenError,
    StorageFullError,
)
from zoo.jobs import Job, JobKind, JobState
from zoo.spec import Device
from zoo.store.protocols import JobQuery, Store, WorkerInfo

logger = logging.getLogger(__name__)

Run = Callable[[JobContext], Mapping[str, Json]]

JOBS: Mapping[JobKind, str] = {
    JobKind.SEARCH: "workers.search_job",
    JobKind.TRAIN: "workers.train_job",
    JobKind.PREVIEW: "workers.preview",
    JobKind.PROFILE: "workers.profile_job",
    JobKind.MEASURE: "workers.measure_job",
    JobKind.ASSEMBLE: "workers.assemble_job",
    JobKind.COST_TABLE: "workers.cost_table_job",
    JobKind.FRONTS: "workers.fronts_job",
}
"""Where each kind's ``run`` is."""

LONG = frozenset({JobKind.SEARCH, JobKind.TRAIN})
"""Kinds that a worker does not run for others while a job of its own waits."""


class Worker:
    """One process's worker: its trainer, its devices, its announcements and its reaper.

    ``run`` is called by one thread at a time; ``stop`` by any.
    """

    def __init__(
        self,
        store: Store,
        *,
        data_root: Path | None = None,
        devices: Sequence[Device] | None = None,
        queue: JobQueue | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.id = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.devices = tuple(local_devices() if devices is None else devices)
        self.timing = timing or Timing()
        self._store = store
        self._queue = queue
        self._trainer = Trainer(data_root=data_root)
        self._sessions: list[Session] = []
        self._lock = threading.Lock()
        self._stopping = False
        self._helped_at = 0.0
        self._reaper = Reaper(store, queue, self.timing, self._announce)

    @property
    def store(self) -> Store:
        return self._store

    @property
    def trainer_pid(self) -> int | None:
        """The process id of the trainer, or None while none runs."""
        return self._trainer.pid

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping

    def open(self) -> None:
        """Announce the devices, start the reaper, and warm the trainer up."""
        self._catalogue = catalogue()
        self._announce()
        self._reaper.start()
        self._trainer.start()

    def stop(self) -> None:
        """Have the present job checkpointed and handed back; ``run`` then takes no other."""
        self._stopping = True
        with self._lock:
            for session in self._sessions:
                session.ask(Stop.HAND_BACK)

    def close(self) -> None:
        """End the trainer and take back the announcement; call after ``run`` returned."""
        self._reaper.stop()
        self._trainer.kill()
        try:
            self._store.devices.retire(self.id)
        except CapacityError as error:
            logger.warning("worker %s could not sign off: %s", self.id, error)

    def run(self, job_id: str | None = None, *, outer: Session | None = None) -> Job | None:
        """Claim and run this job, or the oldest that waits; None if there is none to claim.

        ``outer`` is the session of the job that waits meanwhile, if one does.

        Raises:
            NotFoundError: There is no job ``job_id``.
        """
        if self._stopping:
            return None
        job = self._store.jobs.claim(
            self.id,
            lease_s=self.timing.lease_s,
            devices=refs(self.devices),
            job_id=job_id,
        )
        if job is None:
            return None
        session = Session(
            self._store, job, holder=f"{self.id}/{job.id}", timing=self.timing, outer=outer
        )
        with self._lock:
            self._sessions.append(session)
        try:
            with session:
                if self._stopping:
                    session.ask(Stop.HAND_BACK)
                ending = self._perform(session)
        finally:
            with self._lock:
                self._sessions.remove(session)
        return self._finish(session, ending) if ending else None

    def _perform(self, session: Session) -> _Ending | None:
        """Run the job's code; None if the job is no longer ours to end."""
        context = JobContext(
            session=session,
            trainer=self._trainer,
            devices=self.devices,
            queue=self._queue,
            help=partial(self._help, session),
        )
        try:
            run: Run = importlib.import_module(JOBS[session.job.kind]).run
            return _Ending(JobState.SUCCEEDED, result=run(context))
        except JobStoppedError as stopped:
            self._trainer.kill()
            if not self._stopping:
                self._trainer.start()
            return _STOPPED[stopped.stop]
        except StaleTokenError as error:
            logger.warning("%s", error)
        except (StorageFullError, InfeasibleError) as error:
            nearest = getattr(error, "nearest", None)
            return _Ending(JobState.FAILED, reason=str(error), result={"nearest": nearest})
        except CapacityError as error:
            logger.warning("%s is left to its lease: %s", session.job.id, error)
        except BlockyardError as error:
            return _Ending(JobState.FAILED, reason=str(error))
        except Exception as error:
            logger.exception("%s failed", session.job.id)
            reason = f"internal error, please report it: {type(error).__name__}: {error}"
            return _Ending(JobState.FAILED, reason=reason)
        self._trainer.kill()
        return None

    def _finish(self, session: Session, ending: _Ending) -> Job | None:
        """Write the ending; wait for a database that is away for no longer than the lease."""
        deadline = time.monotonic() + self.timing.lease_s
        while True:
            try:
                job = self._store.jobs.finish(
                    session.job.id,
                    session.token,
                    ending.state,
                    result=ending.result,
                    reason=ending.reason,
                )
            except StaleTokenError as error:
                logger.warning("%s", error)
                return None
            except CapacityError as error:
                if time.monotonic() > deadline:
                    logger.warning("%s is left to its lease: %s", session.job.id, error)
                    return None
                time.sleep(self.timing.poll_s)
            else:
                logger.info("%s: %s %s", job.id, job.state, job.reason or "")
                if job.state is JobState.QUEUED and self._queue is not None:
                    self._queue.send(job.id)
                return job

    def _help(self, session: Session, *, blocked: bool = False) -> None:
        """Run what others wait for on our devices.

        Between two own steps that is a measurement; while ``blocked``, waiting for another
        worker, everything but what is long, since that worker may be waiting for us.
        """
        now = time.monotonic()
        if now - self._helped_at < self.timing.poll_s:
            return
        self._helped_at = now
        mine = tuple(refs(self.devices))
        for kind in JobKind:
            if kind is JobKind.MEASURE or (blocked and kind not in LONG):
                query = JobQuery(kind=kind, state=JobState.QUEUED, device=mine)
                for job in reversed(session.store.jobs.jobs(query).items):
                    session.check()
                    self._run_for_another(job.id, session)

    def _run_for_another(self, job_id: str, session: Session) -> None:
        try:
            self.run(job_id, outer=session)
        except (CapacityError, NotFoundError) as error:  # its affair, not that of our job
            logger.warning("%s could not be claimed: %s", job_id, error)

    def _announce(self) -> None:
        self._store.devices.announce(
            WorkerInfo(id=self.id, devices=self.devices, catalogue=self._catalogue)
        )


class _Ending:
    """How a job ended: its next state, and why or with what."""

    def __init__(
        self,
        state: JobState,
        *,
        reason: str | None = None,
        result: Mapping[str, Json] | None = None,
    ) -> None:
        self.state = state
        self.reason = reason
        self.result = result


_STOPPED: Mapping[Stop, _Ending | None] = {
    Stop.CANCEL: _Ending(JobState.CANCELLED, reason="cancelled on request"),
    Stop.PAUSE: _Ending(JobState.PAUSED, reason="paused on request"),
    Stop.HAND_BACK: _Ending(JobState.QUEUED, reason="handed back by a worker that stopped"),
    Stop.LOST: None,
}


def waits(store: Store, job_id: str) -> bool:
    """Say whether a job exists and is QUEUED; messages may name anything."""
    try:
        return store.jobs.job(job_id).state is JobState.QUEUED
    except NotFoundError:
        return False
