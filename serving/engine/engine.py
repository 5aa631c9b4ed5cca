"""The engine: batches the work of all loaded chains, segment by segment."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from serving.engine.dispatch import Dispatcher
from serving.engine.plans import Residents
from serving.engine.requests import Answer, Piece, Plan, Request, Tensors
from serving.engine.types import (
    RUNTIMES,
    EngineBlock,
    EngineLimits,
    EngineStats,
    Runtime,
)
from serving.scheduler import VirtualTime
from zoo.errors import (
    ConflictError,
    IncompatibleShapeError,
    InvalidInputError,
    NotFoundError,
    UnknownNameError,
)


class Engine:
    """Runs chains; requests of different chains share a batch wherever they share blocks.

    Blocks with one id are resident once. Chains are cut into segments, the longest runs
    of blocks that always go together, and work waits only where segments begin. A
    thread takes the most urgent segment, runs all that waits there (up to
    ``max_batch`` rows) as one batch, and hands its rows on. It never waits for more work,
    so a lone request is served at once. ``load`` and ``unload`` may be called while
    requests run. All methods are thread-safe.

    On a CPU, one lane per core with one intra-operator thread each gives the most rows per
    second where batches are small; one lane with all threads gives a lone request the
    shortest time. A GPU wants one lane.

    Args:
        device: Where blocks run.
        limits: Bounds, in rows.
        runtime: ``"torch"`` or ``"onnx"``.
        precision: Of the torch runtime; answers keep the types of the specs.
        weights: Shares of tenants that differ from 1.
        lanes: Threads that each run batches.
        threads: Intra-operator threads of the ONNX runtime; 0 leaves it the choice.
            Torch's own number is process-wide: set it where the process starts.
        clock: Seconds that only grow; deadlines are on this clock.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        limits: EngineLimits | None = None,
        runtime: Runtime = "torch",
        precision: str = "float32",
        weights: Mapping[str, float] | None = None,
        lanes: int = 1,
        threads: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if runtime not in RUNTIMES:
            raise UnknownNameError("runtime", runtime, RUNTIMES)
        if lanes < 1:
            raise InvalidInputError(f"lanes is {lanes}; an engine needs at least 1")
        self._limits = limits or EngineLimits()
        virtual = VirtualTime(weights, slack_s=self._limits.fairness_slack_s)
        self._residents = Residents(
            device=torch.device(device),
            runtime=runtime,
            precision=precision,
            threads=threads,
            virtual=virtual,
            clock=clock,
        )
        self._loading = threading.Lock()
        self._orders = itertools.count()
        self._plans: dict[str, Plan] = {}
        self._dispatcher = Dispatcher(self._limits, virtual, clock, lanes)

    def load(self, name: str, blocks: Sequence[EngineBlock]) -> None:
        """Make a chain available; loading the same chain again changes nothing.

        Segments that it splits keep serving meanwhile: requests on their way finish on
        the old ones. A chain that fails to load leaves nothing behind.

        Raises:
            ConflictError: ``name`` is loaded with other blocks.
            IncompatibleShapeError: There is no block, or neighbours do not fit.
            RunnerError: A block fails on a sample of its declared input.
            NotReadyError: The engine is closed.
        """
        chain = tuple(blocks)
        _check_chain(name, chain)
        with self._loading:
            known = self._plans.get(name)
            if known is not None:
                if [block.id for block in known.blocks] != [block.id for block in chain]:
                    raise ConflictError(
                        f"model {name} is loaded with other blocks; unload it first"
                    )
                return
            self._dispatcher.check_open()
            self._change({**self._chains(), name: chain})

    def unload(self, name: str) -> None:
        """Take a chain out: refuse new requests, finish those under way, free its blocks.

        Raises:
            NotFoundError: No chain has the name; the message lists those loaded.
        """
        with self._loading:
            self._plan(name)
            chains = self._chains()
            del chains[name]
            self._change(chains)

    def loaded(self) -> tuple[str, ...]:
        """Return the names of the loaded chains."""
        return tuple(self._plans)

    def submit(
        self,
        name: str,
        inputs: Sequence[Tensor],
        *,
        deadline: float | None = None,
        tenant: str = "local",
    ) -> Answer:
        """Queue a batch of rows for a chain.

        Args:
            name: A loaded chain.
            inputs: One ``(batch, *shape)`` tensor per chain input.
            deadline: When the answer becomes worthless, on the engine's clock.
            tenant: Who is charged for the device time.

        Returns:
            Future of one ``(batch, *shape)`` CPU tensor per chain output. It fails with
            ``DeadlineExceededError``, ``RunnerError``, ``OverloadedError`` (pushed out by
            a tenant with less in the queue) or ``NotReadyError`` (the engine closed).
            Cancelling it drops the work wherever it is.

        Raises:
            NotFoundError: No chain has the name; the message lists those loaded.
            IncompatibleShapeError: The tensors do not fit the chain's inputs.
            OverloadedError: The queue is full; says when to come back.
            NotReadyError: The engine drains or is closed.
        """
        given = tuple(inputs)
        while True:
            plan = self._plan(name)
            request = self._request(plan, given, deadline, tenant)
            if self._dispatcher.admit(request):
                return request.answer

    def stats(self) -> EngineStats:
        """Return a snapshot of what is loaded, waiting and done."""
        return self._dispatcher.stats(self._plans, self._residents)

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those under way; say whether all are done."""
        return self._dispatcher.drain(timeout_s)

    def close(self) -> None:
        """Stop; requests not yet done fail with ``NotReadyError``. Safe to call again."""
        self._dispatcher.close()
        with self._loading:
            for plan in self._plans.values():
                self._residents.release(plan)
            self._plans = {}

    def _request(self, plan: Plan, given: Tensors, deadline: float | None, tenant: str) -> Request:
        rows = plan.check(given)
        limit = self._limits.max_request or self._limits.max_queue
        if rows > limit:
            raise IncompatibleShapeError(
                f"a request may have {limit} rows, but this one has {rows}; send several"
            )
        request = Request(
            plan=plan, tenant=tenant, deadline=deadline, order=next(self._orders), rows=rows
        )
        request.answer = Answer(lambda: self._dispatcher.cancelled(request))
        step = self._limits.max_batch
        request.pieces = [
            Piece(
                request=request,
                tenant=tenant,
                order=request.order if start == 0 else next(self._orders),
                rows=min(step, rows - start),
                base=given,
                start=start,
            )
            for start in range(0, rows, step)
        ]
        return request

    def _plan(self, name: str) -> Plan:
        plan = self._plans.get(name)
        if plan is None:
            loaded = ", ".join(sorted(self._plans)) or "none"
            raise NotFoundError(f"model {name!r} is not loaded; loaded are: {loaded}")
        return plan

    def _chains(self) -> dict[str, tuple[EngineBlock, ...]]:
        return {name: plan.blocks for name, plan in self._plans.items()}

    def _change(self, chains: Mapping[str, tuple[EngineBlock, ...]]) -> None:
        """Serve exactly ``chains`` from now on; return when nothing uses the old plans."""
        old = self._plans
        self._plans = self._residents.plan(chains, old)
        retired = [plan for name, plan in old.items() if self._plans.get(name) is not plan]
        self._dispatcher.retire(retired)
        for plan in retired:
            self._residents.release(plan)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_chain(name: str, blocks: Sequence[EngineBlock]) -> None:
    if not blocks:
        raise IncompatibleShapeError(f"model {name} has no blocks; a chain needs at least one")
    for left, right in itertools.pairwise(blocks):
        fits = len(left.outputs) == len(right.inputs) and all(
            wanted.accepts(given) for wanted, given in zip(right.inputs, left.outputs, strict=True)
        )
        if not fits:
            raise IncompatibleShapeError(
                f"model {name}: block {left.id} returns {left.outputs}, but the next block "
                f"{right.id} takes {right.inputs}"
            )
