"""What a job leaves behind while it runs: its log, checkpoints and candidates."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, TypeAlias, cast

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from zoo.canonical import Json, content_id
from zoo.errors import InvalidInputError, NotFoundError
from zoo.jobs import Arm, Candidate, CandidateState
from zoo.store.database import Database
from zoo.store.files import FileStore
from zoo.store.findings import refers
from zoo.store.job_rows import document, find_job, held_job
from zoo.store.protocols import Event, Origin
from zoo.store.tables import ArchitectureRow, CandidateRow, CheckpointRow, JobEventRow, JobRow

KEPT_CHECKPOINTS = 2

STAMP_PRECISION = timedelta(milliseconds=1)
"""A file stamped when its row was written may seem a little younger than the row."""

Level: TypeAlias = Literal["info", "warning", "error"]


class JobRecords:
    """The half of ``JobStore`` that a running job writes and a page reads."""

    def __init__(self, database: Database, files: FileStore) -> None:
        self._database = database
        self._files = files

    def log(
        self,
        job_id: str,
        message: str,
        *,
        level: Level = "info",
        data: Mapping[str, Json] | None = None,
    ) -> None:
        with self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            row.num_events += 1
            session.add(
                JobEventRow(
                    job_id=job_id,
                    number=row.num_events,
                    at=self._database.now(),
                    level=level,
                    message=message,
                    data=document(data or {}),
                )
            )

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        statement = (
            select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.number > after)
            .order_by(JobEventRow.number)
            .limit(limit)
        )
        with self._database.read() as session:
            find_job(session, job_id)
            return tuple(_event_of(row) for row in session.scalars(statement))

    def save_checkpoint(self, job_id: str, token: int, digest: str, step: int) -> None:
        self._files.touch(digest)
        with self._database.write() as session:
            job = held_job(session, job_id, token)
            newest = self._newest_checkpoint(session, job_id)
            number = 1 if newest is None else newest.number + 1
            if newest is None or step > newest.step:
                job.attempt = min(job.attempt, 1)
            session.add(
                CheckpointRow(
                    job_id=job_id,
                    number=number,
                    step=step,
                    digest=digest,
                    created_at=self._database.now(),
                )
            )
            dropped = session.execute(
                delete(CheckpointRow)
                .where(
                    CheckpointRow.job_id == job_id,
                    CheckpointRow.number <= number - KEPT_CHECKPOINTS,
                )
                .returning(CheckpointRow.digest, CheckpointRow.created_at)
            ).all()
            unused = [(old, at) for old, at in dropped if not refers(session, old)]
        for old, at in unused:
            # Whoever put the same content since has stamped it anew and keeps it.
            self._files.delete_old(old, at + STAMP_PRECISION)

    def _newest_checkpoint(self, session: Session, job_id: str) -> CheckpointRow | None:
        return session.scalars(
            select(CheckpointRow)
            .where(CheckpointRow.job_id == job_id)
            .order_by(CheckpointRow.number.desc())
            .limit(1)
        ).first()

    def checkpoints(self, job_id: str) -> tuple[tuple[int, str], ...]:
        statement = (
            select(CheckpointRow)
            .where(CheckpointRow.job_id == job_id)
            .order_by(CheckpointRow.number.desc())
        )
        with self._database.read() as session:
            find_job(session, job_id)
            return tuple((row.step, row.digest) for row in session.scalars(statement))

    def put_candidate(self, candidate: Candidate, token: int) -> None:
        architecture = document(candidate.architecture)
        if content_id(architecture) != candidate.architecture_id:
            raise InvalidInputError(
                f"architecture id {candidate.architecture_id} is not the content id of the "
                f"candidate's architecture, {content_id(architecture)}"
            )
        values = {
            "job_id": candidate.job,
            "arm": str(candidate.arm),
            "number": candidate.number,
            "architecture_id": candidate.architecture_id,
            "state": str(candidate.state),
            "signature": candidate.signature,
            "metrics": document(candidate.metrics),
            "spread": document(candidate.spread) or None,
            "repeats": candidate.repeats,
            "feasible": candidate.feasible,
            "reason": candidate.reason,
            "attempt": candidate.attempt,
            "reused_from": candidate.reused_from,
            "saved_s": candidate.saved_s,
            "cost_s": candidate.cost_s,
            "chain": candidate.chain,
        }
        known = {
            "id": candidate.architecture_id,
            "document": architecture,
            "created_at": self._database.now(),
        }
        with self._database.write() as session:
            held_job(session, candidate.job, token)
            self._database.upsert(session, ArchitectureRow, known, keys=("id",))
            keys = ("job_id", "arm", "number")
            self._database.upsert(
                session, CandidateRow, values, keys=keys, update=values.keys() - set(keys)
            )

    def candidates(self, job_id: str, *, arm: Arm | None = None) -> tuple[Candidate, ...]:
        statement = (
            select(CandidateRow, ArchitectureRow.document)
            .join(ArchitectureRow, CandidateRow.architecture_id == ArchitectureRow.id)
            .where(CandidateRow.job_id == job_id)
            .order_by(CandidateRow.arm, CandidateRow.number)
        )
        if arm is not None:
            statement = statement.where(CandidateRow.arm == str(arm))
        with self._database.read() as session:
            find_job(session, job_id)
            return tuple(
                _candidate_of(row, architecture) for row, architecture in session.execute(statement)
            )

    def architecture(self, architecture_id: str, *, owner: str) -> Mapping[str, Json]:
        met = (
            select(CandidateRow.job_id)
            .join(JobRow, CandidateRow.job_id == JobRow.id)
            .where(CandidateRow.architecture_id == ArchitectureRow.id, JobRow.owner == owner)
            .exists()
        )
        statement = select(ArchitectureRow).where(ArchitectureRow.id == architecture_id, met)
        with self._database.read() as session:
            row = session.scalars(statement).first()
            if row is None:
                raise NotFoundError(
                    f"no job of yours has met an architecture {architecture_id!r:.100}; give its "
                    "whole id, or its space and genotype"
                )
            return dict(row.document)

    def savings(
        self, job_id: str | None = None, *, owner: str | None = None
    ) -> Mapping[str, float]:
        hit = CandidateRow.reused_from.is_not(None)
        statement = select(
            func.count(),
            func.count().filter(hit),
            func.count().filter(~hit),
            func.coalesce(func.sum(CandidateRow.saved_s), 0.0),
            func.coalesce(func.sum(CandidateRow.cost_s), 0.0),
        )
        with self._database.read() as session:
            values = session.execute(statement.where(*_scored(session, job_id, owner))).one()
        names = ("candidates", "hits", "evaluations", "saved_s", "spent_s")
        return dict(zip(names, values, strict=True))

    def origins(self, job_id: str | None = None, *, owner: str | None = None) -> tuple[Origin, ...]:
        saved_s = func.sum(CandidateRow.saved_s)
        statement = (
            select(CandidateRow.reused_from, func.count(), saved_s)
            .where(CandidateRow.reused_from.is_not(None))
            .group_by(CandidateRow.reused_from)
            .order_by(saved_s.desc(), CandidateRow.reused_from)
        )
        with self._database.read() as session:
            found = session.execute(statement.where(*_scored(session, job_id, owner))).all()
        return tuple(Origin(job=job, hits=hits, saved_s=saved) for job, hits, saved in found)


def _scored(session: Session, job_id: str | None, owner: str | None) -> list[ColumnElement[bool]]:
    """Return what scored candidates are: no winners, of this job or owner if one is given."""
    wanted = [CandidateRow.arm != str(Arm.WINNER)]
    if owner is not None:
        wanted.append(CandidateRow.job_id.in_(select(JobRow.id).where(JobRow.owner == owner)))
    if job_id is not None:
        find_job(session, job_id)
        wanted.append(CandidateRow.job_id == job_id)
    return wanted


def _event_of(row: JobEventRow) -> Event:
    return Event(
        job=row.job_id,
        number=row.number,
        at=row.at,
        level=cast(Level, row.level),
        message=row.message,
        data=row.data,
    )


def _candidate_of(row: CandidateRow, architecture: dict[str, Json]) -> Candidate:
    return Candidate(
        job=row.job_id,
        number=row.number,
        architecture=architecture,
        architecture_id=row.architecture_id,
        arm=Arm(row.arm),
        state=CandidateState(row.state),
        signature=row.signature,
        metrics=row.metrics,
        spread=row.spread or {},
        repeats=row.repeats or 0,
        feasible=row.feasible,
        reason=row.reason,
        attempt=row.attempt,
        reused_from=row.reused_from,
        saved_s=row.saved_s,
        cost_s=row.cost_s,
        chain=row.chain,
    )
