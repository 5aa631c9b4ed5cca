"""The server itself: health, metrics, workers and devices, API keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from serving.api import schemas
from serving.api.context import Api, Caller, Name, check_not_draining, check_text
from serving.api.errors import json_response
from serving.api.metrics import CONTENT_TYPE
from zoo.catalogue import catalogue
from zoo.errors import InvalidInputError
from zoo.store.protocols import JobQuery

DeviceRef = Annotated[str, Path(max_length=256, pattern=r"^[\x20-\x7e]+$")]

router = APIRouter(tags=["Server"])


@router.get("/health", response_model=schemas.Live)
async def health() -> Response:
    """Say that the process lives: the one route that needs no key, and all it tells."""
    return json_response({"live": True})


@router.get("/ready", response_model=schemas.Ready)
def ready(request: Request, api: Api) -> Response:
    """Say that the store answers and requests are taken; otherwise the answer is an error."""
    check_not_draining(request.app)
    api.store.jobs.jobs(JobQuery(), limit=1)
    return json_response({"ready": True})


@router.get("/metrics", response_class=Response)
def metrics(api: Api) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(api.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/v1/whoami", response_model=schemas.WhoAmI)
async def whoami(caller: Caller) -> Response:
    """Say whom the server takes the caller for, and what it may do."""
    return json_response(
        {"owner": caller.owner, "scopes": sorted(caller.scopes), "key": caller.key}
    )


@router.get("/v1/workers", response_model=list[dict[str, Any]])
def list_workers(
    api: Api, within_s: Annotated[float, Query(gt=0, le=86_400, allow_inf_nan=False)] = 60.0
) -> Response:
    """Return the workers seen lately, with their devices and plug-ins."""
    workers = api.store.devices.workers(within_s=within_s)
    return json_response([worker.to_json() for worker in workers])


@router.get("/v1/devices", response_model=list[dict[str, Any]])
def list_devices(api: Api) -> Response:
    """Return every device ever announced."""
    return json_response([device.to_json() for device in api.store.devices.devices()])


@router.get("/v1/devices/{ref}", response_model=dict[str, Any])
def show_device(api: Api, ref: DeviceRef) -> Response:
    """Return the device with this id or name."""
    return json_response(api.store.devices.device(ref).to_json())


@router.get("/v1/catalogue", response_model=dict[str, list[dict[str, Any]]])
def show_catalogue(api: Api) -> Response:
    """Return the search spaces, methods, data sets and evaluators of the live workers."""
    return json_response(catalogue(api.store.devices.workers()))


@router.get("/v1/keys", response_model=list[schemas.KeyAnswer], tags=["Keys"])
def list_keys(api: Api) -> Response:
    """List the API keys, without their secrets."""
    keys = api.store.keys.keys()
    return json_response([key.to_json() for key in keys])


@router.post("/v1/keys", status_code=201, response_model=schemas.NewKeyAnswer, tags=["Keys"])
def create_key(api: Api, body: schemas.CreateKey) -> Response:
    """Create an API key; this answer is the only one that shows its secret."""
    check_text(body.name, "name")
    expires_at = body.expires_at
    if expires_at is not None and expires_at.tzinfo is None:
        raise InvalidInputError(f"expires_at {expires_at} has no time zone; add one, e.g. Z")
    key, secret = api.store.keys.create(
        body.name,
        owner=body.owner,
        scopes=body.scopes,
        expires_at=expires_at,
        shares=body.shares,
    )
    return json_response({"key": key.to_json(), "secret": secret}, 201)


@router.patch("/v1/keys/{key_id}", response_model=schemas.KeyAnswer, tags=["Keys"])
def update_key(api: Api, key_id: Name, body: schemas.UpdateKey) -> Response:
    """Say whether the key's owner takes evaluations from others and gives them its own."""
    return json_response(api.store.keys.update(key_id, shares=body.shares).to_json())


@router.delete("/v1/keys/{key_id}", status_code=204, tags=["Keys"])
def revoke_key(api: Api, key_id: Name) -> Response:
    """Revoke an API key; it is refused within seconds on every server."""
    api.store.keys.revoke(key_id)
    api.authenticator.forget(key_id)
    return Response(status_code=204)
