"""Build a latency table: every distinct operation of a space measured once on a device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from nas import checkpoint
from nas.cost.energy import EnergyModel
from nas.cost.operations import Operation
from nas.cost.table import Additivity, Entry, LatencyTable, overhead_ms
from workers.context import JobContext
from workers.supervisor import Limits
from zoo.canonical import Json, plain
from zoo.errors import CorruptArtifactError, NotFoundError
from zoo.jobs import JobKind
from zoo.schemas import CostTableRequest, parse_request
from zoo.spec import Device

LIST_S = 600.0
"""Time limit of listing a space's operations."""

CHUNK = 16
"""Operations measured between two looks at whether the job shall stop."""

CHUNK_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Distinct operations, and networks as positions among them."""

    operations: tuple[Operation, ...]
    architectures: tuple[Mapping[str, Any], ...]
    networks: tuple[tuple[int, ...], ...]

    def keys(self, number: int) -> list[str]:
        """Return the operations that a network executes, in order."""
        return [self.operations[place].key for place in self.networks[number]]


@dataclass
class Measured:
    """What a checkpoint holds: entries and whole networks that were measured.

    ``whole`` are those of recomputed fronts, in ms, by what determines them.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    networks: list[dict[str, Any]] = field(default_factory=list)
    clocks: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)


def run(context: JobContext) -> Mapping[str, Json]:
    """Measure a space's operations, then whole networks of it to see whether sums hold.

    Returns:
        ``{"table", "measured", "median_error", "device"}``; ``table`` is the file's JSON.
    """
    request = cast(CostTableRequest, parse_request(JobKind.COST_TABLE, context.job.spec))
    device = context.target(request.device)
    if not context.owns(device):
        return context.delegate(JobKind.COST_TABLE, context.job.spec, device)
    table = build(context, request, device)
    return {
        "table": plain(table.to_json()),
        "measured": len(table.entries),
        "median_error": table.additivity.median_error if table.additivity else None,
        "device": device.id,
    }


def build(context: JobContext, request: CostTableRequest, device: Device) -> LatencyTable:
    """Build a table on a device of this worker, going on from a checkpoint of the job."""
    context.session.progress(step=0, total=1, message="listing operations", phase="list")
    listed = listing(context, request)
    state = measured_before(context)
    measure_operations(context, request, device, listed.operations, state)
    _measure_networks(context, request, device, listed, state)
    table = LatencyTable(
        device=plain({"id": device.id, **device.to_json()}),  # type: ignore[arg-type]
        runtime="torch",
        precision=request.precision,
        batch=request.batch,
        entries={key: Entry(**entry) for key, entry in state.entries.items()},
        clocks=state.clocks,
        space={"space": plain(request.space.model_dump()), "data": request.data},
    )
    timed = [item["median_ms"] for item in state.networks]
    if not timed:
        return table
    sums = [table.total_ms(listed.keys(number)) for number in range(len(timed))]
    counts = [len(network) for network in listed.networks]
    return replace(
        table,
        overhead_ms=overhead_ms(*map(np.asarray, (sums, timed, counts))),
        additivity=Additivity.compare(sums, timed, counts),
        energy=_energy(listed, state.networks),
    )


def listing(
    context: JobContext,
    request: CostTableRequest,
    architectures: Sequence[Mapping[str, Json]] | None = None,
) -> Listed:
    """Have the trainer list operations, of the whole space or of given architectures."""
    args = request.model_dump(include={"space", "data", "batch", "samples", "networks", "seed"})
    given = None if architectures is None else [plain(item) for item in architectures]
    head = context.call(
        "operations", {**args, "architectures": given}, limits=Limits(timeout_s=LIST_S)
    ).head
    return Listed(
        operations=tuple(Operation.from_json(item) for item in head["operations"]),
        architectures=tuple(head["architectures"]),
        networks=tuple(tuple(places) for places in head["networks"]),
    )


def measure_operations(
    context: JobContext,
    request: CostTableRequest,
    device: Device,
    operations: Sequence[Operation],
    state: Measured,
) -> None:
    """Measure those of ``operations`` that ``state`` lacks, and add them to it."""
    missing = [item for item in operations if item.key not in state.entries]
    for start in range(0, len(missing), CHUNK):
        context.session.check()
        context.session.progress(
            step=start, total=len(missing), message="measuring operations", phase="operations"
        )
        args = {
            "operations": [item.to_json() for item in missing[start : start + CHUNK]],
            "device": device.name,
            "precision": request.precision,
            "repeats": request.repeats,
        }
        with context.session.device(device, "exclusive"):
            head = context.call("time_operations", args, limits=Limits(timeout_s=CHUNK_S)).head
        state.entries |= head["entries"]
        state.clocks = head["clocks"]
        save(context, state)


def _measure_networks(
    context: JobContext,
    request: CostTableRequest,
    device: Device,
    listed: Listed,
    state: Measured,
) -> None:
    for number in range(len(state.networks), len(listed.networks)):
        context.session.check()
        context.session.progress(
            step=number,
            total=len(listed.networks),
            message="measuring whole networks",
            phase="networks",
        )
        state.networks.append(time_network(context, request, device, listed.architectures[number]))
        save(context, state)


def time_network(
    context: JobContext,
    request: CostTableRequest,
    device: Device,
    architecture: Mapping[str, Any],
) -> dict[str, Any]:
    """Time one whole network under the table's conditions: ``median_ms``, ``joules``, …"""
    args = {
        **request.model_dump(include={"data", "batch", "precision", "repeats"}),
        "architecture": architecture,
        "device": device.name,
    }
    with context.session.device(device, "exclusive"):
        head = context.call("time_network", args, limits=Limits(timeout_s=CHUNK_S)).head
    return {name: head[name] for name in ("median_ms", "p95_ms", "joules", "meter")}


def _energy(listed: Listed, timed: Sequence[Mapping[str, Any]]) -> Mapping[str, Json] | None:
    """Fit an energy model to the networks that a meter saw; None where there is no meter."""
    metered = [number for number, item in enumerate(timed) if item["joules"]]
    if len(metered) < 2:
        return None
    executed = [[listed.operations[place] for place in listed.networks[n]] for n in metered]
    return EnergyModel.fit(
        [sum(item.macs for item in network) for network in executed],
        [sum(item.moved_bytes for item in network) for network in executed],
        [timed[number]["joules"] for number in metered],
        meter=timed[metered[0]]["meter"],
    ).to_json()


def save(context: JobContext, state: Measured) -> None:
    """Write a checkpoint of all that was measured."""
    digest = context.store.files.put(checkpoint.pack({"state": json.dumps(vars(state))}))
    steps = len(state.entries) + len(state.networks) + len(state.whole)
    context.store.jobs.save_checkpoint(context.job.id, context.session.token, digest, steps)


def measured_before(context: JobContext) -> Measured:
    """Return what the job measured before it was interrupted: the newest checkpoint that loads."""
    for step, digest in context.store.jobs.checkpoints(context.job.id):
        try:
            saved = checkpoint.unpack(context.store.files.get(digest))["state"]
        except (CorruptArtifactError, NotFoundError) as error:
            context.session.log(f"checkpoint {step} is unusable: {error}", level="warning")
            continue
        context.session.log(f"resumed after {step} measurements")
        return Measured(**json.loads(saved))
    return Measured()
