"""One claimed job: its lease, its progress, and what somebody asked of it meanwhile."""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from workers.patience import patient
from zoo.canonical import Json
from zoo.errors import CapacityError, NotFoundError, StaleTokenError
from zoo.jobs import Job, JobRequest
from zoo.spec import Device
from zoo.store.protocols import Store

logger = logging.getLogger(__name__)

Mode = Literal["shared", "exclusive"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often a worker does what, in seconds.

    A lease outlives several missed heartbeats; a worker that died is noticed after
    ``lease_s + 2 * reap_s`` at the latest. A request to cancel is seen within ``heartbeat_s``.
    ``step_s`` is how long a gradient method runs between two looks at the world,
    ``checkpoint_s`` how much of a search a kill may repeat.
    """

    lease_s: float = 30.0
    heartbeat_s: float = 2.0
    announce_s: float = 5.0
    reap_s: float = 5.0
    refill_s: float = 15.0
    poll_s: float = 0.5
    step_s: float = 1.0
    checkpoint_s: float = 10.0
    pause_grace_s: float = 5.0


class Stop(enum.StrEnum):
    """Why a job must let go before it is done."""

    CANCEL = "cancel"
    PAUSE = "pause"
    HAND_BACK = "hand back"
    LOST = "lost"


class JobStoppedError(Exception):
    """Raised inside a job to unwind it; it is no failure and never reaches a user."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        super().__init__(stop)


class Session:
    """Keeps a claimed job's leases alive from a thread of its own, and carries its news.

    The job's code calls ``check`` wherever it can stop; everything it writes goes through
    the fencing token of its claim, so that a worker whose lease was taken over is refused.

    ``faults`` counts the faults of the trainer that were survived by trying again.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        *,
        holder: str,
        timing: Timing,
        outer: Session | None = None,
    ) -> None:
        """Describe a session.

        Args:
            store: Where the job is; ``self.store`` is the same one, but waits for a
                database that is away for no longer than the lease.
            job: As it was claimed.
            holder: The name under which devices are leased.
            timing: How often to do what.
            outer: That of a job which waits for this one in the same worker: told to stop,
                it has this job handed back.
        """
        self._raw = store
        self._outer = outer
        self.store = patient(store, self._await_store)
        self.faults = 0
        self.job = job
        self.token = job.token
        self.holder = holder
        self.timing = timing
        self._stop: Stop | None = None
        self._asked_at = 0.0
        self._progress: dict[str, Json] = dict(job.progress)
        self._fresh = False
        self._claims: dict[str, int] = {}
        self._devices: dict[str, Mode] = {}
        self._lock = threading.Lock()
        self._device_lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._beat, name=f"lease-{job.id}", daemon=True)

    def __enter__(self) -> Session:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    @property
    def stop(self) -> Stop | None:
        """What the job was told, if it was told to stop."""
        if self._outer is not None and self._outer.stop is not None:
            self.ask(Stop.HAND_BACK)
        return self._stop

    def ask(self, stop: Stop) -> None:
        """Tell the job to stop; cancelling overrides pausing, losing overrides all."""
        order = (None, Stop.HAND_BACK, Stop.PAUSE, Stop.CANCEL, Stop.LOST)
        with self._lock:
            if order.index(stop) > order.index(self._stop):
                self._stop = stop
                self._asked_at = time.monotonic()

    def check(self) -> None:
        """Raise ``JobStoppedError`` if the job was told to stop."""
        stop = self.stop
        if stop is not None:
            raise JobStoppedError(stop)

    def check_patiently(self) -> None:
        """As ``check``, but let a step that can be checkpointed finish within the grace."""
        may_finish = self.stop in (Stop.PAUSE, Stop.HAND_BACK)
        if may_finish and time.monotonic() - self._asked_at < self.timing.pause_grace_s:
            return
        self.check()

    def progress(
        self,
        *,
        step: int,
        total: int,
        message: str,
        phase: str,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Set what the job's page shows; it is stored with the next heartbeat."""
        finite = {key: value for key, value in (metrics or {}).items() if math.isfinite(value)}
        news: dict[str, Json] = {
            "step": step,
            "total": total,
            "message": message,
            "phase": phase,
            "eta_s": None if eta_s is None else round(eta_s, 1),
        }
        if finite:
            news["metrics"] = dict(finite)
        with self._lock:
            self._progress = news
            self._fresh = True
        self._wake.set()

    def log(
        self,
        message: str,
        *,
        level: Literal["info", "warning", "error"] = "info",
        data: Mapping[str, Json] | None = None,
    ) -> None:
        """Add a line to the job's log.

        ``data`` is for programs. Two kinds of line carry numbers to draw:

        - ``{"kind": "metrics", "phase", "step", "eta_s", "metrics": {name: number}}``:
          what a method reports of its progress, every few seconds;
        - ``{"kind": "curve", "arm", "number", "epoch": [1, 2, …], "loss": […], …}``: the
          learning curve of one candidate or winner, once it was trained. Candidates that
          were not trained here, but reused, have none.
        """
        logger.info("%s: %s", self.job.id, message)
        self.store.jobs.log(self.job.id, message, level=level, data=data)

    @contextmanager
    def claim(self, key: str, token: int) -> Iterator[None]:
        """Keep the claim of an evaluation alive for the length of the block."""
        with self._lock:
            self._claims[key] = token
        try:
            yield
        finally:
            with self._lock:
                self._claims.pop(key, None)

    @contextmanager
    def device(self, device: Device, mode: Mode) -> Iterator[None]:
        """Hold a device for the length of the block, waiting for it and looking out meanwhile."""
        place, waited = device.place, 0.0
        while not self.store.devices.acquire(place, self.holder, mode, lease_s=self.timing.lease_s):
            self.check()
            waited += self.pause(min(self.timing.poll_s, 0.05 + waited))
        with self._device_lock:
            self._devices[place] = mode
        try:
            yield
        finally:
            # Under the lock, lest a heartbeat under way takes back what was just released.
            with self._device_lock:
                del self._devices[place]
                self._try_release(place)

    def pause(self, seconds: float) -> float:
        """Sleep, but no longer than until the next look-out; return the seconds slept."""
        started = time.monotonic()
        deadline = started + seconds
        while self.stop is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return time.monotonic() - started

    def _await_store(self, error: CapacityError, first: float) -> bool:
        """Say whether to call the store again, after a while, ``first`` having failed."""
        self.check()
        if time.monotonic() - first > self.timing.lease_s:
            return False
        logger.warning("%s: %s; trying again", self.job.id, error)
        self.pause(self.timing.poll_s)
        return True

    def _try_release(self, place: str) -> None:
        try:
            self._raw.devices.release(place, self.holder)
        except CapacityError as error:
            logger.warning("device %s is released by its lease's end: %s", place, error)

    def _beat(self) -> None:
        last_success = time.monotonic()
        while not self._closed:
            started = time.monotonic()
            try:
                self._beat_once()
                last_success = started
            except (StaleTokenError, NotFoundError) as error:
                logger.warning("%s", error)
                self.ask(Stop.LOST)
                return
            except CapacityError as error:
                logger.warning("heartbeat of %s failed: %s", self.job.id, error)
                if started - last_success > self.timing.lease_s:
                    self.ask(Stop.LOST)
                    return
            except Exception:
                # Whatever it is, an unattended lease must not outlive the belief in it.
                logger.exception("heartbeat of %s failed", self.job.id)
                self.ask(Stop.LOST)
                return
            self._rest(started)

    def _rest(self, started: float) -> None:
        """Wait for the next beat; fresh progress brings it forward, though not much."""
        heartbeat = self.timing.heartbeat_s
        soonest = min(heartbeat, 0.5)
        self._wake.wait(timeout=max(0.0, started + heartbeat - time.monotonic()))
        self._wake.clear()
        rest = started + soonest - time.monotonic()
        if rest > 0 and not self._closed:
            time.sleep(rest)

    def _beat_once(self) -> None:
        with self._lock:
            progress = dict(self._progress) if self._fresh else None
            self._fresh = False
            claims = dict(self._claims)
        asked = self._raw.jobs.heartbeat(
            self.job.id, self.token, lease_s=self.timing.lease_s, progress=progress
        )
        if asked is not None:
            self.ask(Stop.CANCEL if asked is JobRequest.CANCEL else Stop.PAUSE)
        with self._device_lock:
            for place, mode in self._devices.items():
                if not self._raw.devices.acquire(
                    place, self.holder, mode, lease_s=self.timing.lease_s
                ):
                    # What is measured or trained there now is beside somebody else's work.
                    logger.warning("%s: the lease on device %s was lost", self.job.id, place)
                    self.ask(Stop.HAND_BACK)
        for key, token in claims.items():
            try:
                self._raw.evaluations.extend(key, token, lease_s=self.timing.lease_s)
            except StaleTokenError as error:
                with self._lock:
                    ended = self._claims.get(key) != token  # the evaluation was just finished
                if not ended:
                    logger.warning("%s", error)  # its result is refused; the job itself goes on


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among ``values``."""
    return {
        str(key): float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
