"""What every handler needs, and the checked types of what paths and queries may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, FastAPI, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from serving.api.auth import Authenticator, Principal
from serving.api.metrics import Metrics
from serving.api.models import Models
from serving.api.settings import ApiSettings
from serving.engine import Engine
from zoo.canonical import Json, plain
from zoo.errors import InvalidInputError, NotFoundError, NotReadyError
from zoo.jobs import Job
from zoo.store.protocols import Store

P = ParamSpec("P")
R = TypeVar("R")

NAME = r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}"
_DIGEST = r"^[0-9a-f]{64}$"
_CURSOR = r"^[\x21-\x7e]{1,512}$"
MAX_DEPTH = 64
BIG = 2**62


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts that one application is made of."""

    settings: ApiSettings
    store: Store
    queue: Any
    engine: Engine
    models: Models
    metrics: Metrics
    authenticator: Authenticator

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call something that blocks, such as the store, outside the event loop."""
        return await run_in_threadpool(function, *args, **kwargs)


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _caller(request: Request) -> Principal:
    principal: Principal = request.scope["principal"]
    return principal


Api = Annotated[Context, Depends(_context)]
Caller = Annotated[Principal, Depends(_caller)]
Name = Annotated[str, Path(pattern=f"^{NAME}$")]
Ref = Annotated[str, Path(pattern=f"^{NAME}$", description="id, unique id prefix or alias")]
Digest = Annotated[str, Path(pattern=_DIGEST, description="sha256, 64 hex digits")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(pattern=_CURSOR, description="next of the page before")]
Word = Annotated[str | None, Query(pattern=f"^{NAME}$")]
Count = Annotated[int | None, Query(ge=0, le=BIG)]


def check_not_draining(app: FastAPI) -> None:
    """Tell load balancers to look elsewhere; what still arrives is answered nevertheless.

    Raises:
        NotReadyError: The server was told to stop.
    """
    if app.state.draining:
        raise NotReadyError("the server is shutting down; send requests to another")


def own_job(api: Context, caller: Principal, job_id: str) -> Job:
    """Return a job that the caller may see.

    Raises:
        NotFoundError: There is none, or it is another owner's; which, is not told.
    """
    missing = NotFoundError(f"no job has the id {job_id}")
    try:
        job = api.store.jobs.job(job_id)
    except NotFoundError:
        raise missing from None
    if job.owner != caller.owner and not caller.admin:
        raise missing
    return job


def check_job(api: Context, caller: Principal, ref: str | None) -> None:
    """Refuse to tie something to another owner's job; an admin may name any.

    Raises:
        NotFoundError: ``ref`` is a job that the caller may not see, or none at all.
    """
    if ref is not None and not caller.admin:
        own_job(api, caller, ref)


def hidden_jobs(api: Context, caller: Principal, job_ids: Iterable[str]) -> frozenset[str]:
    """Return those of ``job_ids`` that the caller may not see."""
    wanted = frozenset() if caller.admin else frozenset(job_ids)
    owners = api.store.jobs.owners(wanted) if wanted else {}
    return frozenset(job_id for job_id in wanted if owners.get(job_id) != caller.owner)


def clean(value: object, where: str) -> Json:
    """Return free-form JSON as it may be stored.

    Raises:
        InvalidInputError: It is nested too deep, has a number that is not finite or too
            large, or a text that a database cannot hold.
    """
    pending: list[tuple[object, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"{where} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(item, str):
            check_text(item, where)
        elif isinstance(item, int) and abs(item) > BIG:
            raise InvalidInputError(f"{where} has an integer beyond ±2^62")
        elif isinstance(item, list | tuple):
            pending.extend((part, depth + 1) for part in item)
        elif isinstance(item, dict):
            pending.extend((part, depth + 1) for pair in item.items() for part in pair)
    return plain(value)


def check_text(text: str, where: str) -> None:
    """Refuse NUL and lone surrogates, which PostgreSQL and UTF-8 cannot hold.

    Raises:
        InvalidInputError: ``text`` has one.
    """
    if "\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidInputError(
            f"{where} has a text with NUL or half a surrogate pair: {text!a:.80}"
        )
