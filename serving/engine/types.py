"""What goes into the engine, what bounds it, and what it tells about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from zoo.errors import InvalidInputError
from zoo.spec import TensorSpec

Runtime = Literal["torch", "onnx"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBlock:
    """A block with its weights; blocks with equal ids must compute the same."""

    id: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Bounds of an engine; all counts are rows (samples), not requests.

    ``max_batch`` bounds one call of a segment, ``max_queue`` the rows that wait,
    ``max_request`` the rows of one request (``max_queue`` if None). A tenant may be
    ``fairness_slack_s`` of device time ahead of others before it gives way to them.

    Raises:
        InvalidInputError: A count is below 1 or the slack is negative.
    """

    max_queue: int = 1024
    max_batch: int = 64
    max_request: int | None = None
    fairness_slack_s: float = 0.02

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_batch", "max_request"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} is {value}; it must be at least 1")
        if self.max_request is not None and self.max_request > self.max_queue:
            raise InvalidInputError(
                f"max_request is {self.max_request}, above max_queue ({self.max_queue}); "
                "such a request would never fit"
            )
        if not self.fairness_slack_s >= 0:
            raise InvalidInputError(
                f"fairness_slack_s is {self.fairness_slack_s}; it must not be negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStats:
    """One segment: its blocks, the chains that meet there, and what it has done."""

    blocks: tuple[str, ...]
    chains: tuple[str, ...]
    waiting_rows: int
    batches: int
    rows: int
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of an engine; counters only grow while it lives.

    ``waiting_rows`` are queued, ``active_requests`` queued or running. A request ends in
    exactly one of ``completed``, ``failed``, ``expired``, ``cancelled`` and ``displaced``
    (pushed out of a full queue by a tenant with less in it); ``rejected`` never got in.
    """

    chains: tuple[str, ...]
    resident_blocks: int
    resident_bytes: int
    active_requests: int
    waiting_rows: int
    accepted: int
    completed: int
    failed: int
    expired: int
    cancelled: int
    displaced: int
    rejected: int
    segments: tuple[SegmentStats, ...]
    waiting_by_tenant: Mapping[str, int] = field(default_factory=dict)
