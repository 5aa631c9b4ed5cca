"""Recompute stored fronts for another device: its operations are measured, nothing trains.

A front of a search is a choice among candidates that were trained; only their latency
depends on the device. It is the sum of a latency table: what finished tables of
the device hold is taken from them, and only what they lack is measured. The networks on
the new front are measured whole, so that the answer says how far off the sums are.

Tables hold operations as torch runs them. Of a search that asked for another runtime, which
fuses operations as it likes, every candidate is measured whole in that runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Literal, cast

import numpy as np

from nas.cost.table import Entry, LatencyTable, overhead_ms
from nas.pareto import front
from workers.context import JobContext
from workers.cost_table_job import (
    Listed,
    Measured,
    listing,
    measure_operations,
    measured_before,
    save,
    time_network,
)
from workers.latency import PREDICTED, measure
from zoo.canonical import Json, canonical_json, plain
from zoo.errors import InvalidInputError, NotFoundError
from zoo.jobs import Arm, Candidate, CandidateState, Job, JobKind, JobState
from zoo.schemas import METRICS, CostTableRequest, FrontsRequest, SearchRequest, parse_request
from zoo.spec import Device
from zoo.store.protocols import JobQuery

LATENCY = "latency_ms"

TABLED = "torch"
"""The runtime whose operations are in tables."""

PRECISION: Literal["float32"] = "float32"

CALIBRATED = 5
"""Networks measured whole before a front is chosen, for the overhead of calls."""


def run(context: JobContext) -> Mapping[str, Json]:
    """Recompute the fronts of finished searches on a device.

    Returns:
        ``{"device", "fronts": [{"job", "front": [{"candidate", "architecture", "metrics",
        "sum_ms", "feasible"}], "considered", "feasible", "median_error"}], "measured"}``:
        ``metrics`` hold the latency measured on the device, by which ``feasible`` judges;
        ``sum_ms`` is what the table gave for it. It is None, like ``median_error``, for a
        search in another runtime than torch. ``measured`` are operations, and networks of
        such searches.

    Raises:
        InvalidInputError: A job that was named is no finished search, or there is none.
    """
    request = cast(FrontsRequest, parse_request(JobKind.FRONTS, context.job.spec))
    device = context.target(request.device)
    if not context.owns(device):
        return context.delegate(JobKind.FRONTS, context.job.spec, device)
    jobs = _searches(context, request.jobs)
    # Operations are keyed by what they compute, shapes included: searches share them.
    state = measured_before(context)
    state.entries = _tabled(context, device) | state.entries
    known = len(state.entries)
    fronts: list[Json] = []
    for number, job in enumerate(jobs):
        context.session.progress(
            step=number, total=len(jobs), message=f"recomputing {job.id[:12]}", phase="fronts"
        )
        search = SearchRequest.model_validate(job.spec)
        table_request = CostTableRequest(
            space=search.space,
            data=search.data,
            batch=search.batch,
            precision=PRECISION,
            repeats=request.repeats,
        )
        fronts.append(_recomputed(context, job, search, table_request, device, state))
    measured = len(state.entries) - known + len(state.whole)
    return {"device": device.id, "fronts": fronts, "measured": measured}


def _tabled(context: JobContext, device: Device) -> dict[str, Any]:
    """Return what finished tables of the device hold, so that nothing is measured again."""
    query = JobQuery(kind=JobKind.COST_TABLE, state=JobState.SUCCEEDED, owner=context.job.owner)
    entries: dict[str, Any] = {}
    for job in _every(context, query):
        result: Any = job.result or {}
        if result.get("device") == device.id and result["table"]["precision"] == PRECISION:
            entries = {**result["table"]["entries"], **entries}  # newest first
    return entries


def _searches(context: JobContext, wanted: Sequence[str]) -> list[Job]:
    """Return the searches that were named, or all of the owner's that succeeded."""
    jobs, owner = context.store.jobs, context.job.owner
    if not wanted:
        query = JobQuery(kind=JobKind.SEARCH, state=JobState.SUCCEEDED, owner=owner)
        found = list(_every(context, query))
        if not found:
            raise InvalidInputError("no search has succeeded yet; there is no front to recompute")
        return found
    named = [jobs.job(job_id) for job_id in wanted]
    for job in named:
        if job.owner != owner:
            raise NotFoundError(f"there is no job {job.id}")
        if job.kind is not JobKind.SEARCH or job.state is not JobState.SUCCEEDED:
            raise InvalidInputError(f"job {job.id} is a {job.state} {job.kind}, no finished search")
    return named


def _every(context: JobContext, query: JobQuery) -> Iterator[Job]:
    """Yield all jobs of a query, newest first, page by page."""
    cursor: str | None = None
    while True:
        page = context.store.jobs.jobs(query, cursor=cursor)
        yield from page.items
        cursor = page.next
        if cursor is None:
            return


def _recomputed(
    context: JobContext,
    job: Job,
    search: SearchRequest,
    request: CostTableRequest,
    device: Device,
    state: Measured,
) -> Json:
    """Return one search's front on ``device``, its networks measured whole."""
    candidates = _judged(context, job, search)
    if not candidates:
        return {"job": job.id, "front": [], "considered": 0, "feasible": 0, "median_error": None}
    if search.runtime == TABLED:
        listed, sums = _summed(context, request, device, candidates, state)
    else:
        listed, sums = None, _measured(context, search, device, candidates, state)
    metrics = [{**item.metrics, LATENCY: ms} for item, ms in zip(candidates, sums, strict=True)]
    for values in metrics:
        values.pop(PREDICTED, None)  # that of the search; the front's networks are measured
    allowed = [number for number, values in enumerate(metrics) if _holds(search, values)]
    points = [[metrics[number][name] for name in search.objectives] for number in allowed]
    best = [allowed[int(place)] for place in front(points, [METRICS[n] for n in search.objectives])]
    rows: list[Json] = []
    errors = []
    for number in best:
        values = metrics[number]
        if listed is not None:
            timed = time_network(context, request, device, listed.architectures[number])
            values = {**values, LATENCY: timed["median_ms"]}
            errors.append(abs(sums[number] / timed["median_ms"] - 1))
        rows.append(
            {
                "candidate": candidates[number].number,
                "architecture": plain(candidates[number].architecture),
                "metrics": plain(values),
                "sum_ms": None if listed is None else sums[number],
                "feasible": _holds(search, values),
            }
        )
    return {
        "job": job.id,
        "front": rows,
        "considered": len(candidates),
        "feasible": len(allowed),
        "median_error": median(errors) if errors else None,
    }


def _summed(
    context: JobContext,
    request: CostTableRequest,
    device: Device,
    candidates: Sequence[Candidate],
    state: Measured,
) -> tuple[Listed, list[float]]:
    """Return the candidates' operations, and the sums of a table of them, in ms."""
    listed = listing(context, request, [item.architecture for item in candidates])
    measure_operations(context, request, device, listed.operations, state)
    table = _calibrated(context, request, device, listed, state)
    return listed, [table.total_ms(listed.keys(number)) for number in range(len(candidates))]


def _measured(
    context: JobContext,
    search: SearchRequest,
    device: Device,
    candidates: Sequence[Candidate],
    state: Measured,
) -> list[float]:
    """Return every candidate's latency in ms, measured whole in the search's runtime."""
    terms = {"data": search.data, "runtime": search.runtime, "batch": search.batch}
    found = []
    for number, item in enumerate(candidates):
        key = canonical_json({"architecture": item.architecture_id, **terms}).decode()
        if key not in state.whole:
            context.session.check()
            context.session.progress(
                step=number,
                total=len(candidates),
                message="measuring whole networks",
                phase="networks",
            )
            args = {"architecture": plain(item.architecture), **terms}
            state.whole[key] = measure(context, args, device)["median_ms"]
            save(context, state)
        found.append(state.whole[key])
    return found


def _holds(search: SearchRequest, values: Mapping[str, float]) -> bool:
    return all(
        limit.metric in values and limit.holds(values[limit.metric]) for limit in search.limits
    )


def _calibrated(
    context: JobContext,
    request: CostTableRequest,
    device: Device,
    listed: Listed,
    state: Measured,
) -> LatencyTable:
    """Return the table of what was measured, its overhead found on a few whole networks."""
    table = LatencyTable(
        device={"id": device.id},
        runtime=TABLED,
        precision=request.precision,
        batch=request.batch,
        entries={key: Entry(**entry) for key, entry in state.entries.items()},
    )
    last = len(listed.networks) - 1
    chosen = sorted({round(k * last / (CALIBRATED - 1)) for k in range(CALIBRATED)})
    sums = [table.total_ms(listed.keys(number)) for number in chosen]
    timed = [
        time_network(context, request, device, listed.architectures[number])["median_ms"]
        for number in chosen
    ]
    counts = [len(listed.networks[number]) for number in chosen]
    return replace(table, overhead_ms=overhead_ms(*map(np.asarray, (sums, timed, counts))))


def _judged(context: JobContext, job: Job, search: SearchRequest) -> list[Candidate]:
    """Return the search's candidates with all objectives but latency, each architecture once.

    Those that compute the same may differ in what they cost.
    """
    others = [name for name in search.objectives if name != LATENCY]
    found: dict[str, Candidate] = {}
    for item in context.store.jobs.candidates(job.id, arm=Arm.SEARCH):
        if item.state is CandidateState.EVALUATED and all(n in item.metrics for n in others):
            found.setdefault(item.architecture_id, item)
    return list(found.values())
