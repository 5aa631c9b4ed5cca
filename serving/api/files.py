"""Content-addressed bytes, named by nothing but their sha256."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.api import schemas
from serving.api.context import Api, Digest
from serving.api.errors import json_response
from zoo.errors import InvalidInputError, TooLargeError

OCTETS = "application/octet-stream"

router = APIRouter(prefix="/v1", tags=["Files"])


@router.get("/files", response_model=list[str])
def list_files(api: Api, verify: Annotated[bool, Query()] = False) -> Response:
    """Return every digest, or with ``verify`` those whose bytes are damaged."""
    files = api.store.files
    return json_response(files.verify() if verify else list(files.digests()))


@router.get("/files/{digest}", response_class=Response)
def download(api: Api, digest: Digest) -> Response:
    """Return the bytes; damaged ones are never sent."""
    return Response(api.store.files.get(digest), media_type=OCTETS)


@router.head("/files/{digest}", response_class=Response)
def look(api: Api, digest: Digest) -> Response:
    """Say whether the file is there, and its size."""
    size = api.store.files.size(digest)
    return Response(media_type=OCTETS, headers={"Content-Length": str(size)})


@router.put("/files/{digest}", status_code=201, response_model=schemas.IdAnswer)
async def upload(api: Api, digest: Digest, request: Request) -> Response:
    """Keep the bytes of the body, which must have this digest."""
    limit = api.settings.max_file_bytes
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLargeError(f"the file has {length} bytes; at most {limit} are taken")
    body, seen = bytearray(), hashlib.sha256()
    try:
        async for chunk in request.stream():
            body += chunk
            seen.update(chunk)
            if len(body) > limit:
                raise TooLargeError(f"the file has more than {limit} bytes")
    except ClientDisconnect as error:
        raise InvalidInputError("the client left before its file was read") from error
    if seen.hexdigest() != digest:
        raise InvalidInputError(
            f"the body has digest {seen.hexdigest()}, not {digest}; nothing was kept"
        )
    kept = await api.in_thread(api.store.files.put, bytes(body))
    return json_response({"id": kept}, 201)


@router.delete("/files/{digest}", status_code=204)
def delete(api: Api, digest: Digest) -> Response:
    """Delete a file, whatever refers to it."""
    api.store.files.delete(digest)
    return Response(status_code=204)


@router.get("/verify", response_model=list[str])
def verify(api: Api) -> Response:
    """Read every file; return the digests of damaged ones, and of missing ones in use."""
    return json_response(api.store.blocks.verify())


@router.post("/gc", response_model=schemas.CollectAnswer)
def collect(api: Api, body: schemas.CollectRequest) -> Response:
    """Delete blocks and files that nothing refers to; with ``dry_run`` only list them."""
    if not body.dry_run:
        num_blocks, num_files = api.store.blocks.collect()
        found: tuple[list[str], list[str]] = ([], [])
    else:
        found = api.store.blocks.garbage()
        num_blocks, num_files = len(found[0]), len(found[1])
    return json_response(
        {
            "dry_run": body.dry_run,
            "num_blocks": num_blocks,
            "num_files": num_files,
            "blocks": found[0],
            "files": found[1],
        }
    )
