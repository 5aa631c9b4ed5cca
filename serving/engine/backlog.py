"""All unfinished requests and where they wait; the dispatcher guards it with its lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from serving.engine.requests import Piece, Request, Segment
from serving.engine.types import EngineLimits
from serving.scheduler import Deadlines, SegmentQueue, VirtualTime, displaced, pick

_MIN_SWEEP = 4096


class Backlog:
    """Keeps queues, deadlines, tenants' accounts and counters in step with each other.

    ``counts`` has how many requests were accepted, rejected, and ended in each way;
    ``rows`` wait in the queues, ``tenants`` says whose they are.
    """

    def __init__(self, limits: EngineLimits, virtual: VirtualTime) -> None:
        self.requests: set[Request] = set()
        self.counts: Counter[str] = Counter()
        self.tenants: Counter[str] = Counter()
        self.rows = 0
        self._limits = limits
        self._virtual = virtual
        self._ready: dict[SegmentQueue[Piece], Segment] = {}
        self._deadlines: Deadlines[Request] = Deadlines()
        self._sweep_at = _MIN_SWEEP

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self.requests.add(request)
        self.counts["accepted"] += 1
        request.plan.active += 1
        self._virtual.arrive(request.tenant)
        if request.deadline is not None:
            self._deadlines.add(request.deadline, request)
        for piece in request.pieces:
            self.push(piece)

    def push(self, piece: Piece) -> None:
        """Queue a piece at its segment."""
        segment = piece.segment
        segment.queue.push(piece)
        self._ready[segment.queue] = segment
        self._count(piece, piece.rows)

    def take(self, lanes: int) -> tuple[Segment, list[Piece]] | None:
        """Remove and return the next batch, or None if nothing waits.

        Args:
            lanes: Threads that are free now; each gets its share of the queue.
        """
        queue = pick(self._ready)
        if queue is None:
            return None
        segment = self._ready[queue]
        share = -(-queue.rows // lanes)
        pieces = queue.take(min(self._limits.max_batch, share))
        for piece in pieces:
            self._count(piece, -piece.rows)
        if not queue.rows:
            del self._ready[queue]
        if segment.plans > 1:
            pieces.sort(key=lambda piece: piece.request.plan.number)
        return segment, pieces

    def finish(self, request: Request, outcome: str) -> bool:
        """Take a request out of everything; False if that was done before."""
        if request.done:
            return False
        request.done = True
        self.counts[outcome] += 1
        self.requests.discard(request)
        for piece in request.pieces:
            queue = piece.segment.queue
            if queue.discard(piece):
                self._count(piece, -piece.rows)
                if not queue.rows:
                    del self._ready[queue]
        self._virtual.leave(request.tenant)
        request.plan.active -= 1
        return True

    def expire(self, now: float) -> Iterator[Request]:
        """Finish and yield the requests whose deadline has passed."""
        for request in self._deadlines.expired(now):
            if self.finish(request, "expired"):
                yield request
        if len(self._deadlines) >= self._sweep_at:
            self._deadlines.keep(lambda request: not request.done)
            self._sweep_at = max(_MIN_SWEEP, 2 * len(self._deadlines))

    def make_room(self, request: Request) -> list[Request] | None:
        """Return the requests to push out so that ``request`` fits; None if it cannot fit."""
        excess = self.rows + request.rows - self._limits.max_queue
        waiting = dict(self.tenants)
        untouched: dict[str, list[Request]] = {}
        victims: list[Request] = []
        while excess > 0:
            tenant = displaced(waiting, request.tenant, request.rows)
            if tenant is not None and tenant not in untouched:
                untouched[tenant] = self._untouched(tenant)
            if tenant is None or not untouched[tenant]:
                return None
            victim = untouched[tenant].pop()
            victims.append(victim)
            waiting[tenant] -= victim.rows
            excess -= victim.rows
        return victims

    def _untouched(self, tenant: str) -> list[Request]:
        """Return the tenant's requests of which nothing has run yet, oldest first."""
        return sorted(
            (
                request
                for request in self.requests
                if request.tenant == tenant
                and all(
                    not piece.position and piece in piece.segment.queue for piece in request.pieces
                )
            ),
            key=lambda request: request.order,
        )

    def _count(self, piece: Piece, rows: int) -> None:
        self.rows += rows
        self.tenants[piece.tenant] += rows
        if not self.tenants[piece.tenant]:
            del self.tenants[piece.tenant]
