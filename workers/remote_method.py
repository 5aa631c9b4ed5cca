"""A method that trains, driven from the worker while it lives in the trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from nas import checkpoint
from nas.protocols import StepReport
from workers.context import JobContext
from workers.supervisor import Limits
from workers.wire import Message
from zoo.errors import TrainerCrashError, TrainerError
from zoo.schemas import SearchRequest
from zoo.spec import Architecture


class RemoteMethod:
    """A ``SearchMethod`` whose ``step`` runs several steps of the one in the trainer.

    ``open`` it first, and again after a ``TrainerCrashError`` or ``TrainerTimeoutError``.
    The training device is held, shared, only while the trainer works: between two steps a
    measurement that waits for the device gets its turn.
    """

    def __init__(
        self,
        context: JobContext,
        request: SearchRequest,
        *,
        step_s: float,
        latencies: Mapping[str, float] | None = None,
    ) -> None:
        self._context = context
        self._device = context.training_device()
        self._step_s = step_s
        self._args = {
            "method": request.method.model_dump(),
            "space": request.space.model_dump(),
            "data": request.data,
            "seed": request.seed,
            "device": self._device.name,
            "objectives": list(request.objectives),
            "limits": [limit.model_dump() for limit in request.limits],
            "latencies": latencies,
        }
        # Opening builds and may compile; a step is one of step_s and the last one's length.
        self._limits = Limits(
            timeout_s=request.max_candidate_s + step_s, memory_bytes=request.max_memory_bytes
        )
        self._generation = -1

    def step(self) -> StepReport:
        """Run steps for about ``step_s`` seconds and report the last one."""
        head = self._call("steps", {"seconds": self._step_s}, patient=True).head
        return StepReport(
            step=head["step"],
            total=head["total"],
            message=head["message"],
            metrics=head["metrics"],
        )

    def best(self, k: int) -> list[Architecture]:
        head = self._call("best", {"k": k}).head
        return [Architecture.from_json(item) for item in head["architectures"]]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = checkpoint.unpack(self._call("state", {}, patient=True).blobs[0])
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._call("restore", {}, (checkpoint.pack(state),))

    def open(self, state: Mapping[str, Any] | None) -> None:
        """Build the method in the trainer that runs now, and go on from ``state``."""
        with self._context.session.device(self._device, "shared"):
            self._context.call_once("open", self._args, limits=self._limits)
        self._generation = self._context.trainer.generation
        if state is not None:
            self.load_state_dict(state)

    def close(self) -> None:
        """Free what the method holds, if its trainer still runs."""
        if self._context.trainer.pid and self._context.trainer.generation == self._generation:
            with contextlib.suppress(TrainerError):  # then it is freed all the more
                self._context.call_once("close", {})

    def _call(
        self,
        name: str,
        args: Mapping[str, Any],
        blobs: tuple[bytes, ...] = (),
        *,
        patient: bool = False,
    ) -> Message:
        with self._context.session.device(self._device, "shared"):
            trainer = self._context.trainer
            if trainer.generation != self._generation or trainer.pid is None:
                raise TrainerCrashError("the trainer was replaced and the method's state with it")
            return self._context.call_once(name, args, blobs, limits=self._limits, patient=patient)
