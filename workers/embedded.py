"""The in-process executor: a worker in a thread, and the queue that wakes it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from workers.session import Timing
from workers.worker import Worker
from zoo.errors import BlockyardError
from zoo.spec import Device
from zoo.store.protocols import Store

logger = logging.getLogger(__name__)


class EmbeddedWorker:
    """Runs jobs in a thread of this process; polls SQL, and ``send`` spares it the wait.

    It is a ``JobQueue``: the server hands it job ids as it would to a broker.
    """

    def __init__(
        self,
        store: Store,
        *,
        data_root: Path | None = None,
        devices: Sequence[Device] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._worker = Worker(
            store, data_root=data_root, devices=devices, timing=timing, queue=self
        )
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    @property
    def id(self) -> str:
        """The worker's id in the store."""
        return self._worker.id

    @property
    def trainer_pid(self) -> int | None:
        """The process id of the trainer, or None while none runs."""
        return self._worker.trainer_pid

    def start(self) -> None:
        """Announce the worker and start taking jobs."""
        self._worker.open()
        self._thread.start()

    def stop(self) -> None:
        """Hand back the present job, end the trainer, and wait for both; safe to repeat."""
        self._worker.stop()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
            self._worker.close()

    def send(self, job_id: str) -> None:
        """Wake the worker; see ``JobQueue.send``."""
        self._wake.set()

    def close(self) -> None:
        """Stop; see ``JobQueue.close``."""
        self.stop()

    def _run(self) -> None:
        while not self._worker.stopping:
            try:
                worked = self._worker.run() is not None
            except BlockyardError as error:
                logger.warning("looking for work failed: %s; trying again", error)
                worked = False
            if not worked:
                self._wake.wait(timeout=self._worker.timing.poll_s)
                self._wake.clear()
