"""Recompute stored fronts for another device: its operations are measured, nothing trains.

A front of a search is a choice among candidates that were trained; only their latency
depends on the device. It is the sum of a latency table, measured once for each space, and
the networks on the new front are measured whole, so that the answer says how far off the
sums are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from nas.cost.table import Additivity, Entry, LatencyTable
from nas.pareto import front
from workers.context import JobContext
from workers.cost_table_job import Measured, listing, measure_operations, time_network
from zoo.canonical import Json, canonical_json, plain
from zoo.errors import InvalidInputError, NotFoundError
from zoo.jobs import Arm, Candidate, CandidateState, Job, JobKind, JobState
from zoo.schemas import METRICS, CostTableRequest, FrontsRequest, SearchRequest, parse_request
from zoo.spec import Device
from zoo.store.protocols import JobQuery

LATENCY = "latency_ms"


def run(context: JobContext) -> Mapping[str, Json]:
    """Recompute the fronts of finished searches on a device.

    Returns:
        ``{"device", "fronts": [{"job", "front": [{"candidate", "architecture", "metrics",
        "sum_ms"}], "considered", "median_error"}], "measured"}``: ``metrics`` hold the
        latency measured on the device, ``sum_ms`` is what the table gave for it.

    Raises:
        InvalidInputError: A job that was named is no finished search, or there is none.
    """
    request = cast(FrontsRequest, parse_request(JobKind.FRONTS, context.job.spec))
    device = context.target(request.device)
    if not context.owns(device):
        return context.delegate(JobKind.FRONTS, context.job.spec, device)
    jobs = _searches(context, request.jobs)
    states: dict[bytes, Measured] = {}
    fronts: list[Json] = []
    for number, job in enumerate(jobs):
        context.session.progress(
            step=number, total=len(jobs), message=f"recomputing {job.id[:12]}", phase="fronts"
        )
        search = SearchRequest.model_validate(job.spec)
        table_request = CostTableRequest(
            space=search.space, data=search.data, batch=search.batch, repeats=request.repeats
        )
        # Operations are keyed by what they compute, so spaces share what they have in common.
        state = states.setdefault(canonical_json({"batch": search.batch}), Measured())
        fronts.append(_recomputed(context, job, search, table_request, device, state))
    measured = sum(len(state.entries) for state in states.values())
    return {"device": device.id, "fronts": fronts, "measured": measured}


def _searches(context: JobContext, wanted: Sequence[str]) -> list[Job]:
    """Return the searches that were named, or all of the owner's that succeeded."""
    jobs, owner = context.store.jobs, context.job.owner
    if not wanted:
        found: list[Job] = []
        cursor: str | None = None
        query = JobQuery(kind=JobKind.SEARCH, state=JobState.SUCCEEDED, owner=owner)
        while True:
            page = jobs.jobs(query, cursor=cursor)
            found += page.items
            cursor = page.next
            if cursor is None:
                break
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
    listed = listing(context, request, [item.architecture for item in candidates])
    measure_operations(context, request, device, listed.operations, state)
    table = LatencyTable(
        device={"id": device.id},
        runtime="torch",
        precision=request.precision,
        batch=request.batch,
        entries={key: Entry(**entry) for key, entry in state.entries.items()},
    )
    sums = [table.total_ms(listed.keys(number)) for number in range(len(candidates))]
    metrics = [{**item.metrics, LATENCY: ms} for item, ms in zip(candidates, sums, strict=True)]
    allowed = [
        number
        for number, values in enumerate(metrics)
        if all(
            limit.metric in values and limit.holds(values[limit.metric]) for limit in search.limits
        )
    ]
    points = [[metrics[number][name] for name in search.objectives] for number in allowed]
    best = [allowed[int(place)] for place in front(points, [METRICS[n] for n in search.objectives])]
    rows: list[Json] = []
    times = []
    for number in best:
        timed = time_network(context, request, device, plain(candidates[number].architecture))  # type: ignore[arg-type]
        times.append(timed["median_ms"])
        rows.append(
            {
                "candidate": candidates[number].number,
                "architecture": plain(candidates[number].architecture),
                "metrics": {**metrics[number], LATENCY: timed["median_ms"]},
                "sum_ms": sums[number],
            }
        )
    checked = Additivity.compare([sums[n] for n in best], times) if best else None
    return {
        "job": job.id,
        "front": rows,
        "considered": len(candidates),
        "feasible": len(allowed),
        "median_error": checked.median_error if checked else None,
    }


def _judged(context: JobContext, job: Job, search: SearchRequest) -> list[Candidate]:
    """Return the search's candidates with all objectives but latency, equal ones once."""
    others = [name for name in search.objectives if name != LATENCY]
    found: dict[Any, Candidate] = {}
    for item in context.store.jobs.candidates(job.id, arm=Arm.SEARCH):
        if item.state is CandidateState.EVALUATED and all(n in item.metrics for n in others):
            found.setdefault(item.signature or item.architecture_id, item)
    return list(found.values())
