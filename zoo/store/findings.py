"""What is known about blocks and chains: profiles, lineage, and what nothing refers to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Select, delete, exists, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from zoo.errors import NotFoundError
from zoo.jobs import FINAL
from zoo.spec import Profile
from zoo.store.database import Database
from zoo.store.files import FileStore
from zoo.store.protocols import Edge
from zoo.store.tables import (
    BlockRow,
    ChainBlockRow,
    ChainRow,
    CheckpointRow,
    JobRow,
    LineageRow,
    ProfileRow,
)

COLLECTED_AT_ONCE = 500


class BlockFindings:
    """The half of ``BlockStore`` that says what is known, and what can go."""

    def __init__(self, database: Database, files: FileStore, *, grace_s: float) -> None:
        self._database = database
        self._files = files
        self._grace = timedelta(seconds=grace_s)

    def put_profile(self, profile: Profile) -> None:
        keys = ("subject", "device", "runtime", "precision", "batch")
        values = {
            **{name: getattr(profile, name) for name in keys},
            "median_ms": profile.median_ms,
            "p95_ms": profile.p95_ms,
            "samples": list(profile.samples),
            "peak_bytes": profile.peak_bytes,
            "measured_at": self._database.now(),
        }
        with self._database.write() as session:
            known = session.get(BlockRow, profile.subject) or session.get(ChainRow, profile.subject)
            if known is None:
                raise NotFoundError(
                    f"{profile.subject!r} is no block or chain of the zoo; put it there first"
                )
            self._database.upsert(
                session, ProfileRow, values, keys=keys, update=values.keys() - set(keys)
            )

    def profiles(self, subject: str, *, device: str | None = None) -> tuple[Profile, ...]:
        statement = (
            select(ProfileRow)
            .where(ProfileRow.subject == subject)
            .order_by(ProfileRow.device, ProfileRow.runtime, ProfileRow.precision, ProfileRow.batch)
        )
        if device is not None:
            statement = statement.where(ProfileRow.device == device)
        with self._database.read() as session:
            return tuple(_profile_of(row) for row in session.scalars(statement))

    def add_edges(self, edges: Sequence[Edge]) -> None:
        with self._database.write() as session:
            for edge in edges:
                values = {"child": edge.child, "parent": edge.parent, "relation": edge.relation}
                self._database.upsert(session, LineageRow, values, keys=values)

    def lineage(self, subject: str) -> tuple[Edge, ...]:
        with self._database.read() as session:
            rows = [
                *session.scalars(_reachable(subject, LineageRow.child, LineageRow.parent)),
                *session.scalars(_reachable(subject, LineageRow.parent, LineageRow.child)),
            ]
        found = {(row.child, row.parent, row.relation): row for row in rows}
        return tuple(
            Edge(child=row.child, parent=row.parent, relation=cast(Any, row.relation))
            for _, row in sorted(found.items())
        )

    def garbage(self) -> tuple[list[str], list[str]]:
        """Return the blocks and files that ``collect`` would delete now.

        A block is garbage if no chain has it and nobody put it by hand, a file if no
        kept block, chain or unfinished job's checkpoint refers to it. What was put or
        used within the grace period is left alone.
        """
        before = self._database.now() - self._grace
        with self._database.read() as session:
            blocks = list(session.scalars(_unused_blocks(before).order_by(BlockRow.id)))
            kept = _kept_files(session, set(blocks))
        return blocks, self._unused_files(kept, before)

    def collect(self) -> tuple[int, int]:
        """Delete the garbage; return the numbers of blocks and files deleted."""
        before = self._database.now() - self._grace
        num_blocks = 0
        while deleted := self._collect_blocks(before):
            num_blocks += deleted
        with self._database.write() as session:
            session.execute(delete(CheckpointRow).where(CheckpointRow.job_id.in_(_final_jobs())))
        with self._database.read() as session:
            kept = _kept_files(session, set())
        self._files.delete_unfinished(before)
        unused = self._unused_files(kept, before)
        return num_blocks, sum(self._files.delete_old(digest, before) for digest in unused)

    def verify(self) -> list[str]:
        """Read every file; return the digests of damaged ones, and of missing ones in use."""
        with self._database.read() as session:
            used = _kept_files(session, set())
        return sorted({*self._files.verify(), *(used - set(self._files.digests()))})

    def _collect_blocks(self, before: datetime) -> int:
        """Delete some unused blocks; a writer that has one of them locked keeps it."""
        unused = (
            _unused_blocks(before)
            .order_by(BlockRow.id)
            .limit(COLLECTED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        with self._database.write() as session:
            blocks = list(session.scalars(unused))
            session.execute(delete(ProfileRow).where(ProfileRow.subject.in_(blocks)))
            session.execute(delete(BlockRow).where(BlockRow.id.in_(blocks)))
        return len(blocks)

    def _unused_files(self, kept: set[str], before: datetime) -> list[str]:
        return [
            digest
            for digest in self._files.digests()
            if digest not in kept and self._files.changed_before(digest, before)
        ]


def _unused_blocks(before: datetime) -> Select[str]:
    return select(BlockRow.id).where(
        BlockRow.pinned.is_(False),
        BlockRow.touched_at < before,
        ~exists().where(ChainBlockRow.block_id == BlockRow.id),
    )


def _final_jobs() -> Select[str]:
    return select(JobRow.id).where(JobRow.state.in_([str(state) for state in FINAL]))


def refers(session: Session, digest: str) -> bool:
    """Say whether a block, a chain or a checkpoint refers to a file."""
    columns = (BlockRow.weights, ChainRow.onnx, CheckpointRow.digest)
    return any(session.scalar(select(exists().where(column == digest))) for column in columns)


def _kept_files(session: Session, unused_blocks: set[str]) -> set[str]:
    blocks = session.execute(select(BlockRow.id, BlockRow.weights))
    kept = {weights for block_id, weights in blocks if block_id not in unused_blocks}
    kept.update(
        digest
        for digest in session.scalars(select(ChainRow.onnx).where(ChainRow.onnx.is_not(None)))
        if digest is not None
    )
    kept.update(
        session.scalars(
            select(CheckpointRow.digest).where(CheckpointRow.job_id.not_in(_final_jobs()))
        )
    )
    return kept


def _reachable(
    subject: str, start: InstrumentedAttribute[str], end: InstrumentedAttribute[str]
) -> Select[LineageRow]:
    """Select the edges on every path from ``subject``, followed from ``start`` to ``end``."""
    reached = select(end.label("id")).where(start == subject).cte("reached", recursive=True)
    reached = reached.union(select(end).where(start == reached.c.id))
    return select(LineageRow).where((start == subject) | start.in_(select(reached.c.id)))


def _profile_of(row: ProfileRow) -> Profile:
    return Profile(
        subject=row.subject,
        device=row.device,
        runtime=row.runtime,
        precision=row.precision,
        batch=row.batch,
        median_ms=row.median_ms,
        p95_ms=row.p95_ms,
        samples=tuple(row.samples),
        peak_bytes=row.peak_bytes,
    )
