"""What a store promises; ``zoo.store.sql`` keeps the promise on SQLite and PostgreSQL.

Every method is one transaction: it happens whole or not at all, is safe to call from
several threads and processes, and is durable when it returns. ``now`` is always UTC.
Unknown ids raise ``NotFoundError``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from zoo.canonical import Json
from zoo.jobs import Arm, Candidate, Job, JobKind, JobRequest, JobState
from zoo.spec import Block, Chain, Device, Evaluation, Profile
from zoo.store.values import (
    SCOPES,
    UNFINISHED,
    ApiKey,
    BlockQuery,
    ChainQuery,
    Claimed,
    Edge,
    Event,
    InFlight,
    JobQuery,
    Origin,
    Page,
    Relation,
    WorkerInfo,
)

__all__ = [
    "SCOPES",
    "UNFINISHED",
    "ApiKey",
    "BlockQuery",
    "BlockStore",
    "ChainQuery",
    "Claimed",
    "DeviceStore",
    "Edge",
    "EvaluationStore",
    "Event",
    "Files",
    "InFlight",
    "JobQuery",
    "JobStore",
    "KeyStore",
    "Origin",
    "Page",
    "Relation",
    "Store",
    "WorkerInfo",
]


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

    def put_chain(
        self,
        chain: Chain,
        *,
        job: str | None = None,
        onnx: str | None = None,
        owner: str | None = None,
        guard: bool = False,
    ) -> str:
        """Add a chain of known blocks; a known chain keeps its id and takes the newer card.

        A chain stays its first owner's: ``owner``, else the owner of ``job``. With
        ``guard``, here and below, what belongs to another than ``owner`` is not changed.
        Of several owners' jobs that come to the same chain, the first that gives it a card
        other than ``UNFINISHED`` owns it, and the others change nothing.

        Raises:
            ForbiddenError: ``guard`` is set and the chain is another owner's.
        """

    def chain(self, ref: str) -> Chain:
        """Return the chain with this id, unique id prefix (8 or more digits), or alias."""

    def chain_owner(self, ref: str) -> str: ...

    def onnx(self, chain_id: str) -> str | None:
        """Return the digest of the chain's ONNX file, if it was exported."""

    def chains(
        self, query: ChainQuery = ..., *, limit: int = 100, cursor: str | None = None
    ) -> Page[Chain]: ...

    def set_alias(
        self, alias: str, chain_id: str, *, owner: str | None = None, guard: bool = False
    ) -> None:
        """Give a name to a chain, taking it from the one that had it; it stays its first owner's.

        Raises:
            ForbiddenError: ``guard`` is set and the alias is another owner's.
        """

    def alias_owner(self, alias: str) -> str | None: ...

    def aliases(self) -> Mapping[str, str]:
        """Return alias → chain id."""

    def put_profile(self, profile: Profile) -> None:
        """Record a measurement; it replaces the one with the same subject and conditions."""

    def profiles(self, subject: str, *, device: str | None = None) -> tuple[Profile, ...]: ...

    def lineage(self, subject: str) -> tuple[Edge, ...]:
        """Return every edge reachable upwards and downwards from a block, chain or job id."""

    def add_edges(self, edges: Sequence[Edge]) -> None: ...

    def delete_chain(
        self, chain_id: str, *, owner: str | None = None, guard: bool = False
    ) -> None: ...

    def garbage(self) -> tuple[list[str], list[str]]:
        """Return (block ids in no chain and not put by hand, file digests nothing refers to)."""

    def collect(self) -> tuple[int, int]:
        """Delete the garbage; return the numbers of blocks and files deleted."""

    def verify(self) -> list[str]:
        """Read every file; return the digests of damaged ones, and of missing ones in use."""


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

        Whether its owner shares evaluations now is kept for as long as the job runs.
        ``device`` restricts who may claim it: a device id or name, None for anyone.

        Raises:
            ConflictError: The idempotency key was used with another spec, name or device.
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

    def reap(self, unmoved: Mapping[str, datetime] | None = None) -> list[Job]:
        """Requeue RUNNING jobs whose lease expired (quarantine past the cap); return them.

        Args:
            unmoved: Job id → lease; only these jobs, whatever the clock says, if their lease
                is still this one: somebody watched long enough that it was not extended.
        """

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

        The file of one that is dropped is deleted, unless something else refers to it.
        A later ``step`` than the last one's is progress: ``attempt`` is set back to 1, so
        that a long job which advances between kills is never quarantined.

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

    def architecture(self, architecture_id: str, *, owner: str) -> Mapping[str, Json]:
        """Return the architecture with this id that a job of ``owner`` has met.

        Ids are contents' hashes, so that anybody can name any: what others have met is
        refused as what nobody has.

        Raises:
            NotFoundError: No candidate of a job of ``owner`` has it.
        """

    def savings(
        self, job_id: str | None = None, *, owner: str | None = None
    ) -> Mapping[str, float]:
        """Return ``{"candidates", "hits", "evaluations", "saved_s", "spent_s"}``.

        A candidate is a hit, scored by what this job or another had evaluated before, or
        an evaluation of its own, well ended or not. The seconds are device time.

        Args:
            job_id: Of this job alone.
            owner: Of this owner's jobs alone.
        """

    def origins(self, job_id: str | None = None, *, owner: str | None = None) -> tuple[Origin, ...]:
        """Return the jobs whose evaluations the hits of ``savings`` took, the most saved first."""

    def owners(self, job_ids: Collection[str]) -> Mapping[str, str]:
        """Return job id → owner of those that are there."""

    def delete(self, job_id: str) -> None:
        """Delete a job that is over, with its candidates, log and checkpoints.

        Its evaluations stay known, and so do the chains that it stored.

        Raises:
            ConflictError: The job is not final.
        """


class EvaluationStore(Protocol):
    """Evaluations shared by all jobs: each key is evaluated once, by one job at a time."""

    def claim(
        self, key: str, *, job: str, lease_s: float, token: int | None = None
    ) -> Evaluation | Claimed | InFlight:
        """Return the evaluation of ``key``, or the duty to make it, or who is making it.

        A claim whose lease expired, or that the same job holds, is taken over under a
        new token. With ``token``, that of the job's present claim, only its present worker
        takes it over: one that lost the job, but has not noticed yet, is refused.

        Raises:
            StaleTokenError: ``token`` is given, and the job was taken over or moved on.
        """

    def extend(self, key: str, token: int, *, lease_s: float) -> None: ...

    def finish(self, key: str, token: int, evaluation: Evaluation, *, info: dict[str, Any]) -> None:
        """Store the result. ``info``: signature, architecture id, data digest, recipe, version,
        and the ``scope`` in which alone ``find`` finds it.

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

    def get(self, key: str) -> Evaluation | None:
        """Return the evaluation of ``key`` if there is one, and claim nothing."""

    def find(
        self, signature: str, *, scope: str | None = None
    ) -> tuple[tuple[str, Evaluation], ...]:
        """Return ``(key, evaluation)`` of what was evaluated with this signature in a scope."""


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
        self, place: str, holder: str, mode: Literal["shared", "exclusive"], *, lease_s: float
    ) -> bool:
        """Try to take a ``Device.place``: many train (shared), one measures (exclusive) alone.

        An exclusive request that fails is remembered for ``lease_s`` and keeps new
        shared holders out, so that measuring is never starved. Acquiring again extends.
        """

    def release(self, place: str, holder: str) -> None: ...


class KeyStore(Protocol):
    """API keys: the secret is shown once, only its hash is kept."""

    def create(
        self,
        name: str,
        *,
        owner: str,
        scopes: Sequence[str],
        expires_at: datetime | None = None,
        shares: bool | None = None,
    ) -> tuple[ApiKey, str]:
        """Return the key and its secret, ``by_<id>_<43 url-safe characters>``.

        ``shares`` is set for the owner, as by ``update``; None leaves it as it is.
        """

    def update(self, key_id: str, *, shares: bool) -> ApiKey:
        """Say whether the key's owner takes evaluations from others and gives them its own.

        It holds for all keys of the owner, and for jobs submitted from now on.
        """

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
