"""The engine's threads: take batches from the queues, run them, answer and hand on."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from serving.engine.plans import Plan, Residents, Segment
from serving.engine.requests import Piece, Request, gather
from serving.engine.types import EngineLimits, EngineStats, SegmentStats
from serving.scheduler import Deadlines, SegmentQueue, Throughput, VirtualTime, displaced, pick
from zoo.errors import (
    BlockyardError,
    DeadlineExceededError,
    NotReadyError,
    OverloadedError,
    RunnerError,
)

logger = logging.getLogger(__name__)

_MIN_SWEEP = 4096


class Dispatcher:
    """Owns the queues' lock and the threads that compute, its lanes.

    The lock guards queues, requests and counters; it is never held while a batch runs or
    while a future is resolved, so callbacks of futures may call the engine.
    """

    def __init__(
        self,
        residents: Residents,
        limits: EngineLimits,
        virtual: VirtualTime,
        clock: Callable[[], float],
        lanes: int,
    ) -> None:
        self._residents = residents
        self._limits = limits
        self._virtual = virtual
        self._clock = clock
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._requests: set[Request] = set()
        self._waiting: Counter[str] = Counter()
        self._waiting_rows = 0
        self._deadlines: Deadlines[Request] = Deadlines()
        self._throughput = Throughput()
        self._counts: Counter[str] = Counter()
        self._ready: dict[SegmentQueue[Piece], Segment] = {}
        self._running: Counter[tuple[str, ...]] = Counter()
        self._draining = False
        self._closed: str | None = None
        self._sweep_at = _MIN_SWEEP
        self._idle_lanes = 0
        self._lanes = [
            threading.Thread(target=self._main, name=f"blockyard-engine-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._lanes:
            thread.start()

    def check_open(self) -> None:
        """Raise ``NotReadyError`` unless new work is welcome."""
        if self._closed:
            raise NotReadyError(self._closed)
        if self._draining:
            raise NotReadyError("the engine drains before it stops; send to another server")

    def admit(self, request: Request) -> bool:
        """Queue a request; False means that its plan was replaced meanwhile.

        Raises:
            OverloadedError: The queue is full.
            NotReadyError: The engine drains or is closed.
        """
        with self._lock:
            self.check_open()
            if request.plan.retired:
                return False
            pushed_out = self._make_room(request)
            for victim in pushed_out:
                self._finish(victim, "displaced")
            self._requests.add(request)
            self._counts["accepted"] += 1
            request.plan.active += 1
            self._virtual.arrive(request.tenant)
            if request.deadline is not None:
                self._deadlines.add(request.deadline, request)
            for piece in request.pieces:
                self._push(piece)
        for victim in pushed_out:
            _fail(victim, self._overloaded(victim.rows))
        return True

    def cancelled(self, request: Request) -> None:
        """Drop a request whose future was cancelled."""
        with self._lock:
            self._finish(request, "cancelled")

    def retire(self, plans: Sequence[Plan]) -> None:
        """Admit nothing more to ``plans`` and wait until nothing runs on them."""
        with self._lock:
            for plan in plans:
                plan.retired = True
            self._idle.wait_for(lambda: not any(self._in_use(plan) for plan in plans))

    def drain(self, timeout_s: float) -> bool:
        """Refuse new work and wait for the rest; say whether all of it is done."""
        with self._lock:
            self._draining = True
            return self._idle.wait_for(lambda: not self._requests, timeout_s)

    def close(self) -> None:
        """Fail what is not done and stop the threads."""
        self._stop("the engine is closed; start another one")
        for thread in self._lanes:
            if thread is not threading.current_thread():
                thread.join()

    def stats(self, plans: Mapping[str, Plan]) -> EngineStats:
        """Return a snapshot; ``plans`` are the current ones."""
        segments = {segment.key: segment for plan in plans.values() for segment in plan.path}
        chains: dict[tuple[str, ...], list[str]] = {key: [] for key in segments}
        for name, plan in plans.items():
            for key in {segment.key for segment in plan.path}:
                chains[key].append(name)
        with self._lock:
            counts = self._counts
            return EngineStats(
                chains=tuple(plans),
                resident_blocks=self._residents.num_blocks,
                resident_bytes=self._residents.size_bytes,
                active_requests=len(self._requests),
                waiting_rows=self._waiting_rows,
                accepted=counts["accepted"],
                completed=counts["completed"],
                failed=counts["failed"],
                expired=counts["expired"],
                cancelled=counts["cancelled"],
                displaced=counts["displaced"],
                rejected=counts["rejected"],
                segments=tuple(
                    SegmentStats(
                        blocks=key,
                        chains=tuple(chains[key]),
                        waiting_rows=segment.queue.rows,
                        batches=segment.batches,
                        rows=segment.rows,
                        busy_s=segment.busy_s,
                    )
                    for key, segment in segments.items()
                ),
                waiting_by_tenant=dict(self._waiting),
            )

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                while self._turn():
                    pass
        except Exception as error:
            logger.exception("a thread of the engine stopped")
            self._stop(f"the engine stopped after an error of its own ({error!r}); restart it")

    def _turn(self) -> bool:
        """Answer what is late, then run one batch; False when the engine is closed."""
        with self._lock:
            self._idle_lanes += 1
            while not self._waiting_rows and not self._closed:
                self._work.wait()
            if self._closed:
                return False
            expired = self._deadlines.expired(self._clock())
            late = [request for request in expired if self._finish(request, "expired")]
            self._sweep()
            queue = pick(self._ready)
            segment = self._ready[queue] if queue is not None else None
            pieces = self._take(segment) if segment is not None else []
            self._idle_lanes -= 1
        for request in late:
            _fail(request, _late(request))
        if segment is not None:
            self._serve(segment, pieces)
        return True

    def _take(self, segment: Segment) -> list[Piece]:
        """Remove the next batch from a queue, leaving other idle lanes their share of it."""
        queue = segment.queue
        share = -(-queue.rows // self._idle_lanes)
        pieces = queue.take(min(self._limits.max_batch, share))
        for piece in pieces:
            self._count_waiting(piece, -piece.rows)
        if not queue.rows:
            del self._ready[queue]
        if segment.plans > 1:
            pieces.sort(key=lambda piece: piece.request.plan.number)
        self._running[segment.key] += 1
        return pieces

    def _serve(self, segment: Segment, pieces: Sequence[Piece]) -> None:
        """Run one batch; where sizes vary, one for every shape."""
        shapes: dict[tuple[torch.Size, ...], list[Piece]] = {}
        if segment.variable:
            for piece in pieces:
                shape = tuple(tensor.shape[1:] for tensor in piece.base)
                shapes.setdefault(shape, []).append(piece)
        try:
            for group in shapes.values() or (pieces,):
                self._run(segment, group)
        finally:
            with self._lock:
                self._running[segment.key] -= 1
                self._idle.notify_all()

    def _run(self, segment: Segment, pieces: Sequence[Piece]) -> None:
        """Compute ``pieces`` as one batch; after a failure, halve it to find whose rows fail."""
        start = self._clock()
        try:
            outputs = segment.run(gather(pieces))
            answers = outputs
            if any(piece.last for piece in pieces):
                answers = tuple(tensor.cpu() for tensor in outputs)
        except Exception as error:
            if len(pieces) > 1:
                half = len(pieces) // 2
                self._run(segment, [piece for piece in pieces[:half] if not piece.request.done])
                self._run(segment, [piece for piece in pieces[half:] if not piece.request.done])
            elif pieces:
                self._failed(pieces[0].request, segment, error)
            return
        row = 0
        for piece in pieces:
            piece.base, piece.start = answers if piece.last else outputs, row
            row += piece.rows
        self._hand_on(segment, pieces, self._clock() - start)

    def _hand_on(self, segment: Segment, pieces: Sequence[Piece], busy_s: float) -> None:
        """Queue computed pieces at their next segment and answer requests that are whole."""
        now = self._clock()
        ended: list[Request] = []
        late: list[Request] = []
        with self._lock:
            segment.record(sum(piece.rows for piece in pieces), busy_s)
            for piece in pieces:
                request = piece.request
                if request.done:
                    continue
                if request.deadline is not None and request.deadline <= now:
                    self._finish(request, "expired")
                    late.append(request)
                elif not piece.last:
                    piece.position += 1
                    self._push(piece)
                elif request.arrive():
                    self._finish(request, "completed")
                    ended.append(request)
            self._throughput.record(sum(request.rows for request in ended), busy_s)
        for request in late:
            _fail(request, _late(request))
        for request in ended:
            if request.answer.set_running_or_notify_cancel():
                request.answer.set_result(request.result())

    def _failed(self, request: Request, segment: Segment, error: Exception) -> None:
        with self._lock:
            counted = self._finish(request, "failed")
        if not counted:
            return
        if isinstance(error, RunnerError) or not isinstance(error, BlockyardError):
            where = " + ".join(segment.key)
            named = RunnerError(f"model {request.plan.name} failed in segment {where}: {error}")
            named.__cause__ = error
            error = named
        _fail(request, error)

    def _push(self, piece: Piece) -> None:
        segment = piece.segment
        segment.queue.push(piece)
        self._ready[segment.queue] = segment
        self._count_waiting(piece, piece.rows)
        self._work.notify()

    def _count_waiting(self, piece: Piece, rows: int) -> None:
        self._waiting_rows += rows
        left = self._waiting[piece.tenant] + rows
        if left:
            self._waiting[piece.tenant] = left
        else:
            del self._waiting[piece.tenant]

    def _finish(self, request: Request, outcome: str) -> bool:
        """Take a request out of everything; False if that was done before."""
        if request.done:
            return False
        request.done = True
        self._counts[outcome] += 1
        self._requests.discard(request)
        for piece in request.pieces:
            queue = piece.segment.queue
            if queue.discard(piece):
                self._count_waiting(piece, -piece.rows)
                if not queue.rows:
                    del self._ready[queue]
        self._virtual.leave(request.tenant)
        request.plan.active -= 1
        if not request.plan.active:
            self._idle.notify_all()
        return True

    def _make_room(self, request: Request) -> list[Request]:
        """Return the requests to push out so that ``request`` fits in the queue.

        Raises:
            OverloadedError: The queue is full and no other tenant has more in it.
        """
        excess = self._waiting_rows + request.rows - self._limits.max_queue
        if excess <= 0:
            return []
        waiting = dict(self._waiting)
        newest_first: dict[str, list[Request]] = {}
        victims: list[Request] = []
        while excess > 0:
            tenant = displaced(waiting, request.tenant, request.rows)
            if tenant is not None and tenant not in newest_first:
                newest_first[tenant] = self._untouched(tenant)
            if tenant is None or not newest_first[tenant]:
                self._counts["rejected"] += 1
                raise self._overloaded(request.rows)
            victim = newest_first[tenant].pop()
            victims.append(victim)
            waiting[tenant] -= victim.rows
            excess -= victim.rows
        return victims

    def _untouched(self, tenant: str) -> list[Request]:
        """Return the tenant's requests of which nothing has run yet, oldest first."""
        return sorted(
            (
                request
                for request in self._requests
                if request.tenant == tenant
                and all(
                    piece.position == 0 and piece in piece.segment.queue for piece in request.pieces
                )
            ),
            key=lambda request: request.order,
        )

    def _overloaded(self, rows: int) -> OverloadedError:
        wait_s = self._throughput.retry_after_s(self._waiting_rows)
        return OverloadedError(
            f"{self._waiting_rows} rows wait, at most {self._limits.max_queue} may; "
            f"no room for {rows} more: send again in {wait_s:.2g} s",
            retry_after_s=wait_s,
        )

    def _sweep(self) -> None:
        """Forget the deadlines of finished requests when they outnumber the others."""
        if len(self._deadlines) >= self._sweep_at:
            self._deadlines.keep(lambda request: not request.done)
            self._sweep_at = max(_MIN_SWEEP, 2 * len(self._deadlines))

    def _in_use(self, plan: Plan) -> bool:
        return plan.active > 0 or any(self._running[segment.key] for segment in plan.path)

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._closed = self._closed or reason
            stopped = list(self._requests)
            for request in stopped:
                self._finish(request, "failed")
            self._work.notify_all()
            self._idle.notify_all()
        for request in stopped:
            _fail(request, NotReadyError(reason))


def _fail(request: Request, error: Exception) -> None:
    if request.answer.set_running_or_notify_cancel():
        request.answer.set_exception(error)


def _late(request: Request) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"the answer of model {request.plan.name} was not ready by its deadline; "
        "allow more time or send fewer requests at once"
    )
