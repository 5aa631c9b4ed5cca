"""What a worker does beside its job: announce itself, requeue the lost, refill the broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from workers.protocols import JobQueue
from workers.session import Timing
from zoo.errors import BlockyardError
from zoo.jobs import Job, JobState
from zoo.store.clock import utc_now
from zoo.store.protocols import JobQuery, Store

logger = logging.getLogger(__name__)


class Reaper:
    """A thread in every worker; it needs no leader, since each act is safe to repeat.

    A worker counts as dead once its job's lease has not moved for as long as a lease lasts,
    or, where the lease is over, for two heartbeats: by this process's own clock. So neither a
    wall clock that jumps nor two hosts whose clocks differ take a job from a worker that
    lives, or leave it to one that does not.
    """

    def __init__(
        self,
        store: Store,
        queue: JobQueue | None,
        timing: Timing,
        announce: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._queue = queue
        self._clock = clock
        self._today = today
        self._timing = timing
        self._leases: dict[str, tuple[datetime, float]] = {}
        now = clock()
        self._chores = [
            _Chore(announce, timing.announce_s, now + timing.announce_s),
            _Chore(self.reap, timing.reap_s, now),
            _Chore(self.refill, timing.refill_s, now + timing.refill_s),
        ]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a chore under way is finished."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def reap(self) -> list[Job]:
        """Requeue jobs whose lease was not extended in time and tell the queue of them."""
        now, today, seen = self._clock(), self._today(), self._leases
        self._leases = {}
        for job in self._jobs(JobState.RUNNING):
            if job.lease_expires_at is not None:
                lease, since = seen.get(job.id, (None, now))
                moved = lease != job.lease_expires_at
                self._leases[job.id] = (job.lease_expires_at, now if moved else since)
        unmoved = {
            job_id: lease
            for job_id, (lease, since) in self._leases.items()
            if now - since
            >= (2 * self._timing.heartbeat_s if lease < today else self._timing.lease_s)
        }
        reaped = self._store.jobs.reap(unmoved) if unmoved else []
        for job in reaped:
            logger.warning("%s: %s; now %s", job.id, job.reason, job.state)
            if job.state is JobState.QUEUED and self._queue is not None:
                self._queue.send(job.id)
        return reaped

    def refill(self) -> None:
        """Announce waiting jobs again where the broker holds fewer messages than jobs wait.

        A broker that lost its messages is so refilled; a doubled message does no harm.
        """
        if self._queue is None:
            return
        waiting = self._jobs(JobState.QUEUED)
        missing = getattr(self._queue, "missing", None)
        for job in missing(waiting) if missing is not None else waiting:
            self._queue.send(job.id)

    def _jobs(self, state: JobState) -> list[Job]:
        found: list[Job] = []
        cursor = None
        while True:
            page = self._store.jobs.jobs(JobQuery(state=state), limit=500, cursor=cursor)
            found += page.items
            cursor = page.next
            if cursor is None:
                return found

    def _run(self) -> None:
        while not self._stopped.is_set():
            now = self._clock()
            for chore in self._chores:
                if now >= chore.due:
                    chore.due = now + chore.every
                    self._try(chore.act)
            soonest = min(chore.due for chore in self._chores)
            self._stopped.wait(max(0.05, soonest - self._clock()))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (BlockyardError, OSError) as error:
            logger.warning("%s: %s; trying again later", getattr(act, "__name__", "chore"), error)


class _Chore:
    def __init__(self, act: Callable[[], object], every: float, due: float) -> None:
        self.act = act
        self.every = every
        self.due = due
