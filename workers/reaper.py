"""What a worker does beside its job: announce itself, requeue the lost, refill the broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from workers.protocols import JobQueue
from workers.session import Timing
from zoo.errors import BlockyardError
from zoo.jobs import Job, JobState
from zoo.store.protocols import JobQuery, Store

logger = logging.getLogger(__name__)


class Reaper:
    """A thread in every worker; it needs no leader, since each act is safe to repeat."""

    def __init__(
        self,
        store: Store,
        queue: JobQueue | None,
        timing: Timing,
        announce: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._queue = queue
        self._clock = clock
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
        """Requeue jobs whose lease expired and tell the queue of them."""
        reaped = self._store.jobs.reap()
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
        waiting: list[Job] = []
        cursor = None
        while True:
            page = self._store.jobs.jobs(JobQuery(state=JobState.QUEUED), limit=500, cursor=cursor)
            waiting += page.items
            cursor = page.next
            if cursor is None:
                break
        missing = getattr(self._queue, "missing", None)
        for job in missing(waiting) if missing is not None else waiting:
            self._queue.send(job.id)

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
