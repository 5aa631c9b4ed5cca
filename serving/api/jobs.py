"""Jobs: submitted, watched, stopped; each owner sees its own."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from serving.api import schemas
from serving.api.auth import Principal
from serving.api.context import (
    Api,
    Caller,
    Context,
    Cursor,
    Limit,
    Name,
    Word,
    clean,
    hidden_jobs,
    own_job,
)
from serving.api.errors import json_response
from zoo.catalogue import ANY_DEVICE, check_names
from zoo.client import ON_DEVICE
from zoo.errors import ForbiddenError
from zoo.jobs import Arm, Job, JobKind, JobRequest, JobState
from zoo.schemas import AssembleRequest, TrainRequest, parse_request
from zoo.store.protocols import JobQuery, Origin

IdempotencyKey = Annotated[str | None, Header(pattern=r"^[\x21-\x7e]{1,200}$")]

router = APIRouter(prefix="/v1", tags=["Jobs"])


@router.get("/jobs", response_model=schemas.JobPage)
def list_jobs(
    api: Api,
    caller: Caller,
    kind: JobKind | None = None,
    state: JobState | None = None,
    owner: Word = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List jobs, newest first: the caller's own, or with the scope admin anybody's."""
    if not caller.admin:
        owner = caller.owner
    query = JobQuery(kind=kind, state=state, owner=owner)
    page = api.store.jobs.jobs(query, limit=limit, cursor=cursor)
    return json_response({"items": [job.to_json() for job in page.items], "next": page.next})


@router.post("/jobs", status_code=202, response_model=schemas.JobAnswer)
def submit_job(
    api: Api, caller: Caller, body: schemas.SubmitJob, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a job. The same Idempotency-Key with the same request gives the same job again."""
    job = _submit(
        api,
        caller,
        body.kind,
        body.spec,
        name=body.name,
        device=body.device,
        idempotency_key=idempotency_key,
    )
    return json_response(job.to_json(), 202)


@router.post("/assemble", status_code=202, response_model=schemas.JobAnswer)
def submit_assembly(
    api: Api,
    caller: Caller,
    body: AssembleRequest,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a job that assembles the zoo's best chain under limits."""
    job = _submit(
        api, caller, JobKind.ASSEMBLE, body.model_dump(mode="json"), idempotency_key=idempotency_key
    )
    return json_response(job.to_json(), 202)


@router.get("/jobs/{job_id}", response_model=schemas.JobAnswer)
def show_job(api: Api, caller: Caller, job_id: Name) -> Response:
    """Return one job."""
    return json_response(own_job(api, caller, job_id).to_json())


@router.post("/jobs/{job_id}/cancel", response_model=schemas.JobAnswer)
def cancel_job(api: Api, caller: Caller, job_id: Name) -> Response:
    """Cancel a job; a running one stops at its next step."""
    own_job(api, caller, job_id)
    return json_response(api.store.jobs.request(job_id, JobRequest.CANCEL).to_json())


@router.post("/jobs/{job_id}/pause", response_model=schemas.JobAnswer)
def pause_job(api: Api, caller: Caller, job_id: Name) -> Response:
    """Pause a job; a running one stops at its next step and keeps its checkpoint."""
    own_job(api, caller, job_id)
    return json_response(api.store.jobs.request(job_id, JobRequest.PAUSE).to_json())


@router.post("/jobs/{job_id}/resume", response_model=schemas.JobAnswer)
def resume_job(api: Api, caller: Caller, job_id: Name) -> Response:
    """Put a paused job back in the queue."""
    own_job(api, caller, job_id)
    job = api.store.jobs.resume(job_id)
    _announce(api, job)
    return json_response(job.to_json())


@router.delete("/jobs/{job_id}", status_code=204)
def delete_job(api: Api, caller: Caller, job_id: Name) -> Response:
    """Delete a job that is over, with its candidates and log; its models stay in the zoo."""
    own_job(api, caller, job_id)
    api.store.jobs.delete(job_id)
    return Response(status_code=204)


@router.get("/jobs/{job_id}/events", response_model=list[schemas.EventAnswer])
def job_events(
    api: Api,
    caller: Caller,
    job_id: Name,
    after: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Return the lines of a job's log after number ``after``."""
    own_job(api, caller, job_id)
    events = api.store.jobs.events(job_id, after=after, limit=limit)
    return json_response([event.to_json() for event in events])


@router.get("/jobs/{job_id}/candidates", response_model=list[schemas.CandidateAnswer])
def job_candidates(api: Api, caller: Caller, job_id: Name, arm: Arm | None = None) -> Response:
    """Return a job's candidates; a job of another owner that one was reused from is not named."""
    own_job(api, caller, job_id)
    candidates = api.store.jobs.candidates(job_id, arm=arm)
    sources = {item.reused_from for item in candidates if item.reused_from is not None}
    hidden = hidden_jobs(api, caller, sources)
    return json_response(
        [
            item.to_json() | ({"reused_from": None} if item.reused_from in hidden else {})
            for item in candidates
        ]
    )


@router.get("/savings", response_model=dict[str, float])
def savings(api: Api, caller: Caller, job: Word = None, owner: Word = None) -> Response:
    """Return what shared evaluations saved: in one job, or in all that the caller may see."""
    owner = _whose_savings(api, caller, job, owner)
    return json_response(dict(api.store.jobs.savings(job, owner=owner)))


@router.get("/savings/origins", response_model=list[schemas.OriginAnswer])
def savings_origins(api: Api, caller: Caller, job: Word = None, owner: Word = None) -> Response:
    """Return whose evaluations were taken; jobs of other owners are one, without a name."""
    owner = _whose_savings(api, caller, job, owner)
    found = api.store.jobs.origins(job, owner=owner)
    hidden = hidden_jobs(api, caller, [it.job for it in found if it.job is not None])
    named = [it.to_json() for it in found if it.job not in hidden]
    others = [it for it in found if it.job in hidden]
    if others:
        hits, saved_s = sum(it.hits for it in others), sum(it.saved_s for it in others)
        named.append(Origin(job=None, hits=hits, saved_s=saved_s).to_json())
    return json_response(named)


def _whose_savings(
    api: Context, caller: Principal, job: str | None, owner: str | None
) -> str | None:
    """Return whose jobs are counted: the caller's own, with the scope admin anybody's."""
    if job is not None:
        own_job(api, caller, job)
    return owner if caller.admin else caller.owner


def _submit(
    api: Context,
    caller: Principal,
    kind: JobKind,
    spec: dict[str, Any],
    *,
    name: str = "",
    device: str | None = None,
    idempotency_key: str | None = None,
) -> Job:
    """Check a request as far as can be known here, write its job and announce it."""
    clean(spec, "spec")
    request = parse_request(kind, spec)
    if device is None and kind in ON_DEVICE:
        wanted = getattr(request, "device", ANY_DEVICE)
        device = None if wanted == ANY_DEVICE else wanted
    check_names(api.store.devices.workers(), request, device=device, trusted=caller.admin)
    alias = {AssembleRequest: "name", TrainRequest: "alias"}.get(type(request))
    if alias is not None and getattr(request, alias) is not None:
        _check_alias(api, caller, getattr(request, alias))
    job = api.store.jobs.submit(
        kind,
        request.model_dump(mode="json"),
        owner=caller.owner,
        name=name,
        device=device,
        idempotency_key=idempotency_key,
    )
    _announce(api, job)
    return job


def _announce(api: Context, job: Job) -> None:
    """Tell a worker, after the row is committed; the reaper makes up for a lost message."""
    if api.queue is not None and job.state is JobState.QUEUED:
        api.queue.send(job.id)


def _check_alias(api: Context, caller: Principal, alias: str) -> None:
    """Refuse a job now whose worker could not give its chain the alias in the end.

    Raises:
        ForbiddenError: The alias is another owner's.
    """
    if api.store.blocks.alias_owner(alias) not in (None, caller.owner):
        raise ForbiddenError(f"alias {alias} belongs to another owner; choose another name")
