"""Celery as transport of job ids: what it is told, and what it is not trusted with.

SQL is the truth, so results are ignored and a message may be lost, doubled or late.
Messages are acknowledged late and not prefetched, lest an idle worker wait for one that a
busy worker holds; a copy that Redis delivers again while the job runs finds it claimed.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from zoo.errors import CapacityError, EnvironmentUnfitError, InvalidInputError, NotFoundError
from zoo.jobs import RUN_JOB, Job
from zoo.store.protocols import Store

logger = logging.getLogger(__name__)

QUEUE = "blockyard"

VISIBILITY_S = 6 * 3600
"""Redis delivers an unacknowledged message again after this long. The reaper is quicker;
so this is long enough not to copy long jobs' messages around for nothing."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_broker(url: str) -> str:
    """Return ``url`` if it names a Redis that is safe to use.

    Raises:
        InvalidInputError: It is no Redis URL.
        EnvironmentUnfitError: It has no password and is not on this machine: whoever
            reaches an open Redis can read it and push messages.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "redis+socket"):
        raise InvalidInputError(
            f"broker scheme {parts.scheme!r} is not supported; use redis://[:PASSWORD@]HOST:PORT/0"
        )
    local = parts.scheme == "redis+socket" or (parts.hostname or "localhost") in _LOOPBACK
    if not local and not parts.password:
        raise EnvironmentUnfitError(
            f"Redis on {parts.hostname} is used without a password; give it one "
            "(redis://:PASSWORD@HOST:PORT/0) or run it on this machine only"
        )
    return url


def make_app(broker: str, queues: Sequence[str] = (QUEUE,)) -> Celery:
    """Return a Celery application on ``broker`` that consumes ``queues``.

    Raises:
        InvalidInputError, EnvironmentUnfitError: As ``check_broker``.
    """
    app = Celery("blockyard", broker=check_broker(broker), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": VISIBILITY_S, "socket_keepalive": True},
        task_queues=[
            Queue(name, durable=True)  # type: ignore[no-untyped-call]
            for name in queues
        ],
        task_default_queue=QUEUE,
    )
    return app


class CeleryQueue:
    """``JobQueue`` on Redis: one queue for any worker, and one for each device asked for."""

    def __init__(self, broker: str, store: Store, *, timeout_s: float = 2.0) -> None:
        self._app = make_app(broker)
        self._app.conf.broker_transport_options |= {
            "socket_connect_timeout": timeout_s,
            "socket_timeout": timeout_s,
            # One more try, at once: whoever submits a job must not wait for the broker.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        }
        self._store = store

    def send(self, job_id: str) -> None:
        """Send the id to the queue that the job's device asks for; see ``JobQueue.send``."""
        try:
            name = queue_of(self._store.jobs.job(job_id).device)
        except (NotFoundError, CapacityError) as error:
            logger.warning("job %s is not announced: %s", job_id, error)
            return
        try:
            self._app.send_task(
                RUN_JOB,
                args=(job_id,),
                queue=name,
                retry=False,
                ignore_result=True,
            )
        except (OperationalError, OSError) as error:
            logger.warning("job %s waits for the reaper, the broker is away: %s", job_id, error)

    def missing(self, waiting: Iterable[Job]) -> list[Job]:
        """Return the jobs of every queue that holds fewer messages than jobs wait for it."""
        jobs = list(waiting)
        wanted = Counter(queue_of(job.device) for job in jobs)
        try:
            short = {name for name, count in wanted.items() if self.depth(name) < count}
        except (OperationalError, OSError) as error:
            logger.warning("the broker is away: %s", error)
            return []
        return [job for job in jobs if queue_of(job.device) in short]

    def depth(self, name: str) -> int:
        """Return how many messages wait in a queue."""
        with self._app.connection_for_write() as connection:
            channel = connection.default_channel
            return int(channel._size(name))

    def close(self) -> None:
        """Close the connections; see ``JobQueue.close``."""
        with contextlib.suppress(OperationalError, OSError):
            self._app.close()


def queue_of(device: str | None) -> str:
    """Return the name of the queue for jobs that ask for ``device``."""
    return QUEUE if device is None else f"{QUEUE}.device.{device}"
