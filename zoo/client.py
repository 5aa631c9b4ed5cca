"""The SDK: ``Zoo``, with the same methods on a database and on a server.

Nothing here imports torch or SQLAlchemy. The half that is needed is named by string
and loaded on first use: ``zoo.store`` or ``zoo.remote``, ``zoo.weights`` for modules.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from zoo.canonical import Json
from zoo.errors import InvalidInputError, NotFoundError
from zoo.jobs import Arm, Candidate, Job, JobKind, JobRequest, JobState
from zoo.spec import Block, BlockSpec, Chain, Device, Profile
from zoo.store.protocols import (
    ApiKey,
    BlockQuery,
    BlockStore,
    ChainQuery,
    DeviceStore,
    Edge,
    Event,
    Files,
    JobQuery,
    JobStore,
    KeyStore,
    Origin,
    Page,
    WorkerInfo,
)
from zoo.waiting import local_worker, wait_for, watch_job

T = TypeVar("T")
Query = TypeVar("Query", BlockQuery, ChainQuery, JobQuery)

ON_DEVICE = frozenset(
    {JobKind.PROFILE, JobKind.MEASURE, JobKind.ASSEMBLE, JobKind.COST_TABLE, JobKind.FRONTS}
)
"""Jobs that only a worker with the requested device may run; others send for one."""


EVENTS_AT_ONCE = 1000
"""Lines of a log that a store returns at once."""


CHOICES = frozenset({"method", "space", "evaluator"})
"""Fields of a search that are a plug-in's name and parameters."""


class Backend(Protocol):
    """What ``Zoo`` needs of a store: the whole SQL store has it, and so has the HTTP one."""

    @property
    def files(self) -> Files: ...

    @property
    def blocks(self) -> BlockStore: ...

    @property
    def jobs(self) -> JobStore: ...

    @property
    def devices(self) -> DeviceStore: ...

    @property
    def keys(self) -> KeyStore: ...

    def close(self) -> None: ...


class Zoo:
    """Blocks, chains and jobs behind one URL; a context manager.

    Args:
        url: ``sqlite:///zoo.db``, ``postgresql+psycopg://user@host/name``, or
            ``http://host:port`` of a server.
        api_key: Key for a server.
        files: Folder of the files: needed for PostgreSQL, optional for SQLite.
        data: Folder of data sets, for the jobs that ``wait`` runs here.

    Raises:
        InvalidInputError: The URL is none of these.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        files: str | os.PathLike[str] | None = None,
        data: str | os.PathLike[str] | None = None,
    ) -> None:
        self.url = url
        self._remote = url.startswith(("http://", "https://"))
        self._folder = Path(files) if files is not None else None
        self._data = Path(data) if data is not None else None
        self._store: Backend
        if self._remote:
            self._store = importlib.import_module("zoo.remote").HttpStore(url, api_key)
        else:
            opener = importlib.import_module("zoo.store").open_store
            self._store = opener(url, files=self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release connections; the object cannot be used afterwards."""
        self._store.close()

    @property
    def files(self) -> Files:
        """Weights and exported models by digest, verified whenever they are read."""
        return self._store.files

    # Blocks and chains. Modules are ``torch.nn.Module``, typed Any to keep torch out.

    def put_block(self, spec: BlockSpec, module: Any) -> Block:
        """Store the weights of a module and add the block; one already known stays as it is."""
        block: Block = _weights().block_of(spec, module, self._store.files)
        self._store.blocks.put_block(block)
        return block

    def put_chain(self, blocks: Sequence[Block], card: Mapping[str, Json] | None = None) -> Chain:
        """Add a chain of known blocks.

        Raises:
            IncompatibleShapeError: Two neighbours do not fit.
            NotFoundError: A block was never put.
        """
        chain = Chain(blocks=tuple(blocks), card=dict(card or {}))
        self._store.blocks.put_chain(chain)
        return chain

    def block(self, ref: str) -> Block:
        """Return the block with this id or unique id prefix."""
        return self._store.blocks.block(ref)

    def chain(self, ref: str) -> Chain:
        """Return the chain with this id, unique id prefix, or alias."""
        return self._store.blocks.chain(ref)

    def blocks(self, **filters: Any) -> Iterator[Block]:
        """Iterate over all blocks that pass the filters, fields of ``BlockQuery``."""
        query = _query(BlockQuery, filters)
        return _all(lambda cursor: self._store.blocks.blocks(query, cursor=cursor))

    def chains(self, **filters: Any) -> Iterator[Chain]:
        """Iterate over all chains that pass the filters, fields of ``ChainQuery``."""
        query = _query(ChainQuery, filters)
        return _all(lambda cursor: self._store.blocks.chains(query, cursor=cursor))

    def blocks_page(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Any
    ) -> Page[Block]:
        """Return one page of ``blocks``; pass its ``next`` as ``cursor`` for the following one."""
        return self._store.blocks.blocks(_query(BlockQuery, filters), limit=limit, cursor=cursor)

    def chains_page(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Any
    ) -> Page[Chain]:
        """Return one page of ``chains``; pass its ``next`` as ``cursor`` for the following one."""
        return self._store.blocks.chains(_query(ChainQuery, filters), limit=limit, cursor=cursor)

    def load(self, ref: str, device: str = "cpu") -> Any:
        """Return a block or chain as an ``nn.Module`` in eval mode on ``device``."""
        found = self._find(ref)
        weights = _weights()
        load = weights.load_chain if isinstance(found, Chain) else weights.load_block
        return load(found, self._store.files).to(device)

    def onnx(self, ref: str) -> bytes:
        """Return a chain's ONNX file.

        Raises:
            NotFoundError: There is no such chain, or it was never exported.
        """
        chain_id = self.chain(ref).id
        digest = self._store.blocks.onnx(chain_id)
        if digest is None:
            raise NotFoundError(f"chain {chain_id} has no ONNX file; searches export their winners")
        return self._store.files.get(digest)

    def profiles(self, ref: str, *, device: str | None = None) -> tuple[Profile, ...]:
        """Return the measured latencies of a block or chain."""
        return self._store.blocks.profiles(self._find(ref).id, device=device)

    def lineage(self, ref: str) -> tuple[Edge, ...]:
        """Return all that a block, chain or job was made from, and all that was made from it."""
        subject = ref if ref.startswith("job_") else self._find(ref).id
        return self._store.blocks.lineage(subject)

    def alias(self, name: str, ref: str) -> None:
        """Give a chain a name, taking it from the chain that had it before."""
        self._store.blocks.set_alias(name, self.chain(ref).id)

    def aliases(self) -> Mapping[str, str]:
        """Return alias → chain id."""
        return self._store.blocks.aliases()

    def delete_chain(self, ref: str) -> None:
        """Delete a chain; ``gc`` deletes its blocks and files once nothing else uses them."""
        self._store.blocks.delete_chain(self.chain(ref).id)

    def verify(self) -> list[str]:
        """Read every file; return the digests of damaged ones, and of missing ones in use.

        In use are the weights of blocks, the ONNX files of chains and the checkpoints of
        jobs that are not over.
        """
        return self._store.blocks.verify()

    def gc(self, *, dry_run: bool = True) -> tuple[int, int]:
        """Return the numbers of unused blocks and files, deleted unless this is a dry run."""
        if dry_run:
            blocks, digests = self._store.blocks.garbage()
            return len(blocks), len(digests)
        return self._store.blocks.collect()

    # Jobs.

    def submit(
        self,
        kind: JobKind | str,
        spec: Mapping[str, Any],
        *,
        name: str = "",
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a job.

        Raises:
            InvalidInputError: A field of the request is unknown or wrong; all are named. Or a
                method, space, evaluator, data set or device has a name that nothing has.
        """
        if kind not in tuple(JobKind):
            raise InvalidInputError(f"job kind {kind!r} is not one of: {', '.join(JobKind)}")
        kind = JobKind(kind)
        request = dict(spec)
        if not self._remote:
            checked = importlib.import_module("zoo.schemas").parse_request(kind, request)
            request = checked.model_dump(mode="json")
        wanted = request.get("device", "auto") if kind in ON_DEVICE else "auto"
        device = None if wanted == "auto" else wanted
        if not self._remote:
            importlib.import_module("zoo.catalogue").check_names(
                self._store.devices.workers(), checked, device=device, trusted=True
            )
        return self._store.jobs.submit(
            kind, request, name=name, device=device, idempotency_key=idempotency_key
        )

    def search(self, *, name: str = "", **request: Any) -> Job:
        """Queue a search: the fields of ``SearchRequest``; a method or space may be its name."""
        return self.submit(JobKind.SEARCH, named(request), name=name)

    def train(self, *, name: str = "", **request: Any) -> Job:
        """Queue the training of one network: the fields of ``TrainRequest``."""
        return self.submit(JobKind.TRAIN, named(request), name=name)

    def preview(self, *, samples: int = 64, **request: Any) -> Job:
        """Queue the question what a search would choose among, and at what cost."""
        return self.submit(JobKind.PREVIEW, {"search": named(request), "samples": samples})

    def profile(self, **request: Any) -> Job:
        """Queue measurements of blocks or chains: the fields of ``ProfileRequest``."""
        return self.submit(JobKind.PROFILE, request)

    def assemble(self, **request: Any) -> Job:
        """Queue the choice of the best chain under limits: the fields of ``AssembleRequest``."""
        return self.submit(JobKind.ASSEMBLE, request)

    def job(self, job_id: str) -> Job:
        """Return a snapshot of a job."""
        return self._store.jobs.job(job_id)

    def jobs(self, **filters: Any) -> Iterator[Job]:
        """Iterate over jobs, newest first; filters are the fields of ``JobQuery``."""
        query = _query(JobQuery, filters)
        return _all(lambda cursor: self._store.jobs.jobs(query, cursor=cursor))

    def candidates(self, job_id: str, *, arm: Arm | None = None) -> tuple[Candidate, ...]:
        """Return a job's candidates in the order in which they were proposed."""
        return self._store.jobs.candidates(job_id, arm=arm)

    def events(self, job_id: str, after: int = 0) -> tuple[Event, ...]:
        """Return all lines of a job's log whose number is above ``after``."""
        found: list[Event] = []
        page: tuple[Event, ...] | None = None
        while page is None or len(page) == EVENTS_AT_ONCE:
            last = found[-1].number if found else after
            page = self._store.jobs.events(job_id, after=last, limit=EVENTS_AT_ONCE)
            found += page
        return tuple(found)

    def savings(
        self, job_id: str | None = None, *, owner: str | None = None
    ) -> Mapping[str, float]:
        """Return what reusing evaluations saved: in one job, in an owner's jobs, or in all.

        Behind a server all are those of the key's owner, or with the scope admin everybody's.

        Returns:
            ``candidates``; of them ``hits``, whose evaluation was spared, and ``evaluations``;
            ``saved_s`` and ``spent_s`` of device time.
        """
        return self._store.jobs.savings(job_id, owner=owner)

    def origins(self, job_id: str | None = None, *, owner: str | None = None) -> tuple[Origin, ...]:
        """Return the jobs from which the hits of ``savings`` came, the most saved first."""
        return self._store.jobs.origins(job_id, owner=owner)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop for good."""
        return self._store.jobs.request(job_id, JobRequest.CANCEL)

    def pause(self, job_id: str) -> Job:
        """Ask a job to stop until it is resumed."""
        return self._store.jobs.request(job_id, JobRequest.PAUSE)

    def resume(self, job_id: str) -> Job:
        """Put a paused job back in the queue."""
        return self._store.jobs.resume(job_id)

    def clone(self, job_id: str, **changes: Any) -> Job:
        """Queue a job like another one, with some fields of its request changed."""
        job = self.job(job_id)
        return self.submit(job.kind, {**job.spec, **named(changes)}, name=job.name)

    def delete_job(self, job_id: str) -> None:
        """Delete a job that is over, with its candidates and log; its models stay in the zoo.

        Raises:
            ConflictError: The job is not over.
        """
        self._store.jobs.delete(job_id)

    def watch(self, job_id: str, *, poll_s: float = 0.5) -> Iterator[Job]:
        """Yield the job now, and again whenever it changed, until it is final."""
        return watch_job(self.job, job_id, poll_s=poll_s)

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Return the job once it succeeded; with no live worker on a database, run it here.

        Raises:
            ConflictError: It failed or was cancelled; the message says why.
            DeadlineExceededError: It is not final after ``timeout_s``; elsewhere it goes on.
            EnvironmentUnfitError: The worker that was started for it could not run it.
        """
        return wait_for(
            self.job,
            job_id,
            timeout_s=timeout_s,
            alone=lambda: not self._remote and not self._store.devices.workers(),
            local=partial(local_worker, job_id, url=self.url, files=self._folder, data=self._data),
        )

    # Workers and devices.

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return the live workers, with the plug-ins that they have."""
        return self._store.devices.workers()

    def devices(self) -> tuple[Device, ...]:
        """Return every device that a worker ever announced."""
        return self._store.devices.devices()

    # API keys of the server.

    def create_key(
        self,
        name: str,
        *,
        owner: str,
        scopes: Sequence[str] = ("read",),
        expires_at: datetime | None = None,
        shares: bool | None = None,
    ) -> tuple[ApiKey, str]:
        """Make an API key and return it with its secret, which is kept nowhere.

        ``shares`` is set for its owner, as by ``update_key``; None leaves it as it is.
        """
        return self._store.keys.create(
            name, owner=owner, scopes=scopes, expires_at=expires_at, shares=shares
        )

    def update_key(self, key_id: str, *, shares: bool) -> ApiKey:
        """Say whether a key's owner shares evaluations with others: takes and gives.

        It holds for all keys of the owner and for jobs submitted from now on.
        """
        return self._store.keys.update(key_id, shares=shares)

    def keys(self) -> tuple[ApiKey, ...]:
        """Return every API key, without its secret."""
        return self._store.keys.keys()

    def revoke_key(self, key_id: str) -> None:
        """Revoke an API key for good."""
        self._store.keys.revoke(key_id)

    def _find(self, ref: str) -> Chain | Block:
        for find in (self._store.blocks.chain, self._store.blocks.block):
            try:
                return find(ref)
            except NotFoundError:
                continue
        raise NotFoundError(
            f"there is no block or chain {ref!r:.200}; `blockyard zoo list` shows all"
        )


def _weights() -> Any:
    return importlib.import_module("zoo.weights")


def named(request: Mapping[str, Any]) -> dict[str, Any]:
    """Spell out a method, space or evaluator that was given by its name alone."""
    return {
        key: {"name": value} if key in CHOICES and isinstance(value, str) else value
        for key, value in request.items()
    }


def _query(cls: type[Query], filters: Mapping[str, Any]) -> Query:
    known = [item.name for item in fields(cls)]
    if unknown := sorted(filters.keys() - set(known)):
        raise InvalidInputError(f"unknown filter {unknown[0]!r}; choose from: {', '.join(known)}")
    chosen = dict(filters)
    for name, choices in (("kind", JobKind), ("state", JobState)):
        if cls is JobQuery and (value := chosen.get(name)) is not None:
            if value not in tuple(choices):
                raise InvalidInputError(f"job {name} {value!r} is not one of: {', '.join(choices)}")
            chosen[name] = choices(value)
    return cls(**chosen)


def _all(fetch: Callable[[str | None], Page[T]]) -> Iterator[T]:
    cursor: str | None = None
    while True:
        page = fetch(cursor)
        yield from page.items
        cursor = page.next
        if cursor is None:
            return
