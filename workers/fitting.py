"""A training in the trainer that outlives trainer and worker: it goes on from its last epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from workers.context import JobContext
from workers.session import Session
from workers.supervisor import Limits, Progress
from workers.wire import Message
from zoo.canonical import Json
from zoo.errors import TrainerCrashError, TrainerTimeoutError
from zoo.jobs import MAX_ATTEMPTS, Arm


class Kept(Protocol):
    """Where a job keeps the state of the one training that it has under way."""

    def load(self, key: str) -> bytes | None:
        """Return what was kept last, if it is of the training that ``key`` names."""

    def save(self, key: str, state: bytes) -> None:
        """Keep a state, in the job's next checkpoint at once."""

    def forget(self) -> None:
        """Keep nothing any more, from the next checkpoint on: what came of it is on record."""


def training_of(key: str, state: bytes) -> dict[str, Any]:
    """Return the state of a training as part of a job's checkpoint."""
    return {"key": key, "state": torch.frombuffer(bytearray(state), dtype=torch.uint8)}


def kept_training(kept: Mapping[str, Any] | None, key: str) -> bytes | None:
    """Return the state in what ``training_of`` made, if it is of the training ``key``."""
    if kept is None or kept["key"] != key:
        return None
    return kept["state"].numpy().tobytes()


def train_remotely(
    context: JobContext,
    call: str,
    args: Mapping[str, Any],
    blobs: tuple[bytes, ...] = (),
    *,
    key: str,
    kept: Kept,
    limits: Limits,
    progress: Progress | None = None,
) -> Message:
    """Have the trainer do a duty that trains, on this worker's training device.

    After a crash, a hang or memory that ran out it is tried again, from the last epoch that
    was kept, which also makes up for the faults before; not for the time limit, which holds
    for every attempt and may be passed ``MAX_ATTEMPTS`` times at most.

    Args:
        context: Of the job.
        call: ``evaluate`` or ``fit``.
        args: Of the duty, but for what concerns the state.
        blobs: Of the duty, but for the state.
        key: Names the training among those of the job.
        kept: Where its state is put, and found.
        limits: Of one attempt.
        progress: Hears of the epochs.

    Raises:
        TrainerError: As ``JobContext.call``.
        JobStoppedError: The job was told to stop.
    """
    session, state = context.session, kept.load(key)
    faults = timeouts = 0
    if state is not None:
        session.log("a training goes on from the last epoch that was kept")

    def keep(news: bytes) -> None:
        nonlocal state, faults
        state, faults = news, 0
        kept.save(key, news)

    while True:
        told = {**args, "checkpoint_s": session.timing.checkpoint_s, "resume": state is not None}
        sent = blobs if state is None else (*blobs, state)
        try:
            with session.device(context.training_device(), "shared"):
                return context.call_once(
                    call, told, sent, limits=limits, progress=progress, keep=keep
                )
        except (TrainerCrashError, TrainerTimeoutError) as error:
            faults += 1
            timeouts += isinstance(error, TrainerTimeoutError)
            if max(faults, timeouts) == MAX_ATTEMPTS:
                raise type(error)(f"{error} ({MAX_ATTEMPTS} attempts)") from error
            session.faults += 1
            place = "" if state is None else " from the last epoch that was kept"
            session.log(f"{call}: {error}; trying again{place}", level="warning")


def log_curve(
    session: Session,
    curve: Mapping[str, list[float]],
    *,
    arm: Arm,
    number: int,
    of: str | None = None,
) -> None:
    """Put a candidate's learning curve into the job's log; see ``workers.session``.

    The log calls it ``of``, by default what it is in a search.
    """
    if curve.get("epoch"):
        points: dict[str, Json] = {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in curve.items()
        }
        session.log(
            f"{of or f'{arm} candidate {number}'} was trained for {len(curve['epoch'])} epochs",
            data={"kind": "curve", "arm": str(arm), "number": number, **points},
        )
