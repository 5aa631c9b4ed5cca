"""The tables. Rows never leave ``zoo.store``: its methods return the values of ``zoo.spec``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC on every database; SQLite alone would drop the time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; pass an aware datetime")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Row(DeclarativeBase):
    """Base of all rows."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        str: Text(),
        int: BigInteger(),
        float: Double(),
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class JobRow(Row):
    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        Index(None, "state", "created_at"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str]
    spec: Mapped[dict[str, Any]]
    owner: Mapped[str]
    shares: Mapped[bool | None]
    name: Mapped[str]
    device: Mapped[str | None]
    reason: Mapped[str | None]
    request: Mapped[str | None]
    progress: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    attempt: Mapped[int]
    token: Mapped[int]
    worker: Mapped[str | None]
    num_events: Mapped[int]
    idempotency_key: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobEventRow(Row):
    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    level: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class CheckpointRow(Row):
    """A kept checkpoint; ``number`` is the order of saving, which a resume may set back."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int]
    digest: Mapped[str]
    created_at: Mapped[datetime]


class ArchitectureRow(Row):
    __tablename__ = "architectures"

    id: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class CandidateRow(Row):
    __tablename__ = "candidates"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    arm: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    architecture_id: Mapped[str] = mapped_column(ForeignKey("architectures.id"), index=True)
    state: Mapped[str]
    signature: Mapped[str | None]
    metrics: Mapped[dict[str, Any]]
    spread: Mapped[dict[str, Any] | None]
    repeats: Mapped[int | None]
    feasible: Mapped[bool]
    reason: Mapped[str | None]
    attempt: Mapped[int]
    reused_from: Mapped[str | None]
    saved_s: Mapped[float]
    cost_s: Mapped[float]
    chain: Mapped[str | None]


class EvaluationRow(Row):
    """One evaluation key: claimed while ``metrics`` is null, then a result for all jobs.

    ``scope`` says who alone may find it by its signature; null is everybody.
    """

    __tablename__ = "evaluations"

    key: Mapped[str] = mapped_column(primary_key=True)
    signature: Mapped[str | None] = mapped_column(index=True)
    scope: Mapped[str | None]
    info: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    cost_s: Mapped[float | None]
    repeats: Mapped[int | None]
    job: Mapped[str | None]
    device: Mapped[str | None]
    claimed_by: Mapped[str | None]
    token: Mapped[int]
    lease_expires_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class BlockRow(Row):
    """A block; ``touched_at`` is when it was last put or used, ``pinned`` keeps it for good."""

    __tablename__ = "blocks"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    op: Mapped[str] = mapped_column(index=True)
    spec: Mapped[dict[str, Any]]
    weights: Mapped[str] = mapped_column(index=True)
    num_params: Mapped[int]
    size_bytes: Mapped[int]
    signature: Mapped[str | None] = mapped_column(index=True)
    job: Mapped[str | None]
    pinned: Mapped[bool]
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime]


class ChainRow(Row):
    """A chain; ``task`` and ``accuracy`` repeat the card's values so that SQL can filter."""

    __tablename__ = "chains"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    card: Mapped[dict[str, Any]]
    num_params: Mapped[int]
    size_bytes: Mapped[int]
    task: Mapped[str | None] = mapped_column(index=True)
    accuracy: Mapped[float | None]
    job: Mapped[str | None] = mapped_column(index=True)
    onnx: Mapped[str | None]
    owner: Mapped[str]
    created_at: Mapped[datetime]


class ChainBlockRow(Row):
    __tablename__ = "chain_blocks"

    chain_id: Mapped[str] = mapped_column(
        ForeignKey("chains.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    block_id: Mapped[str] = mapped_column(ForeignKey("blocks.id"), index=True)


class AliasRow(Row):
    __tablename__ = "aliases"

    name: Mapped[str] = mapped_column(primary_key=True)
    chain_id: Mapped[str] = mapped_column(ForeignKey("chains.id", ondelete="CASCADE"), index=True)
    owner: Mapped[str]
    updated_at: Mapped[datetime]


class ProfileRow(Row):
    __tablename__ = "profiles"

    subject: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    runtime: Mapped[str] = mapped_column(primary_key=True)
    precision: Mapped[str] = mapped_column(primary_key=True)
    batch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    median_ms: Mapped[float]
    p95_ms: Mapped[float]
    samples: Mapped[list[Any]]
    peak_bytes: Mapped[int | None]
    measured_at: Mapped[datetime]


class LineageRow(Row):
    __tablename__ = "lineage"

    child: Mapped[str] = mapped_column(primary_key=True)
    parent: Mapped[str] = mapped_column(primary_key=True, index=True)
    relation: Mapped[str] = mapped_column(primary_key=True)


class DeviceRow(Row):
    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    info: Mapped[dict[str, Any]]
    seen_at: Mapped[datetime]


class PlaceRow(Row):
    """One piece of hardware; two devices with one fingerprint are two places."""

    __tablename__ = "places"

    id: Mapped[str] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime]


class DeviceLeaseRow(Row):
    """One holder's lease on a place; not ``granted`` means that it waits for it alone."""

    __tablename__ = "device_leases"

    place: Mapped[str] = mapped_column(ForeignKey("places.id"), primary_key=True)
    holder: Mapped[str] = mapped_column(primary_key=True)
    mode: Mapped[str] = mapped_column(primary_key=True)
    granted: Mapped[bool]
    expires_at: Mapped[datetime]


class WorkerRow(Row):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    devices: Mapped[list[Any]]
    catalogue: Mapped[dict[str, Any]]
    seen_at: Mapped[datetime]


class OwnerRow(Row):
    """What holds for all keys and jobs of an owner; one without a row shares evaluations."""

    __tablename__ = "owners"

    owner: Mapped[str] = mapped_column(primary_key=True)
    shares: Mapped[bool]


class ApiKeyRow(Row):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner: Mapped[str]
    scopes: Mapped[list[Any]]
    secret_hash: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
