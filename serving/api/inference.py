"""KServe V2: server and model metadata, readiness, inference and the model repository.

Differs from the protocol where it leaves the choice: a model's only version is the id of
the chain that its name stands for, and a model is loaded by its first request.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from importlib.metadata import version as installed
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive
from torch import Tensor

from serving.api import schemas
from serving.api.context import Api, Context, Name, check_not_draining
from serving.api.errors import json_response
from serving.api.models import Model
from serving.api.ports import Port
from serving.api.settings import ApiSettings
from serving.api.tensors import encode_response, parse_request
from zoo.errors import (
    DeadlineExceededError,
    InvalidInputError,
    NotReadyError,
    TooLargeError,
)

EXTENSIONS = ("binary_tensor_data", "model_repository")
PLATFORM = "blockyard_chain"
CLIENT_CLOSED_REQUEST = 499
PARSE_INLINE_BYTES = 64 * 1024
"""JSON bodies above this are parsed in a thread, so that the loop keeps answering others."""

_SCHEMA = schemas.InferBody.model_json_schema(ref_template="#/components/schemas/{model}")

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {k: v for k, v in _SCHEMA.items() if k != "$defs"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""What the inference routes take, for the OpenAPI page: they read the raw body themselves,
because theirs is the path whose cost every request pays."""

router = APIRouter(prefix="/v2", tags=["KServe V2"])


# Routes are tried in this order, so the one whose cost every request pays comes first.


@router.post("/models/{name}/infer", response_model=schemas.InferAnswer, openapi_extra=BODY)
async def infer(request: Request, name: Name) -> Response:
    """Run one batch through a model; tensors travel as JSON or as binary tensor data.

    The deadline is the shortest of the header X-Request-Deadline-Ms, the parameter
    ``timeout`` (microseconds) and the server's own. Leaving cancels the work.
    """
    return await _infer(request, name, None)


@router.post(
    "/models/{name}/versions/{version}/infer",
    response_model=schemas.InferAnswer,
    openapi_extra=BODY,
)
async def infer_version(request: Request, name: Name, version: Name) -> Response:
    """Run one batch through a model, if it has this version."""
    return await _infer(request, name, version)


@router.get("", response_model=schemas.ServerMetadata)
async def server_metadata() -> Response:
    """Name, version and extensions of this server."""
    return json_response(
        {"name": "blockyard", "version": installed("blockyard"), "extensions": EXTENSIONS}
    )


@router.get("/health/live", response_model=schemas.Live)
async def live() -> Response:
    """Say that the server runs."""
    return json_response({"live": True})


@router.get("/health/ready", response_model=schemas.Ready)
async def ready(request: Request) -> Response:
    """Say that the server takes requests; while it shuts down, the answer is 503."""
    check_not_draining(request.app)
    return json_response({"ready": True})


@router.get("/models/{name}", response_model=schemas.ModelMetadata)
async def model_metadata(api: Api, name: Name) -> Response:
    """Inputs and outputs of a model.

    An input whose parameters have ``accepts`` takes those datatypes too: UINT8 images
    are normalised by the server as the model's card says.
    """
    return _metadata(name, await api.models.find(name))


@router.get("/models/{name}/versions/{version}", response_model=schemas.ModelMetadata)
async def version_metadata(api: Api, name: Name, version: Name) -> Response:
    """Inputs and outputs of a model, if it has this version."""
    return _metadata(name, await api.models.find(name, version))


@router.get("/models/{name}/ready", response_model=schemas.ModelReady)
async def model_ready(api: Api, name: Name) -> Response:
    """Say whether a model is loaded; 503 if it is not yet."""
    return _readiness(api, name, await api.models.find(name))


@router.get("/models/{name}/versions/{version}/ready", response_model=schemas.ModelReady)
async def version_ready(api: Api, name: Name, version: Name) -> Response:
    """Say whether a model is loaded in this version; 503 if it is not yet."""
    return _readiness(api, name, await api.models.find(name, version))


@router.post("/repository/index", response_model=list[schemas.RepositoryEntry])
async def repository_index(
    api: Api, body: Annotated[schemas.RepositoryIndexRequest | None, Body()] = None
) -> Response:
    """List the aliases and the loaded models, each with its state."""
    loaded = {model.id for model in api.models.loaded}
    aliases = await api.in_thread(api.store.blocks.aliases)
    names = {**{chain: chain for chain in loaded - set(aliases.values())}, **aliases}
    entries = [
        {
            "name": name,
            "version": chain,
            "state": "READY" if chain in loaded else "UNAVAILABLE",
            "reason": "" if chain in loaded else "not loaded; its first request loads it",
        }
        for name, chain in sorted(names.items())
    ]
    only_ready = body is not None and body.ready
    return json_response([item for item in entries if item["state"] == "READY" or not only_ready])


@router.post("/repository/models/{name}/load", response_model=schemas.ModelReady)
async def load_model(api: Api, name: Name) -> Response:
    """Load a model and answer when it is ready."""
    await api.models.load(await api.models.find(name))
    return json_response({"name": name, "ready": True})


@router.post("/repository/models/{name}/unload", response_model=schemas.ModelReady)
async def unload_model(api: Api, name: Name) -> Response:
    """Unload a model once its requests are answered; its next request loads it again."""
    await api.models.unload(await api.models.find(name))
    return json_response({"name": name, "ready": False})


async def _infer(request: Request, name: str, version: str | None) -> Response:
    api: Context = request.app.state.context
    headers = request.headers
    began = time.monotonic()
    model = await api.models.find(name, version)
    body = await _read(request, api.settings.max_infer_bytes)
    header_bytes = _header_length(headers.get("inference-header-content-length"))
    if (header_bytes or len(body)) > PARSE_INLINE_BYTES:
        message = await api.in_thread(parse_request, body, header_bytes, model.ports)
    else:
        message = parse_request(body, header_bytes, model.ports)
    patience_s = _patience_s(headers, message.timeout_s, api.settings)
    outputs = await _run(api, model, message.inputs, request, deadline=began + patience_s)
    if outputs is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    head: dict[str, Any] = {"model_name": name, "model_version": model.id}
    if message.id is not None:
        head["id"] = message.id
    api.metrics.served(model.id, message.inputs[0].shape[0])
    data, header = encode_response(head, outputs, message.wanted, model.ports)
    if header is None:
        return Response(data, media_type="application/json")
    return Response(
        data,
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(header)},
    )


async def _run(
    api: Context, model: Model, inputs: tuple[Tensor, ...], request: Request, *, deadline: float
) -> tuple[Tensor, ...] | None:
    """Wait for the engine; a client that leaves meanwhile cancels its work (None).

    Raises:
        DeadlineExceededError: The deadline passed, in the queue or during the work.
    """
    watcher: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            tenant = request.scope["principal"].owner
            queued = await api.models.submit(model, inputs, deadline=deadline, tenant=tenant)
            answer = asyncio.wrap_future(queued)
            watcher = asyncio.create_task(_cancel_on_disconnect(request.receive, answer))
            return await answer
    except TimeoutError as error:
        raise DeadlineExceededError(
            f"model {model.id} had no answer within the request's deadline"
        ) from error
    except asyncio.CancelledError:
        if watcher is not None and watcher.done():
            api.metrics.disconnected()
            return None
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise NotReadyError(f"model {model.id} was unloaded meanwhile; send again") from None
    finally:
        if watcher is not None:
            watcher.cancel()


async def _cancel_on_disconnect(receive: Receive, answer: asyncio.Future[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel()


async def _read(request: Request, limit: int) -> bytearray:
    """Read the body into writable memory that tensors can share.

    Raises:
        TooLargeError: It has more than ``limit`` bytes.
    """
    length = request.headers.get("content-length", "")
    body = bytearray()
    try:
        if length.isdigit() and int(length) > limit:
            raise TooLargeError(f"the body has {length} bytes; at most {limit} are read here")
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise TooLargeError(f"the body has more than {limit} bytes")
    except ClientDisconnect as error:
        raise InvalidInputError("the client left before its request was read") from error
    return body


def _header_length(given: str | None) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdigit()) or len(given) > 12:
        raise InvalidInputError(
            f"Inference-Header-Content-Length is {given[:80]!r}; give a number of bytes"
        )
    return int(given)


def _patience_s(
    headers: Mapping[str, str], timeout_s: float | None, settings: ApiSettings
) -> float:
    """Return how long the caller waits: its header, its parameter, never above the server's."""
    limits = [settings.deadline_s]
    if timeout_s is not None:
        limits.append(timeout_s)
    given = headers.get("x-request-deadline-ms")
    if given is not None:
        try:
            deadline_ms = float(given)
        except ValueError:
            deadline_ms = math.nan
        if not 0 < deadline_ms < math.inf:
            raise InvalidInputError(
                f"X-Request-Deadline-Ms is {given[:80]!r}; give milliseconds above 0"
            )
        limits.append(deadline_ms / 1000)
    return min(limits)


def _metadata(name: str, model: Model) -> Response:
    return json_response(
        {
            "name": name,
            "versions": [model.id],
            "platform": PLATFORM,
            "inputs": [_described(port) for port in model.ports.inputs],
            "outputs": [_described(port) for port in model.ports.outputs],
        }
    )


def _readiness(api: Context, name: str, model: Model) -> Response:
    if not api.models.ready(model):
        raise NotReadyError(
            f"model {name} is not loaded; POST /v2/repository/models/{name}/load, "
            "or send it a first request"
        )
    return json_response({"name": name, "ready": True})


def _described(port: Port) -> dict[str, Any]:
    shape = [-1, *(-1 if size is None else size for size in port.spec.shape)]
    described: dict[str, Any] = {"name": port.name, "datatype": port.datatype, "shape": shape}
    if port.normalize is not None:
        described["parameters"] = {
            "accepts": "UINT8",
            "normalization": "(x / 255 - mean) / std, done by the server for UINT8",
            "mean": list(port.normalize.mean),
            "std": list(port.normalize.std),
        }
    return described
