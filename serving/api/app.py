"""The application: every resource behind one gate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Protocol

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.api import blocks, files, inference, jobs, system
from serving.api.auth import Authenticator
from serving.api.context import Context
from serving.api.errors import error_response, failure
from serving.api.gate import Gate
from serving.api.metrics import Metrics
from serving.api.models import Models
from serving.api.schemas import ErrorAnswer
from serving.api.settings import ApiSettings
from serving.engine import Engine
from zoo.errors import BlockyardError, InvalidInputError, NotFoundError
from zoo.store.protocols import Store

RESOURCES = (inference, jobs, blocks, files, system)


class Announcer(Protocol):
    """Whoever tells workers that a job waits."""

    def send(self, job_id: str) -> None: ...


def create_app(
    settings: ApiSettings, store: Store, *, queue: Announcer | None, engine: Engine
) -> FastAPI:
    """Build the application on a store and an engine, which stay the caller's to close.

    Args:
        settings: Limits; the address decides whether anonymous callers are let in.
        store: Where jobs, blocks, chains and keys are.
        queue: Told of every submitted job; without one, workers find jobs in the store.
        engine: Runs the models that requests name.
    """
    metrics = Metrics(engine.stats)
    authenticator = Authenticator(store.keys, settings)
    app = FastAPI(
        title="Blockyard",
        version=version("blockyard"),
        description="Jobs, blocks, chains and inference (KServe V2).",
        lifespan=_drain_at_the_end,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        responses={"default": {"model": ErrorAnswer, "description": "An error"}},
    )
    app.state.draining = False
    app.state.context = Context(
        settings=settings,
        store=store,
        queue=queue,
        engine=engine,
        models=Models(
            store, engine, capacity=settings.max_models, name_ttl_s=settings.name_cache_s
        ),
        metrics=metrics,
        authenticator=authenticator,
    )
    for resource in RESOURCES:
        app.include_router(resource.router)
    app.add_middleware(Gate, settings=settings, authenticator=authenticator, metrics=metrics)
    _add_error_handlers(app)
    return app


@asynccontextmanager
async def _drain_at_the_end(app: FastAPI) -> AsyncIterator[None]:
    yield
    context: Context = app.state.context
    app.state.draining = True
    await context.in_thread(context.engine.drain, context.settings.drain_s)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(BlockyardError)
    async def deliberate(request: Request, error: BlockyardError) -> Response:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()[:20]
        lines = "; ".join(_explained(item) for item in found)
        nowhere = request.method != "PUT" and all(item["loc"][0] == "path" for item in found)
        kind = NotFoundError if nowhere else InvalidInputError
        return error_response(kind(lines), request.url.path)

    @app.exception_handler(HTTPException)
    async def unmatched(request: Request, error: HTTPException) -> Response:
        kind = {404: "NotFoundError", 405: "InvalidInputError"}.get(error.status_code)
        return failure(
            request.url.path,
            error.status_code,
            kind or "InvalidInputError",
            f"{request.method} {request.url.path!r:.200}: {error.detail}",
            headers=error.headers,
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return failure(
            request.url.path,
            500,
            "InternalError",
            "the server failed unexpectedly; its log has the reason under this time",
        )


def _explained(item: dict[str, object]) -> str:
    where = item.get("loc")
    place = ".".join(str(part) for part in where) if isinstance(where, tuple) else "request"
    return f"{place}: {item.get('msg')} (got {item.get('input')!a:.200})"
