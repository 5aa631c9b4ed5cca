"""Requests, the segments on their way, and how batches are put together and apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serving.engine.types import EngineBlock
from serving.runners.protocols import BlockRunner
from serving.scheduler import SegmentQueue
from zoo.errors import RunnerError

Tensors = tuple[Tensor, ...]
Key = tuple[str, ...]


class Answer(Future[Tensors]):
    """The future of a request; cancelling it takes its work out of the queues at once."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        """Cancel unless the answer is there; say whether it is cancelled now."""
        cancelled = super().cancel()
        if cancelled:
            self._on_cancel()
        return cancelled


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One caller's rows; those above the batch cap travel in several pieces."""

    plan: Plan
    tenant: str
    deadline: float | None
    order: int
    rows: int
    answer: Answer = field(init=False)
    pieces: list[Piece] = field(default_factory=list)
    arrived: int = 0
    done: bool = False

    def arrive(self) -> bool:
        """Note that one more piece reached the end of the path; say whether all have."""
        self.arrived += 1
        return self.arrived == len(self.pieces)

    def result(self) -> Tensors:
        """Return the rows of all pieces, in the order of the request."""
        return gather(self.pieces)


@dataclass(slots=True, kw_only=True, eq=False)
class Piece:
    """Rows of one request that move together; they are ``base[start:start + rows]``.

    ``base`` is the request's input at first, then the output of the last segment's whole
    batch; ``position`` is the index of the next segment on the plan's path.
    """

    request: Request
    tenant: str
    order: int
    rows: int
    base: Tensors
    start: int
    position: int = 0

    @property
    def segment(self) -> Segment:
        """The segment where the piece waits or runs."""
        return self.request.plan.path[self.position]

    @property
    def last(self) -> bool:
        """Whether its present segment ends the chain."""
        return self.position + 1 == len(self.request.plan.path)


@dataclass(slots=True, kw_only=True, eq=False)
class Segment:
    """Blocks that always run together, their runner and the work that waits for it."""

    key: Key
    runner: BlockRunner
    queue: SegmentQueue[Piece]
    outputs: int
    variable: bool
    plans: int = 0
    batches: int = 0
    rows: int = 0
    busy_s: float = 0.0

    def run(self, inputs: Tensors) -> Tensors:
        """Compute a batch and check that every output has a row for every row.

        Raises:
            RunnerError: The blocks failed, or lie about their interface.
        """
        outputs = self.runner.run(inputs)
        rows = inputs[0].shape[0]
        if len(outputs) != self.outputs or any(tensor.shape[0] != rows for tensor in outputs):
            raise RunnerError(
                f"segment {' + '.join(self.key)} returned {len(outputs)} tensors with shapes "
                f"{[list(tensor.shape) for tensor in outputs]} for {rows} rows; its spec says "
                f"{self.outputs} tensors with as many rows"
            )
        return outputs

    def record(self, rows: int, busy_s: float) -> None:
        """Count a batch and follow the cost of a row."""
        self.batches += 1
        self.rows += rows
        self.busy_s += busy_s
        self.queue.cost_s += 0.2 * (busy_s / rows - self.queue.cost_s)


@dataclass(slots=True, kw_only=True, eq=False)
class Plan:
    """One chain's path through segments; replaced when its segments change.

    Requests keep the plan that they came with, so a change never meets one half-way.
    ``number`` orders plans so that chains which part late are neighbours.
    """

    name: str
    blocks: tuple[EngineBlock, ...]
    path: tuple[Segment, ...]
    check: Callable[[Sequence[Tensor]], int]
    number: int = 0
    active: int = 0
    retired: bool = False


def gather(pieces: Sequence[Piece]) -> Tensors:
    """Return the rows of ``pieces`` in their order as one batch, copied only where needed.

    Pieces that lie side by side in one tensor are taken as a view of it.
    """
    runs: list[tuple[Tensors, int, int]] = []
    for piece in pieces:
        if runs and runs[-1][0] is piece.base and runs[-1][1] + runs[-1][2] == piece.start:
            base, start, rows = runs[-1]
            runs[-1] = base, start, rows + piece.rows
        else:
            runs.append((piece.base, piece.start, piece.rows))
    if len(runs) == 1:
        return view(*runs[0])
    parts = [view(*run) for run in runs]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def view(base: Tensors, start: int, rows: int) -> Tensors:
    """Return ``rows`` rows of every tensor from ``start``, without a copy."""
    if start == 0 and rows == base[0].shape[0]:
        return base
    return tuple(tensor.narrow(0, start, rows) for tensor in base)
