"""What a store promises; ``zoo.store.sql`` keeps the promise on SQLite and PostgreSQL.

Every method is one transaction: it happens whole or not at all, is safe to call from
several threads and processes, and is durable when it returns. ``now`` is always UTC.
Unknown ids raise ``NotFoundError``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from zoo.canonical import Json, plain
from zoo.jobs import Arm, Candidate, Job, JobKind, JobRequest, JobState
from zoo.spec import Block, Chain, Device, Evaluation, Profile

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """One page of a listing; ``next`` is the cursor of the following page, if there is one."""

    items: tuple[T, ...]
    next: str | None = None


@dataclass(frozen=True, kw_only=True)
class BlockQuery:
    """Typed filters on blocks; ``None`` filters nothing. Ties are ordered by id."""

    op: str | None = None
    signature: str | None = None
    max_params: int | None = None
    max_size_bytes: int | None = None
    order: Literal["created", "num_params", "size_bytes"] = "created"
    descending: bool = False


@dataclass(frozen=True, kw_only=True)
class ChainQuery:
    """Typed filters on chains; latency filters need ``device`` and use batch, runtime too."""

    task: str | None = None
    block: str | None = None
    job: str | None = None
    min_accuracy: float | None = None
    max_params: int | None = None
    max_size_bytes: int | None = None
    max_latency_ms: float | None = None
    device: str | None = None
    runtime: str = "torch"
    batch: int = 1
    order: Literal["created", "accuracy", "num_params", "size_bytes", "latency"] = "created"
    descending: bool = False


@dataclass(frozen=True, kw_only=True)
class JobQuery:
    """Typed filters on jobs, newest first."""

    kind: JobKind | None = None
    state: JobState | None = None
    owner: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a job's log; ``number`` grows within the job."""

    job: str
    number: int
    at: datetime
    level: Literal["info", "warning", "error"]
    message: str
    data: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        return {
            "job": self.job,
            "number": self.number,
            "at": self.at.isoformat(),
            "level": self.level,
            "message": self.message,
            "data": plain(self.data),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**(dict(data) | {"at": datetime.fromisoformat(data["at"])}))


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One step of lineage: ``child`` was made from ``parent``."""

    child: str
    parent: str
    relation: Literal["searched-by", "block-of", "assembled-from", "trained-from", "exported-from"]

    def to_json(self) -> dict[str, Json]:
        return {"child": self.child, "parent": self.parent, "relation": self.relation}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(child=data["child"], parent=data["parent"], relation=data["relation"])


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """A live worker: what it owns and what its plug-ins can do.

    ``catalogue`` is ``{"spaces"|"methods"|"data"|"evaluators":
    [{"name", "summary", "params": {name: default}}, …]}``.
    """

    id: str
    devices: tuple[Device, ...]
    catalogue: Mapping[str, Json]
    seen_at: datetime | None = None

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "devices": [device.to_json() for device in self.devices],
            "catalogue": plain(self.catalogue),
            "seen_at": self.seen_at.isoformat() if self.seen_at else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            id=data["id"],
            devices=tuple(Device.from_json(item) for item in data["devices"]),
            catalogue=data["catalogue"],
            seen_at=datetime.fromisoformat(data["seen_at"]) if data["seen_at"] else None,
        )


SCOPES = ("read", "infer", "submit", "write", "admin")
"""What an API key may be allowed; ``admin`` also sees the jobs of other owners."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """An API key without its secret."""

    id: str
    name: str
    owner: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def to_json(self) -> dict[str, Json]:
        times = ("created_at", "expires_at", "revoked_at")
        moments = {name: getattr(self, name) for name in times}
        return {
            "id": self.id,
            "name": self.name,
            "owner": self.owner,
            "scopes": list(self.scopes),
            **{name: value.isoformat() if value else None for name, value in moments.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        times = ("created_at", "expires_at", "revoked_at")
        moments = {
            name: datetime.fromisoformat(data[name]) if data[name] else None for name in times
        }
        return cls(**(dict(data) | moments | {"scopes": tuple(data["scopes"])}))


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """The caller must evaluate ``key`` and then call ``finish`` or ``abandon`` with ``token``."""

    key: str
    token: int


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """Another job is evaluating ``key``; ask again after a while."""

    key: str
    job: str


class Files(Protocol):
    """Content-addressed bytes: the name is the sha256 of the content."""

    def put(self, data: bytes) -> str:
        """Keep ``data`` and return its digest; writing equal content twice keeps one file.

        Raises:
            StorageFullError: The disk is full; nothing half-written remains.
        """

    def get(self, digest: str) -> bytes:
        """Return the content, verified against ``digest``.

        Raises:
            NotFoundError: There is no such file.
            CorruptArtifactError: The bytes changed on disk; they are not returned.
        """

    def has(self, digest: str) -> bool: ...

    def size(self, digest: str) -> int: ...

    def delete(self, digest: str) -> None: ...

    def digests(self) -> Iterator[str]: ...

    def verify(self) -> list[str]:
        """Read everything and return the digests whose bytes are wrong."""


class BlockStore(Protocol):
    """Blocks, chains, profiles, aliases and lineage; weights are in ``Files``."""

    def put_block(self, block: Block, *, job: str | None = None) -> str:
        """Add a block whose weights are already in the files; a known block is left as it is.

        Raises:
            NotFoundError: The weights are not in the files.
        """

    def block(self, block_id: str) -> Block: ...

    def blocks(
        self, query: BlockQuery = ..., *, limit: int = 100, cursor: str | None = None
    ) -> Page[Block]: ...

    def put_chain(self, chain: Chain, *, job: str | None = None, onnx: str | None = None) -> str:
        """Add a chain of known blocks; a known chain keeps its id and takes the newer card."""

    def chain(self, ref: str) -> Chain:
        """Return the chain with this id, unique id prefix (8 or more digits), or alias."""

    def onnx(self, chain_id: str) -> str | None:
        """Return the digest of the chain's ONNX file, if it was exported."""

    def chains(
        self, query: ChainQuery = ..., *, limit: int = 100, cursor: str | None = None
    ) -> Page[Chain]: ...

    def set_alias(self, alias: str, chain_id: str) -> None: ...

    def aliases(self) -> Mapping[str, str]:
        """Return alias → chain id."""

    def put_profile(self, profile: Profile) -> None:
        """Record a measurement; it replaces the one with the same subject and conditions."""

    def profiles(self, subject: str, *, device: str | None = None) -> tuple[Profile, ...]: ...

    def lineage(self, subject: str) -> tuple[Edge, ...]:
        """Return every edge reachable upwards and downwards from a block, chain or job id."""

    def add_edges(self, edges: Sequence[Edge]) -> None: ...

    def delete_chain(self, chain_id: str) -> None: ...

    def garbage(self) -> tuple[list[str], list[str]]:
        """Return (block ids in no chain and not put by hand, file digests nothing refers to)."""

    def collect(self) -> tuple[int, int]:
        """Delete the garbage; return the numbers of blocks and files deleted."""


class JobStore(Protocol):
    """Jobs, their logs and their candidates."""

    def submit(
        self,
        kind: JobKind,
        spec: Mapping[str, Json],
        *,
        owner: str = "local",
        name: str = "",
        device: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Write a QUEUED job; the same owner and idempotency key return the first job again.

        ``device`` restricts who may claim it: a device id or name, None for anyone.

        Raises:
            ConflictError: The idempotency key was used with another spec.
        """

    def job(self, job_id: str) -> Job: ...

    def jobs(
        self, query: JobQuery = ..., *, limit: int = 100, cursor: str | None = None
    ) -> Page[Job]: ...

    def claim(
        self,
        worker: str,
        *,
        lease_s: float,
        devices: Sequence[str] = (),
        job_id: str | None = None,
    ) -> Job | None:
        """Take one QUEUED job (this one, or the oldest) by conditional update, or None.

        Only jobs whose device is None or in ``devices`` (ids and names) are taken.
        The claim raises ``attempt`` and ``token`` by one. A job whose ``attempt`` would
        pass ``MAX_ATTEMPTS`` becomes FAILED (quarantined) instead.
        """

    def heartbeat(
        self, job_id: str, token: int, *, lease_s: float, progress: Mapping[str, Json] | None = None
    ) -> JobRequest | None:
        """Extend the lease, store progress, and return what somebody asked for meanwhile.

        Raises:
            StaleTokenError: The lease was taken over or the job is final.
        """

    def finish(
        self,
        job_id: str,
        token: int,
        state: JobState,
        *,
        result: Mapping[str, Json] | None = None,
        reason: str | None = None,
    ) -> Job:
        """Move a claimed job to ``state`` (final, PAUSED, or QUEUED to hand it back).

        Handing back and pausing do not count as failed attempts: ``attempt`` is reset.

        Raises:
            StaleTokenError: The lease was taken over.
        """

    def request(self, job_id: str, request: JobRequest) -> Job:
        """Ask a job to stop; one that is not running is moved at once.

        Raises:
            IllegalTransitionError: The job is final, or paused already.
        """

    def resume(self, job_id: str) -> Job:
        """Put a PAUSED job back in the queue."""

    def reap(self) -> list[Job]:
        """Requeue RUNNING jobs whose lease expired (quarantine past the cap); return them."""

    def log(
        self,
        job_id: str,
        message: str,
        *,
        level: Literal["info", "warning", "error"] = "info",
        data: Mapping[str, Json] | None = None,
    ) -> None: ...

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]: ...

    def save_checkpoint(self, job_id: str, token: int, digest: str, step: int) -> None:
        """Record the newest checkpoint (a file digest); the one before it is kept too.

        Raises:
            StaleTokenError: The lease was taken over.
        """

    def checkpoints(self, job_id: str) -> tuple[tuple[int, str], ...]:
        """Return the kept ``(step, digest)`` pairs, newest first."""

    def put_candidate(self, candidate: Candidate, token: int) -> None:
        """Insert or replace the candidate ``(job, arm, number)``.

        Raises:
            StaleTokenError: The job's lease was taken over.
        """

    def candidates(self, job_id: str, *, arm: Arm | None = None) -> tuple[Candidate, ...]: ...

    def savings(self, job_id: str | None = None) -> Mapping[str, float]:
        """Return ``{"candidates", "hits", "evaluations", "saved_s", "spent_s"}``."""


class EvaluationStore(Protocol):
    """Evaluations shared by all jobs: each key is evaluated once, by one job at a time."""

    def claim(self, key: str, *, job: str, lease_s: float) -> Evaluation | Claimed | InFlight:
        """Return the evaluation of ``key``, or the duty to make it, or who is making it.

        A claim whose lease expired, or that the same job holds, is taken over under a
        new token.
        """

    def extend(self, key: str, token: int, *, lease_s: float) -> None: ...

    def finish(self, key: str, token: int, evaluation: Evaluation, *, info: dict[str, Any]) -> None:
        """Store the result. ``info``: signature, architecture id, data digest, recipe, version.

        Raises:
            StaleTokenError: The claim was taken over.
        """

    def abandon(self, key: str, token: int) -> None:
        """Give the claim back without a result."""

    def info(self, key: str) -> dict[str, Any]:
        """Return what ``finish`` was told of ``key``, and its ``certificates``.

        Raises:
            NotFoundError: Nobody has claimed it.
        """

    def certify(self, key: str, architecture: str, certificate: Mapping[str, Json]) -> None:
        """Keep the outcome of comparing what was evaluated with another architecture."""

    def find(self, signature: str) -> tuple[tuple[str, Evaluation], ...]:
        """Return ``(key, evaluation)`` of everything evaluated with this signature."""


class DeviceStore(Protocol):
    """Workers, their devices, and who may use a device now."""

    def announce(self, worker: WorkerInfo) -> None:
        """Record a live worker; called again every few seconds."""

    def retire(self, worker_id: str) -> None: ...

    def workers(self, *, within_s: float = 60.0) -> tuple[WorkerInfo, ...]: ...

    def devices(self) -> tuple[Device, ...]:
        """Return every device ever announced."""

    def device(self, ref: str) -> Device:
        """Return the device with this id or name."""

    def acquire(
        self, device: str, holder: str, mode: Literal["shared", "exclusive"], *, lease_s: float
    ) -> bool:
        """Try to take the device: many train (shared), one measures (exclusive) alone.

        An exclusive request that fails is remembered for ``lease_s`` and keeps new
        shared holders out, so that measuring is never starved. Acquiring again extends.
        """

    def release(self, device: str, holder: str) -> None: ...


class KeyStore(Protocol):
    """API keys: the secret is shown once, only its hash is kept."""

    def create(
        self, name: str, *, owner: str, scopes: Sequence[str], expires_at: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """Return the key and its secret, ``by_<id>_<43 url-safe characters>``."""

    def authenticate(self, secret: str) -> ApiKey:
        """Return the key of a secret.

        Raises:
            UnauthenticatedError: Unknown, revoked or expired.
        """

    def revoke(self, key_id: str) -> None: ...

    def keys(self) -> tuple[ApiKey, ...]: ...


class Store(Protocol):
    """Everything, on one database and one folder of files.

    Opened by ``zoo.store.open_store(url, files=…)``; it migrates an empty SQLite
    database by itself and refuses an older one with the command to run.
    """

    @property
    def files(self) -> Files: ...

    @property
    def blocks(self) -> BlockStore: ...

    @property
    def jobs(self) -> JobStore: ...

    @property
    def evaluations(self) -> EvaluationStore: ...

    @property
    def devices(self) -> DeviceStore: ...

    @property
    def keys(self) -> KeyStore: ...

    def close(self) -> None: ...
