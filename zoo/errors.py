"""Every error that Blockyard raises on purpose, as one tree.

A message says what happened, names the value and says what to do about it.
Foreign exceptions are translated where they enter (``raise … from error``).

BlockyardError
├── InvalidInputError
│   ├── UnknownNameError
│   ├── IncompatibleShapeError
│   ├── MissingDataError
│   ├── TooLargeError
│   └── InfeasibleError
├── NotFoundError
├── ConflictError
│   ├── IllegalTransitionError
│   └── StaleTokenError
├── AccessError
│   ├── UnauthenticatedError
│   └── ForbiddenError
├── CapacityError
│   ├── OverloadedError
│   ├── NotReadyError
│   ├── DeadlineExceededError
│   └── StorageFullError
├── CorruptArtifactError
├── EnvironmentUnfitError
│   └── PortInUseError
├── RunnerError
└── TrainerError
    ├── TrainerCrashError
    └── TrainerTimeoutError
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockyardError(Exception):
    """Base of all deliberate errors; never raised itself."""


class InvalidInputError(BlockyardError):
    """The caller's values cannot be used as they are."""


class UnknownNameError(InvalidInputError):
    """A name is not registered; the message lists the names that are."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.choices = tuple(sorted(choices))
        known = ", ".join(self.choices) or "none is registered"
        super().__init__(f"unknown {kind} {name!r}; choose one of: {known}")


class IncompatibleShapeError(InvalidInputError):
    """A tensor or a block interface does not fit where it was put."""


class MissingDataError(InvalidInputError):
    """A data set or file that was named is not there."""


class TooLargeError(InvalidInputError):
    """A message or file is larger than its receiver accepts."""


class InfeasibleError(InvalidInputError):
    """No answer meets the limits; ``nearest`` describes the closest one, if any."""

    def __init__(self, message: str, *, nearest: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class NotFoundError(BlockyardError):
    """No row or file has this id."""


class ConflictError(BlockyardError):
    """The state of the thing named does not allow what was asked."""


class IllegalTransitionError(ConflictError):
    """A job cannot go from its present state to the one asked for."""


class StaleTokenError(ConflictError):
    """The caller's lease was taken over; its result is refused."""


class AccessError(BlockyardError):
    """The caller may not do this."""


class UnauthenticatedError(AccessError):
    """No valid API key came with the request."""


class ForbiddenError(AccessError):
    """The API key is valid but lacks the scope."""


class CapacityError(BlockyardError):
    """Something is full, late or not yet ready; trying again later may work."""


class OverloadedError(CapacityError):
    """A queue is at its limit."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(CapacityError):
    """The model or server is loading or draining."""


class DeadlineExceededError(CapacityError):
    """The request's deadline passed before its answer was ready."""


class StorageFullError(CapacityError):
    """The disk has no room for a write; nothing half-written was kept."""


class CorruptArtifactError(BlockyardError):
    """Stored bytes do not match their digest; they are never served."""


class EnvironmentUnfitError(BlockyardError):
    """The machine lacks something that the command needs."""


class PortInUseError(EnvironmentUnfitError):
    """Another process listens on the port asked for."""


class RunnerError(BlockyardError):
    """A block failed while it computed a batch; other requests are not affected."""


class TrainerError(BlockyardError):
    """A spawned trainer did not return a result."""


class TrainerCrashError(TrainerError):
    """The trainer process died: a fault, a kill or out of memory."""


class TrainerTimeoutError(TrainerError):
    """The trainer process exceeded its time limit and was killed."""
