"""What goes into a store and comes out of it: pages, queries, log lines, edges, workers, keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar

from zoo.canonical import Json, plain
from zoo.jobs import JobKind, JobState
from zoo.spec import Device

T = TypeVar("T")

UNFINISHED: Mapping[str, Json] = {"unfinished": True}
"""The card of a chain that is stored but not yet measured."""


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
    """Typed filters on jobs, newest first.

    ``device`` is a device id or name that the job asks for, or several of them.
    """

    kind: JobKind | None = None
    state: JobState | None = None
    owner: str | None = None
    device: str | tuple[str, ...] | None = None


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


Relation: TypeAlias = Literal[
    "searched-by", "trained-by", "block-of", "assembled-from", "trained-from", "exported-from"
]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One step of lineage: ``child`` was made from ``parent``."""

    child: str
    parent: str
    relation: Relation

    def to_json(self) -> dict[str, Json]:
        return {"child": self.child, "parent": self.parent, "relation": self.relation}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(child=data["child"], parent=data["parent"], relation=data["relation"])


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """A live worker: what it owns and what its plug-ins can do.

    ``catalogue`` is ``{"spaces"|"methods"|"data"|"evaluators":
    [{"name", "summary", "params": {name: default}, "types": {name: annotation}}, …]}``.
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
    """An API key without its secret; ``shares`` is its owner's, alike for all its keys."""

    id: str
    name: str
    owner: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    shares: bool = True

    def to_json(self) -> dict[str, Json]:
        times = ("created_at", "expires_at", "revoked_at")
        moments = {name: getattr(self, name) for name in times}
        return {
            "id": self.id,
            "name": self.name,
            "owner": self.owner,
            "scopes": list(self.scopes),
            "shares": self.shares,
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
class Origin:
    """A job whose evaluations others took: how many, and the device time that this saved.

    ``job`` is None for all jobs together that the one who asks may not see.
    """

    job: str | None
    hits: int
    saved_s: float

    def to_json(self) -> dict[str, Json]:
        return {"job": self.job, "hits": self.hits, "saved_s": self.saved_s}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(job=data["job"], hits=int(data["hits"]), saved_s=float(data["saved_s"]))


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
