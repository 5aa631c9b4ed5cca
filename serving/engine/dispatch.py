"""The engine's threads: take batches from the queues, run them, answer and hand on."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from serving.engine.backlog import Backlog
from serving.engine.plans import Residents
from serving.engine.requests import Piece, Plan, Request, Segment, Tensors, gather
from serving.engine.types import EngineLimits, EngineStats, SegmentStats
from serving.scheduler import Throughput, VirtualTime
from zoo.errors import (
    BlockyardError,
    DeadlineExceededError,
    NotReadyError,
    OverloadedError,
    RunnerError,
)

logger = logging.getLogger(__name__)


class Dispatcher:
    """Owns the backlog's lock and the threads that compute, its lanes.

    The lock is never held while a batch runs or while a future is resolved, so callbacks
    of futures may call the engine.
    """

    def __init__(
        self,
        limits: EngineLimits,
        virtual: VirtualTime,
        clock: Callable[[], float],
        lanes: int,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._backlog = Backlog(limits, virtual)
        self._throughput = Throughput()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._running: Counter[tuple[str, ...]] = Counter()
        self._idle_lanes = 0
        self._draining = False
        self._closed: str | None = None
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
            victims = self._backlog.make_room(request)
            if victims is None:
                self._backlog.counts["rejected"] += 1
                raise self._overloaded()
            for victim in victims:
                self._finish(victim, "displaced")
            self._backlog.add(request)
            self._work.notify(len(request.pieces))
            overloaded = self._overloaded() if victims else None
        for victim in victims:
            _fail(victim, overloaded)
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
            return self._idle.wait_for(lambda: not self._backlog.requests, timeout_s)

    def close(self) -> None:
        """Fail what is not done and stop the threads."""
        self._stop("the engine is closed; start another one")
        for thread in self._lanes:
            if thread is not threading.current_thread():
                thread.join()

    def stats(self, plans: Mapping[str, Plan], residents: Residents) -> EngineStats:
        """Return a snapshot; ``plans`` are the current ones."""
        segments = {segment.key: segment for plan in plans.values() for segment in plan.path}
        chains: dict[tuple[str, ...], list[str]] = {key: [] for key in segments}
        for name, plan in plans.items():
            for key in {segment.key for segment in plan.path}:
                chains[key].append(name)
        size_bytes = residents.size_bytes
        with self._lock:
            counts = self._backlog.counts
            return EngineStats(
                chains=tuple(plans),
                resident_blocks=residents.num_blocks,
                resident_bytes=size_bytes,
                active_requests=len(self._backlog.requests),
                waiting_rows=self._backlog.rows,
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
                waiting_by_tenant=dict(self._backlog.tenants),
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
            while not self._backlog.rows and not self._closed:
                self._work.wait()
            if self._closed:
                return False
            late = list(self._backlog.expire(self._clock()))
            if late:
                self._idle.notify_all()
            batch = self._backlog.take(self._idle_lanes)
            if batch is not None:
                self._running[batch[0].key] += 1
            self._idle_lanes -= 1
        for request in late:
            _fail(request, _late(request))
        if batch is not None:
            self._serve(*batch)
        return True

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
            _place(pieces, segment.run(gather(pieces)))
        except Exception as error:
            if len(pieces) > 1:
                half = len(pieces) // 2
                self._run(segment, [piece for piece in pieces[:half] if not piece.request.done])
                self._run(segment, [piece for piece in pieces[half:] if not piece.request.done])
            elif pieces:
                self._failed(pieces[0].request, segment, error)
            return
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
                    self._backlog.push(piece)
                    self._work.notify()
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

    def _finish(self, request: Request, outcome: str) -> bool:
        finished = self._backlog.finish(request, outcome)
        if not request.plan.active:
            self._idle.notify_all()
        return finished

    def _overloaded(self) -> OverloadedError:
        rows = self._backlog.rows
        wait_s = self._throughput.retry_after_s(rows)
        return OverloadedError(
            f"{rows} rows wait, at most {self._limits.max_queue} may: send again in {wait_s:.2g} s",
            retry_after_s=wait_s,
        )

    def _in_use(self, plan: Plan) -> bool:
        return plan.active > 0 or any(self._running[segment.key] for segment in plan.path)

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._closed = self._closed or reason
            stopped = list(self._backlog.requests)
            for request in stopped:
                self._finish(request, "failed")
            self._work.notify_all()
            self._idle.notify_all()
        for request in stopped:
            _fail(request, NotReadyError(reason))


def _place(pieces: Sequence[Piece], outputs: Tensors) -> None:
    """Give every piece its rows of a batch: those at their end on the CPU, split at once."""
    answers: list[Tensors] | None = None
    if any(piece.last for piece in pieces):
        sizes = [piece.rows for piece in pieces]
        columns = [torch.split(tensor.cpu(), sizes) for tensor in outputs]
        answers = list(zip(*columns, strict=True))
    row = 0
    for index, piece in enumerate(pieces):
        if answers is not None and piece.last:
            piece.base, piece.start = answers[index], 0
        else:
            piece.base, piece.start = outputs, row
        row += piece.rows


def _fail(request: Request, error: Exception | None) -> None:
    if request.answer.set_running_or_notify_cancel():
        request.answer.set_exception(error)


def _late(request: Request) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"the answer of model {request.plan.name} was not ready by its deadline; "
        "allow more time or send fewer requests at once"
    )
