"""What a job's code is given: its session, its request, the trainer, and who else can help."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.protocols import JobQueue
from workers.session import Session
from workers.supervisor import Limits, Progress, Trainer
from workers.wire import Message
from zoo.canonical import Json, content_id, plain
from zoo.errors import CapacityError, ConflictError, TrainerError, UnknownNameError
from zoo.jobs import Job, JobKind, JobRequest, JobState
from zoo.spec import Device
from zoo.store.protocols import Store

WARN_AFTER_S = 10.0
"""How long to wait for another worker before the job's log says what it waits for."""


class Help(Protocol):
    """Runs short jobs of others; ``blocked`` says that the caller can do nothing else."""

    def __call__(self, *, blocked: bool = False) -> None: ...


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """One job at work.

    ``devices`` are those this worker owns. ``help`` runs what others wait for on them,
    so that two jobs that need each other's devices both go on.
    """

    session: Session
    trainer: Trainer
    devices: tuple[Device, ...]
    queue: JobQueue | None
    help: Help

    @property
    def store(self) -> Store:
        return self.session.store

    @property
    def job(self) -> Job:
        return self.session.job

    def call(
        self,
        name: str,
        args: Mapping[str, Any],
        blobs: tuple[bytes, ...] = (),
        *,
        limits: Limits | None = None,
        progress: Progress | None = None,
        patient: bool = False,
    ) -> Message:
        """Ask the trainer; a request to stop the job kills it.

        ``patient`` calls leave state behind that is worth a checkpoint: they may finish
        when the job is paused.
        """
        check = self.session.check_patiently if patient else self.session.check
        return self.trainer.call(name, args, blobs, limits=limits, progress=progress, check=check)

    def training_device(self) -> Device:
        """Return the device to train on: this worker's first GPU, else its CPU."""
        return min(self.devices, key=lambda device: device.kind == "cpu")

    def target(self, ref: str) -> Device:
        """Return the device that a request names; ``auto`` is the training device.

        Raises:
            UnknownNameError: No worker ever announced it.
        """
        if ref == "auto":
            return self.training_device()
        for device in self.devices:
            if ref in (device.id, device.name):
                return device
        for device in self.store.devices.devices():
            if ref in (device.id, device.name):
                return device
        known = {device.name for device in (*self.devices, *self.store.devices.devices())}
        raise UnknownNameError("device", ref, {"auto", *known})

    def owns(self, device: Device) -> bool:
        """Say whether this worker may measure on ``device``."""
        return any(device.id == mine.id for mine in self.devices)

    def delegate(
        self, kind: JobKind, spec: Mapping[str, Json], device: Device, *, attempt: int = 0
    ) -> Mapping[str, Json]:
        """Have the owner of ``device`` do a job, and wait for its result.

        The same request of the same job finds the job submitted before, also after this
        worker was killed and another took over.

        Raises:
            TrainerError: The other job failed or was cancelled.
        """
        request = content_id({"kind": str(kind), "spec": plain(spec), "attempt": attempt})
        child = self.store.jobs.submit(
            kind,
            spec,
            owner=self.job.owner,
            name=f"for {self.job.id}",
            device=device.id,
            idempotency_key=f"{self.job.id}:{request[:32]}",
        )
        if child.state is JobState.QUEUED and self.queue is not None:
            self.queue.send(child.id)
        try:
            child = self._await(child, device)
        except BaseException:
            self._give_up(child.id)
            raise
        if child.state is not JobState.SUCCEEDED or child.result is None:
            raise TrainerError(f"{kind} on {device.name} ({child.id}): {child.reason}")
        return child.result

    def _await(self, child: Job, device: Device) -> Job:
        started = time.monotonic()
        warned = False
        while not child.state.final:
            self.help(blocked=True)
            self.session.pause(self.session.timing.poll_s)
            self.session.check()
            child = self.store.jobs.job(child.id)
            if not warned and time.monotonic() - started > WARN_AFTER_S:
                warned = True
                self.session.log(
                    f"waiting for a worker that owns {device.name} ({device.id}); start one there",
                    level="warning",
                )
        return child

    def _give_up(self, child_id: str) -> None:
        try:
            self.store.jobs.request(child_id, JobRequest.CANCEL)
        except (ConflictError, CapacityError):
            return  # it ended by itself, or its owner will notice later


def refs(devices: Sequence[Device]) -> list[str]:
    """Return every id and name under which a job may ask for one of ``devices``."""
    return sorted({ref for device in devices for ref in (device.id, device.name)})
