"""The HTTP half of the SDK: a store behind a server, with the promises of the SQL one.

``HttpStore`` offers the caller's side of ``zoo.store.protocols``: all of files, blocks and
keys; of jobs and devices what one needs who submits and watches. Claims, leases and
checkpoints belong to workers, which sit at the database.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self
from urllib.parse import quote

from zoo import errors
from zoo.canonical import Json, plain
from zoo.canonical import digest as digest_of
from zoo.connection import Connection
from zoo.jobs import Arm, Candidate, Job, JobKind, JobRequest
from zoo.names import check_alias
from zoo.spec import Block, Chain, Device, Profile
from zoo.store.protocols import (
    ApiKey,
    BlockQuery,
    ChainQuery,
    Edge,
    Event,
    JobQuery,
    Origin,
    Page,
    WorkerInfo,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ALL_BLOCKS = BlockQuery()
_ALL_CHAINS = ChainQuery()
_ALL_JOBS = JobQuery()


class HttpStore:
    """A store on a server; a context manager, safe to share between threads.

    Args:
        url: ``http(s)://host:port`` of the server.
        api_key: Sent with every request; a server on this machine may not ask for one.
        timeout_s: Longest silence of the server before a request fails.
        sleep: Waits between attempts after a lost connection.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = Connection(url, api_key, timeout_s=timeout_s, sleep=sleep)
        self.files = HttpFiles(self._connection)
        self.blocks = HttpBlocks(self._connection)
        self.jobs = HttpJobs(self._connection)
        self.devices = HttpDevices(self._connection)
        self.keys = HttpKeys(self._connection)

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
        """Close the connections; the object cannot be used afterwards."""
        self._connection.close()


class HttpFiles:
    """``Files`` over HTTP; what is read is verified here too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        self._connection.send("PUT", f"/v1/files/{digest}", content=data)
        return digest

    def get(self, digest: str) -> bytes:
        data = self._connection.send("GET", _file(digest)).content
        if digest_of(data) != digest:
            raise errors.CorruptArtifactError(
                f"file {digest} arrived with digest {digest_of(data)}; it was damaged on its way"
            )
        return data

    def has(self, digest: str) -> bool:
        try:
            self._connection.send("HEAD", _file(digest))
        except errors.NotFoundError:
            return False
        return True

    def size(self, digest: str) -> int:
        answer = self._connection.send("HEAD", _file(digest))
        return int(answer.headers["Content-Length"])

    def delete(self, digest: str) -> None:
        self._connection.send("DELETE", _file(digest))

    def digests(self) -> Iterator[str]:
        yield from self._connection.json("GET", "/v1/files")

    def verify(self) -> list[str]:
        return list(self._connection.json("GET", "/v1/files", params={"verify": "true"}))


class HttpBlocks:
    """``BlockStore`` over HTTP."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put_block(self, block: Block, *, job: str | None = None) -> str:
        body = {key: value for key, value in block.to_json().items() if key != "id"}
        return str(self._connection.json("POST", "/v1/blocks", json=body | {"job": job})["id"])

    def block(self, block_id: str) -> Block:
        return Block.from_json(self._connection.json("GET", _path("blocks", block_id)))

    def blocks(
        self, query: BlockQuery = _ALL_BLOCKS, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Block]:
        params = _params(query, limit=limit, cursor=cursor)
        data = self._connection.json("GET", "/v1/blocks", params=params)
        return Page(items=tuple(map(Block.from_json, data["items"])), next=data["next"])

    def put_chain(self, chain: Chain, *, job: str | None = None, onnx: str | None = None) -> str:
        body = {
            "blocks": [block.id for block in chain.blocks],
            "card": plain(chain.card),
            "job": job,
            "onnx": onnx,
        }
        return str(self._connection.json("POST", "/v1/chains", json=body)["id"])

    def chain(self, ref: str) -> Chain:
        return Chain.from_json(self._connection.json("GET", _path("chains", ref)))

    def onnx(self, chain_id: str) -> str | None:
        try:
            answer = self._connection.send("HEAD", _path("chains", chain_id, "onnx"))
        except errors.NotFoundError:
            self.chain(chain_id)  # raises if it is the chain that is missing
            return None
        return str(answer.headers["X-Digest"])

    def chains(
        self, query: ChainQuery = _ALL_CHAINS, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Chain]:
        params = _params(query, limit=limit, cursor=cursor)
        data = self._connection.json("GET", "/v1/chains", params=params)
        return Page(items=tuple(map(Chain.from_json, data["items"])), next=data["next"])

    def set_alias(self, alias: str, chain_id: str) -> None:
        check_alias(alias)
        self._connection.send("PUT", _path("aliases", alias), json={"chain": chain_id})

    def aliases(self) -> Mapping[str, str]:
        return dict(self._connection.json("GET", "/v1/aliases"))

    def put_profile(self, profile: Profile) -> None:
        self._connection.send("POST", "/v1/profiles", json=profile.to_json())

    def profiles(self, subject: str, *, device: str | None = None) -> tuple[Profile, ...]:
        params = {"subject": subject} | ({"device": device} if device is not None else {})
        data = self._connection.json("GET", "/v1/profiles", params=params)
        return tuple(map(Profile.from_json, data))

    def lineage(self, subject: str) -> tuple[Edge, ...]:
        return tuple(map(Edge.from_json, self._connection.json("GET", _path("lineage", subject))))

    def add_edges(self, edges: Sequence[Edge]) -> None:
        body = {"edges": [edge.to_json() for edge in edges]}
        self._connection.send("POST", "/v1/lineage", json=body)

    def delete_chain(self, chain_id: str) -> None:
        self._connection.send("DELETE", _path("chains", chain_id))

    def garbage(self) -> tuple[list[str], list[str]]:
        data = self._connection.json("POST", "/v1/gc", json={"dry_run": True})
        return list(data["blocks"]), list(data["files"])

    def collect(self) -> tuple[int, int]:
        data = self._connection.json("POST", "/v1/gc", json={"dry_run": False})
        return int(data["num_blocks"]), int(data["num_files"])

    def verify(self) -> list[str]:
        return list(self._connection.json("GET", "/v1/verify"))


class HttpJobs:
    """The caller's half of ``JobStore`` over HTTP; the owner of a job is the key's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

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
        """Submit a job; ``owner`` is ignored, as the server takes it from the key."""
        body = {"kind": str(kind), "spec": plain(spec), "name": name, "device": device}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else None
        data = self._connection.json("POST", "/v1/jobs", json=body, headers=headers)
        return Job.from_json(data)

    def job(self, job_id: str) -> Job:
        return Job.from_json(self._connection.json("GET", _path("jobs", job_id)))

    def jobs(
        self, query: JobQuery = _ALL_JOBS, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Job]:
        params = _params(query, limit=limit, cursor=cursor)
        data = self._connection.json("GET", "/v1/jobs", params=params)
        return Page(items=tuple(map(Job.from_json, data["items"])), next=data["next"])

    def request(self, job_id: str, request: JobRequest) -> Job:
        path = _path("jobs", job_id, str(JobRequest(request)))
        return Job.from_json(self._connection.json("POST", path))

    def resume(self, job_id: str) -> Job:
        return Job.from_json(self._connection.json("POST", _path("jobs", job_id, "resume")))

    def delete(self, job_id: str) -> None:
        self._connection.send("DELETE", _path("jobs", job_id))

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        params = {"after": after, "limit": limit}
        data = self._connection.json("GET", _path("jobs", job_id, "events"), params=params)
        return tuple(map(Event.from_json, data))

    def candidates(self, job_id: str, *, arm: Arm | None = None) -> tuple[Candidate, ...]:
        params = {"arm": str(arm)} if arm is not None else {}
        data = self._connection.json("GET", _path("jobs", job_id, "candidates"), params=params)
        return tuple(map(Candidate.from_json, data))

    def savings(
        self, job_id: str | None = None, *, owner: str | None = None
    ) -> Mapping[str, float]:
        params = _given(job=job_id, owner=owner)
        return dict(self._connection.json("GET", "/v1/savings", params=params))

    def origins(self, job_id: str | None = None, *, owner: str | None = None) -> tuple[Origin, ...]:
        params = _given(job=job_id, owner=owner)
        data = self._connection.json("GET", "/v1/savings/origins", params=params)
        return tuple(map(Origin.from_json, data))


class HttpDevices:
    """The reader's half of ``DeviceStore`` over HTTP."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def workers(self, *, within_s: float = 60.0) -> tuple[WorkerInfo, ...]:
        params = {"within_s": within_s}
        data = self._connection.json("GET", "/v1/workers", params=params)
        return tuple(map(WorkerInfo.from_json, data))

    def devices(self) -> tuple[Device, ...]:
        return tuple(map(Device.from_json, self._connection.json("GET", "/v1/devices")))

    def device(self, ref: str) -> Device:
        return Device.from_json(self._connection.json("GET", _path("devices", ref)))


class HttpKeys:
    """``KeyStore`` over HTTP; only the server authenticates."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        name: str,
        *,
        owner: str,
        scopes: Sequence[str],
        expires_at: datetime | None = None,
        shares: bool | None = None,
    ) -> tuple[ApiKey, str]:
        body = {
            "name": name,
            "owner": owner,
            "scopes": list(scopes),
            "expires_at": expires_at.isoformat() if expires_at else None,
            "shares": shares,
        }
        data = self._connection.json("POST", "/v1/keys", json=body)
        return ApiKey.from_json(data["key"]), str(data["secret"])

    def update(self, key_id: str, *, shares: bool) -> ApiKey:
        data = self._connection.json("PATCH", _path("keys", key_id), json={"shares": shares})
        return ApiKey.from_json(data)

    def revoke(self, key_id: str) -> None:
        self._connection.send("DELETE", _path("keys", key_id))

    def keys(self) -> tuple[ApiKey, ...]:
        return tuple(map(ApiKey.from_json, self._connection.json("GET", "/v1/keys")))


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _file(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise errors.InvalidInputError(f"{digest!r:.100} is not a sha256 digest of 64 hex digits")
    return f"/v1/files/{digest}"


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _params(
    query: BlockQuery | ChainQuery | JobQuery, *, limit: int, cursor: str | None
) -> dict[str, str]:
    values = {**dataclasses.asdict(query), "limit": limit, "cursor": cursor}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
        if value is not None
    }
