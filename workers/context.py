"""What a job's code is given: its session, its request, the trainer, and who else can help."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.protocols import JobQueue
from workers.session import JobStoppedError, Session, Stop
from workers.supervisor import Keep, Limits, Progress, Trainer
from workers.wire import Message
from zoo.canonical import Json, content_id, plain
from zoo.errors import (
    CapacityError,
    ConflictError,
    TrainerCrashError,
    TrainerError,
    TrainerTimeoutError,
    UnknownNameError,
)
from zoo.jobs import MAX_ATTEMPTS, Job, JobKind, JobRequest, JobState
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
    ) -> Message:
        """Ask the trainer for what needs no earlier request; a request to stop kills it.

        What may pass, a crash, a hang or memory that ran out, is tried again.

        Raises:
            TrainerError: As ``Trainer.call``; after a fault, that of the last attempt.
            JobStoppedError: The job was told to stop.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return self.call_once(name, args, blobs, limits=limits, progress=progress)
            except (TrainerCrashError, TrainerTimeoutError) as error:
                if attempt == MAX_ATTEMPTS:
                    raise type(error)(f"{error} ({attempt} attempts)") from error
                self.session.faults += 1
                self.session.log(f"{name}: {error}; trying again", level="warning")
        raise AssertionError("unreachable")

    def call_once(
        self,
        name: str,
        args: Mapping[str, Any],
        blobs: tuple[bytes, ...] = (),
        *,
        limits: Limits | None = None,
        progress: Progress | None = None,
        keep: Keep | None = None,
        patient: bool = False,
    ) -> Message:
        """Ask the trainer for what another trainer could not answer.

        ``patient`` calls leave state behind that is worth a checkpoint: they may finish
        when the job is paused.
        """
        check = self.session.check_patiently if patient else self.session.check
        return self.trainer.call(
            name, args, blobs, limits=limits, progress=progress, keep=keep, check=check
        )

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
        self, kind: JobKind, spec: Mapping[str, Json], device: Device
    ) -> Mapping[str, Json]:
        """Have the owner of ``device`` do a job, and wait for its result.

        The same request of the same job finds the job submitted before, also after a
        pause or when this worker was killed and another took over; one that had ended
        badly by then is submitted anew.

        Raises:
            TrainerError: The other job failed or was cancelled.
        """
        child = self._submit(kind, spec, device)
        if child.state is JobState.QUEUED and self.queue is not None:
            self.queue.send(child.id)
        try:
            child = self._await(child, device)
        except JobStoppedError as stopped:
            if stopped.stop is Stop.CANCEL:  # any other time its result is found again
                self._give_up(child.id)
            raise
        if child.state is not JobState.SUCCEEDED or child.result is None:
            raise TrainerError(f"{kind} on {device.name} ({child.id}): {child.reason}")
        return child.result

    def _submit(self, kind: JobKind, spec: Mapping[str, Json], device: Device) -> Job:
        """Return the job of this request that waits, runs or succeeded; make one if none does."""
        failures = attempt = 0
        while True:
            request = content_id({"kind": str(kind), "spec": plain(spec), "attempt": attempt})
            child = self.store.jobs.submit(
                kind,
                spec,
                owner=self.job.owner,
                name=f"for {self.job.id}",
                device=device.id,
                idempotency_key=f"{self.job.id}:{request[:32]}",
            )
            failures += child.state is JobState.FAILED
            ended_badly = child.state in (JobState.CANCELLED, JobState.FAILED)
            if not ended_badly or failures == MAX_ATTEMPTS:
                return child
            attempt += 1

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
