"""Blocks, chains, aliases, profiles and lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from serving.api import schemas
from serving.api.auth import Principal
from serving.api.context import (
    Api,
    Caller,
    Context,
    Count,
    Cursor,
    Limit,
    Name,
    Ref,
    Word,
    check_job,
    clean,
    hidden_jobs,
)
from serving.api.errors import json_response
from serving.api.uploads import check_onnx, check_safetensors
from zoo.canonical import Json
from zoo.errors import ForbiddenError, NotFoundError
from zoo.spec import Block, BlockSpec, Chain, Profile
from zoo.store.protocols import BlockQuery, ChainQuery, Edge

ONNX_TYPE = "application/octet-stream"
JOB_PREFIX = "job_"

Flag = Annotated[bool, Query()]
Order = Literal["created", "accuracy", "num_params", "size_bytes", "latency"]
Measure = Annotated[float | None, Query(ge=0, allow_inf_nan=False)]
Signature = Annotated[str | None, Query(max_length=256, pattern=r"^[\x20-\x7e]*$")]
Operation = Annotated[str | None, Query(pattern=r"^[0-9A-Za-z_][0-9A-Za-z_./:-]{0,127}$")]
DeviceName = Annotated[str | None, Query(max_length=256, pattern=r"^[\x20-\x7e]*$")]
Task = Annotated[str | None, Query(max_length=256, pattern=r"^[^\x00]*$")]

router = APIRouter(prefix="/v1", tags=["Zoo"])


@router.get("/blocks", response_model=schemas.BlockPage)
def list_blocks(
    api: Api,
    op: Operation = None,
    signature: Signature = None,
    max_params: Count = None,
    max_size_bytes: Count = None,
    order: Literal["created", "num_params", "size_bytes"] = "created",
    descending: Flag = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List blocks that pass every filter."""
    query = BlockQuery(
        op=op,
        signature=signature,
        max_params=max_params,
        max_size_bytes=max_size_bytes,
        order=order,
        descending=descending,
    )
    page = api.store.blocks.blocks(query, limit=limit, cursor=cursor)
    return json_response({"items": [block.to_json() for block in page.items], "next": page.next})


@router.post("/blocks", status_code=201, response_model=schemas.IdAnswer)
def put_block(api: Api, caller: Caller, body: schemas.PutBlock) -> Response:
    """Add a block whose weights were uploaded to /v1/files; they must be safetensors."""
    check_job(api, caller, body.job)
    clean(body.spec.params, "spec.params")
    block = Block(
        spec=BlockSpec.from_json(body.spec.model_dump()),
        weights=body.weights,
        num_params=body.num_params,
        size_bytes=body.size_bytes,
        signature=body.signature,
    )
    check_safetensors(api.store.files.get(body.weights))
    return json_response({"id": api.store.blocks.put_block(block, job=body.job)}, 201)


@router.get("/blocks/{ref}", response_model=schemas.BlockAnswer)
def show_block(api: Api, ref: Ref) -> Response:
    """Return one block."""
    return json_response(api.store.blocks.block(ref).to_json())


@router.get("/chains", response_model=schemas.ChainPage)
def list_chains(
    api: Api,
    caller: Caller,
    task: Task = None,
    block: Word = None,
    job: Word = None,
    min_accuracy: Measure = None,
    max_params: Count = None,
    max_size_bytes: Count = None,
    max_latency_ms: Measure = None,
    device: DeviceName = None,
    runtime: Annotated[str, Query(pattern=r"^[a-z0-9_-]{1,32}$")] = "torch",
    batch: Annotated[int, Query(ge=1, le=2**31 - 1)] = 1,
    order: Order = "created",
    descending: Flag = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List chains that pass every filter; latency is as measured on ``device``."""
    query = ChainQuery(
        task=task,
        block=block,
        job=job,
        min_accuracy=min_accuracy,
        max_params=max_params,
        max_size_bytes=max_size_bytes,
        max_latency_ms=max_latency_ms,
        device=device,
        runtime=runtime,
        batch=batch,
        order=order,
        descending=descending,
    )
    check_job(api, caller, job)
    page = api.store.blocks.chains(query, limit=limit, cursor=cursor)
    return json_response({"items": _shown(api, caller, page.items), "next": page.next})


@router.post("/chains", status_code=201, response_model=schemas.IdAnswer)
def put_chain(api: Api, caller: Caller, body: schemas.PutChain) -> Response:
    """Add a chain of known blocks; a known one of the caller's takes the newer card."""
    check_job(api, caller, body.job)
    clean(body.card, "card")
    if body.onnx is not None:
        check_onnx(api.store.files.get(body.onnx))
    blocks = {block_id: api.store.blocks.block(block_id) for block_id in dict.fromkeys(body.blocks)}
    chain = Chain(blocks=tuple(blocks[block_id] for block_id in body.blocks), card=body.card)
    chain_id = api.store.blocks.put_chain(
        chain, job=body.job, onnx=body.onnx, owner=caller.owner, guard=not caller.admin
    )
    return json_response({"id": chain_id}, 201)


@router.get("/chains/{ref}", response_model=schemas.ChainAnswer)
def show_chain(api: Api, caller: Caller, ref: Ref) -> Response:
    """Return one chain with its blocks and card; another owner's job in it is not named."""
    return json_response(_shown(api, caller, [api.store.blocks.chain(ref)])[0])


@router.delete("/chains/{ref}", status_code=204)
def delete_chain(api: Api, caller: Caller, ref: Ref) -> Response:
    """Delete a chain of the caller's; its blocks stay until they are collected as garbage."""
    api.store.blocks.delete_chain(ref, owner=caller.owner, guard=not caller.admin)
    return Response(status_code=204)


@router.head("/chains/{ref}/onnx", response_class=Response)
def look_at_onnx(api: Api, ref: Ref) -> Response:
    """Say whether the chain has an ONNX file; the header X-Digest has its sha256."""
    return Response(media_type=ONNX_TYPE, headers={"X-Digest": _onnx(api, ref)})


@router.get("/chains/{ref}/onnx", response_class=Response)
def chain_onnx(api: Api, ref: Ref) -> Response:
    """Return the chain's ONNX file; the header X-Digest has its sha256."""
    digest = _onnx(api, ref)
    data = api.store.files.get(digest)
    return Response(data, media_type=ONNX_TYPE, headers={"X-Digest": digest})


@router.get("/aliases", response_model=dict[str, str])
def list_aliases(api: Api) -> Response:
    """Return every alias and the id of its chain."""
    return json_response(dict(api.store.blocks.aliases()))


@router.get("/aliases/{name}", response_model=schemas.IdAnswer)
def show_alias(api: Api, name: Name) -> Response:
    """Return the id of an alias's chain."""
    chain = api.store.blocks.aliases().get(name)
    if chain is None:
        raise NotFoundError(f"no chain has the alias {name}; PUT /v1/aliases/{name} gives it")
    return json_response({"id": chain})


@router.put("/aliases/{name}", response_model=schemas.IdAnswer)
def set_alias(api: Api, caller: Caller, name: Name, body: schemas.PutAlias) -> Response:
    """Give an alias to a chain; one that is in use must be the caller's."""
    api.store.blocks.set_alias(name, body.chain, owner=caller.owner, guard=not caller.admin)
    return json_response({"id": api.store.blocks.chain(name).id})


@router.get("/profiles", response_model=list[schemas.PutProfile])
def list_profiles(
    api: Api,
    subject: Annotated[str, Query(pattern=r"^[0-9a-f]{64}$")],
    device: DeviceName = None,
) -> Response:
    """Return what was measured of a block or chain."""
    profiles = api.store.blocks.profiles(subject, device=device)
    return json_response([profile.to_json() for profile in profiles])


@router.post("/profiles", status_code=204)
def put_profile(api: Api, caller: Caller, body: schemas.PutProfile) -> Response:
    """Record a measurement; it replaces the one under the same conditions."""
    _check_chain(api, caller, body.subject)
    api.store.blocks.put_profile(Profile.from_json(body.model_dump()))
    return Response(status_code=204)


@router.get("/lineage/{ref}", response_model=list[schemas.EdgeBody])
def lineage(api: Api, caller: Caller, ref: Ref) -> Response:
    """Return what a block, chain or job was made from, and what was made from it.

    Steps that another owner's job took are left out.
    """
    if ref.startswith(JOB_PREFIX):
        check_job(api, caller, ref)
    edges = api.store.blocks.lineage(ref)
    ends = {end for edge in edges for end in (edge.child, edge.parent)}
    hidden = hidden_jobs(api, caller, (end for end in ends if end.startswith(JOB_PREFIX)))
    return json_response(
        [edge.to_json() for edge in edges if not hidden & {edge.child, edge.parent}]
    )


@router.post("/lineage", status_code=204)
def add_lineage(api: Api, caller: Caller, body: schemas.PutEdges) -> Response:
    """Record steps of lineage; recording one again changes nothing."""
    edges = [Edge.from_json(edge.model_dump()) for edge in body.edges]
    for end in {end for edge in edges for end in (edge.child, edge.parent)}:
        if end.startswith(JOB_PREFIX):
            check_job(api, caller, end)
    for child in {edge.child for edge in edges}:
        _check_chain(api, caller, child)
    api.store.blocks.add_edges(edges)
    return Response(status_code=204)


def _shown(api: Context, caller: Principal, chains: Sequence[Chain]) -> list[dict[str, Json]]:
    """Return chains as JSON, with null for every job in a card that the caller may not see."""
    shown = [chain.to_json() for chain in chains]
    named = {job_id for item in shown for job_id in _jobs_in(item["card"])}
    hidden = hidden_jobs(api, caller, named)
    return [item | {"card": _without(item["card"], hidden)} for item in shown] if hidden else shown


def _jobs_in(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        if value.startswith(JOB_PREFIX):
            yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _jobs_in(part)


def _without(value: Json, hidden: frozenset[str]) -> Json:
    if isinstance(value, dict):
        return {key: _without(part, hidden) for key, part in value.items()}
    if isinstance(value, list):
        return [_without(part, hidden) for part in value]
    return None if isinstance(value, str) and value in hidden else value


def _check_chain(api: Context, caller: Principal, subject: str) -> None:
    """Refuse to write what is known about another owner's chain; blocks are everybody's.

    Raises:
        ForbiddenError: ``subject`` is such a chain.
    """
    if caller.admin:
        return
    try:
        owner = api.store.blocks.chain_owner(subject)
    except NotFoundError:
        return
    if owner != caller.owner:
        raise ForbiddenError(
            f"chain {subject} belongs to another owner; only that owner or an admin may do this"
        )


def _onnx(api: Context, ref: str) -> str:
    digest = api.store.blocks.onnx(ref)
    if digest is None:
        raise NotFoundError(f"chain {ref} has no ONNX file; searches export their winners")
    return digest
