"""Where candidates' latency comes from: measured on a device, or priced from a table.

What a table lacks is measured and kept for all searches, if the table is of a device that
this worker owns; else it is an error. Nothing unknown costs zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from nas.cost.operations import Operation
from nas.cost.proxyless_yaml import keyed_by_layers
from nas.cost.residual import OperationModel
from nas.cost.table import Entry, LatencyTable
from nas.methods.proxyless.costs import latency_tensor, named_lookup
from nas.plugins import space_of
from nas.spaces.mbconv import MBConvSpace
from workers.context import JobContext
from workers.cost_table_job import CHUNK_S, listing
from workers.session import numbers
from workers.supervisor import Limits
from zoo.canonical import Json, content_id, plain
from zoo.errors import InvalidInputError, NotFoundError
from zoo.jobs import JobKind, JobState
from zoo.schemas import CostTableRequest, LatencyChoice, SearchRequest
from zoo.spec import Architecture, Device, Evaluation, TensorSpec

MEASURE_S = 300.0
"""Time limit of one latency measurement, export included."""

LAYERS_S = 1800.0
"""Time limit of measuring every layer of a space."""

LATENCY_VERSION = 1
"""Raised whenever measuring would give other numbers on the same device."""

PREDICTED = "latency_predicted"
"""Beside ``latency_ms``, 1 where it was priced from a table: it was not measured whole."""


class Once(Protocol):
    """Returns the evaluation of a key that is an identity, computed by the first who asks."""

    def __call__(
        self,
        terms: Mapping[str, Json],
        info: dict[str, Any],
        compute: Callable[[], Evaluation],
        /,
    ) -> Evaluation: ...


class Latencies(Protocol):
    """One source of latencies; ``terms`` are all that determines them."""

    def terms(self) -> dict[str, Json]: ...

    def info(self) -> dict[str, Json]:
        """Return what the record of a latency says of its source."""

    def of(self, architecture: Architecture) -> Evaluation:
        """Return an untrained network's latency."""

    def layers(self) -> Mapping[str, float] | None:
        """Return the latencies of the space's layers; None if they cannot be known here."""


class MeasuredLatencies:
    """Networks and layers run on the target device."""

    def __init__(
        self, context: JobContext, request: SearchRequest, target: Device, data: str, once: Once
    ) -> None:
        self._context, self._request, self._target = context, request, target
        self._data, self._once = data, once

    def terms(self) -> dict[str, Json]:
        return {
            "device": self._target.id,
            "runtime": self._request.runtime,
            "batch": self._request.batch,
            "version": LATENCY_VERSION,
        }

    def info(self) -> dict[str, Json]:
        return {}

    def of(self, architecture: Architecture) -> Evaluation:
        terms = {"runtime": self._request.runtime, "batch": self._request.batch}
        args = {"architecture": architecture.to_json(), "data": self._request.data, **terms}
        timing = measure(self._context, args, self._target)
        return Evaluation(
            metrics={"latency_ms": timing["median_ms"], "latency_p95_ms": timing["p95_ms"]},
            cost_s=timing["cost_s"],
            job=self._context.job.id,
            device=self._target.id,
        )

    def layers(self) -> Mapping[str, float] | None:
        """Measure each layer once for all searches of the same space, task and device."""
        if not self._context.owns(self._target):
            return None
        terms: dict[str, Json] = {
            "layers": self._request.space.model_dump(),
            "method": self._request.method.name,
            "data": self._data,
            "latency": self.terms(),
        }
        return self._once(terms, {"kind": "layers", "data": self._data}, self._measure).metrics

    def _measure(self) -> Evaluation:
        args = layer_args(self._request) | {"device": self._target.name}
        started = time.monotonic()
        with self._context.session.device(self._target, "exclusive"):
            head = self._context.call("latencies", args, limits=Limits(timeout_s=LAYERS_S)).head
        return Evaluation(
            metrics=numbers(head["latencies"]),
            cost_s=time.monotonic() - started,
            job=self._context.job.id,
            device=self._target.id,
        )


class TabledLatencies:
    """Networks priced by the sum of their operations, or of their layers as ProxylessNAS's.

    Args:
        context: The job.
        request: The search; its latency source names a table.
        target: Where the search measures its finalists.
        measured: How it does.
        inputs: One image of the task.
        num_classes: Its classes.
        once: Keeps operations that are measured because the table lacks them.

    Raises:
        InvalidInputError: The table is of another device than the target, or was made in
            another runtime or at another batch size than the search asks for.
        CorruptArtifactError: It is no table.
        NotFoundError: There is no such job.
    """

    def __init__(
        self,
        context: JobContext,
        request: SearchRequest,
        target: Device,
        *,
        measured: MeasuredLatencies,
        inputs: TensorSpec,
        num_classes: int,
        once: Once,
    ) -> None:
        self._context, self._request, self._target = context, request, target
        self._task: dict[str, Any] = {"inputs": inputs, "num_classes": num_classes}
        self._once = once
        self.measured = measured
        self.table = table_of(context, request.latency)
        self.digest = content_id(plain(self.table.to_json()))
        self._by_layers = keyed_by_layers(self.table)
        self._check()
        predicts = request.latency.kind == "predictor"
        self._model = OperationModel.fit(self.table) if predicts else None

    @property
    def of_target(self) -> bool:
        """Whether the table is of the device on which finalists are measured."""
        return self.table.device.get("id") == self._target.id

    def terms(self) -> dict[str, Json]:
        return {
            "table": self.digest,
            "kind": self._request.latency.kind,
            "data": self._request.data,
            "version": LATENCY_VERSION,
        }

    def info(self) -> dict[str, Json]:
        device = self.table.device
        return {
            "source": self._request.latency.kind,
            "table": self.digest,
            "device": device.get("name") or device.get("id"),
            "predicted": True,
        }

    def of(self, architecture: Architecture) -> Evaluation:
        started = time.monotonic()
        latency_ms = self._layered(architecture) if self._by_layers else self._summed(architecture)
        return Evaluation(
            metrics={"latency_ms": latency_ms, PREDICTED: 1.0},
            cost_s=time.monotonic() - started,
            job=self._context.job.id,
            device=self._target.id if self.of_target else None,
        )

    def layers(self) -> Mapping[str, float]:
        if self._by_layers:
            return {key: entry.median_ms for key, entry in self.table.entries.items()}
        listed = listing(self._context, self._list_request())
        prices = self._prices(listed.operations)
        args = layer_args(self._request) | {"device": None, "prices": prices}
        head = self._context.call("latencies", args, limits=Limits(timeout_s=LAYERS_S)).head
        return numbers(head["latencies"])

    def _summed(self, architecture: Architecture) -> float:
        listed = listing(self._context, self._list_request(), [architecture.to_json()])
        prices = self._prices(listed.operations)
        return sum(prices[key] for key in listed.keys(0))

    def _layered(self, architecture: Architecture) -> float:
        space = space_of(architecture)
        if not isinstance(space, MBConvSpace):
            raise InvalidInputError(
                "this latency table is of MBConv layers and prices the space 'mbconv' only, not "
                f"{space.describe()['name']!r}; build one with: blockyard cost table build"
            )
        known = {key: entry.median_ms for key, entry in self.table.entries.items()}
        return latency_tensor(space, named_lookup(known), **self._task).total(architecture.choices)

    def _prices(self, operations: Iterable[Operation]) -> dict[str, float]:
        """Return the milliseconds of each operation, with what a call costs beside it."""
        return {item.key: self._entry_ms(item) + self.table.overhead_ms for item in operations}

    def _entry_ms(self, operation: Operation) -> float:
        if operation.key in self.table:
            return self.table.entry(operation.key).median_ms
        if self._model is not None:
            try:
                return self._model.latency_ms([operation])
            except NotFoundError as error:
                raise InvalidInputError(f"{error}; build the table for this space") from error
        if not (self.of_target and self._context.owns(self._target)):
            raise InvalidInputError(
                f"operation {operation.key} is not in this latency table of "
                f"{len(self.table.entries)}, and its device is not this worker's to measure on; "
                "build the table for this space, or let a model of it predict the latency"
            )
        terms: dict[str, Json] = {"operation": operation.key, **self._conditions()}
        found = self._once(terms, {"kind": "operation"}, lambda: self._time(operation))
        return found.metrics["latency_ms"]

    def _time(self, operation: Operation) -> Evaluation:
        args = {
            "operations": [operation.to_json()],
            "device": self._target.name,
            "precision": self.table.precision,
            "repeats": _REPEATS,
        }
        started = time.monotonic()
        with self._context.session.device(self._target, "exclusive"):
            head = self._context.call("time_operations", args, limits=Limits(timeout_s=CHUNK_S))
        entry = Entry(**head.head["entries"][operation.key])
        return Evaluation(
            metrics={"latency_ms": entry.median_ms},
            cost_s=time.monotonic() - started,
            job=self._context.job.id,
            device=self._target.id,
        )

    def _conditions(self) -> dict[str, Json]:
        table = self.table
        return {
            "device": self._target.id,
            "runtime": table.runtime,
            "precision": table.precision,
            "batch": table.batch,
            "version": LATENCY_VERSION,
        }

    def _list_request(self) -> CostTableRequest:
        request = self._request
        return CostTableRequest(
            space=request.space, data=request.data, batch=request.batch, networks=0
        )

    def _check(self) -> None:
        table, request = self.table, self._request
        if table.device.get("id") is not None and not self.of_target:
            raise InvalidInputError(
                f"the latency table is of {table.device.get('name')} ({table.device['id']}), but "
                f"the search measures on {self._target.name} ({self._target.id}); "
                f"search with device={table.device['id']}"
            )
        wanted = (("runtime", request.runtime), ("batch", request.batch))
        for name, value in wanted if not self._by_layers else ():
            if getattr(table, name) != value:
                raise InvalidInputError(
                    f"the latency table was made with {name} {getattr(table, name)}, but the "
                    f"search asks for {value}; build another table or change the search"
                )


_REPEATS = 50
"""Samples of an operation that a table lacks: as many as a table takes by default."""


def latencies_of(
    context: JobContext,
    request: SearchRequest,
    target: Device,
    *,
    data: str,
    inputs: TensorSpec,
    num_classes: int,
    once: Once,
) -> MeasuredLatencies | TabledLatencies:
    """Return the source of latencies that a search asks for; ``data`` is the data's digest."""
    measured = MeasuredLatencies(context, request, target, data, once)
    if request.latency.kind == "measured":
        return measured
    return TabledLatencies(
        context,
        request,
        target,
        measured=measured,
        inputs=inputs,
        num_classes=num_classes,
        once=once,
    )


def table_of(context: JobContext, choice: LatencyChoice) -> LatencyTable:
    """Return the table that a search brought along, or that a job of its owner built.

    Raises:
        InvalidInputError: The job is no finished cost table.
        NotFoundError: There is no such job of this owner.
        CorruptArtifactError: It is no table.
    """
    if choice.table is not None:
        return LatencyTable.from_json(choice.table)
    assert choice.job is not None  # the schema sees to it
    job = context.store.jobs.job(choice.job)
    if job.owner != context.job.owner:
        raise NotFoundError(f"there is no job {choice.job}")
    if job.kind is not JobKind.COST_TABLE or job.state is not JobState.SUCCEEDED:
        raise InvalidInputError(f"job {job.id} is a {job.state} {job.kind}, no finished table")
    result: Any = job.result or {}
    return LatencyTable.from_json(result["table"])


def layer_args(request: SearchRequest) -> dict[str, Any]:
    """Return what the trainer must know to price the layers of a space."""
    return {
        "space": request.space.model_dump(),
        "method": request.method.name,
        "data": request.data,
        "runtime": request.runtime,
        "batch": request.batch,
    }


def measure(context: JobContext, args: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """Measure an untrained architecture on ``device``, here or wherever its owner is.

    Args:
        context: The job that wants to know.
        args: ``architecture``, ``data``, ``runtime`` and ``batch``.
        device: Held exclusively meanwhile, so that nothing trains beside the measurement.

    Returns:
        ``median_ms``, ``p95_ms`` and ``cost_s``, the device time that it took.
    """
    if not context.owns(device):
        spec = {**args, "device": device.id}
        result: Any = context.delegate(JobKind.MEASURE, spec, device)
        return {"cost_s": 0.0, **result}
    with context.session.device(device, "exclusive"):
        head = context.call(
            "measure", {**args, "device": device.name}, limits=Limits(timeout_s=MEASURE_S)
        ).head
    return {name: head[name] for name in ("median_ms", "p95_ms")} | {
        "cost_s": sum(head["samples"]) / 1e3
    }
