"""Jobs in SQL: the state machine, claims by conditional update, leases and fencing tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from zoo.canonical import Json, canonical_json
from zoo.errors import ConflictError, IllegalTransitionError
from zoo.jobs import (
    MAX_ATTEMPTS,
    Job,
    JobKind,
    JobRequest,
    JobState,
    check_transition,
    new_job_id,
)
from zoo.store.job_rows import document, find_job, held_job, job_of
from zoo.store.keys import shares_evaluations
from zoo.store.paging import fetch_page
from zoo.store.protocols import JobQuery, Page
from zoo.store.records import JobRecords
from zoo.store.tables import CandidateRow, CheckpointRow, JobEventRow, JobRow

EVERY_JOB = JobQuery()
ASKED_STATES = {JobRequest.CANCEL: JobState.CANCELLED, JobRequest.PAUSE: JobState.PAUSED}


class SqlJobs(JobRecords):
    """``JobStore`` on SQL; what a job writes while it runs is in ``JobRecords``."""

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
        values = {
            "id": new_job_id(),
            "kind": str(JobKind(kind)),
            "state": str(JobState.QUEUED),
            "spec": document(spec),
            "owner": owner,
            "name": name,
            "device": device,
            "progress": {},
            "attempt": 0,
            "token": 0,
            "num_events": 0,
            "idempotency_key": idempotency_key,
            "created_at": self._database.now(),
        }
        unique = ("owner", "idempotency_key")
        with self._database.write() as session:
            values["shares"] = shares_evaluations(session, owner)
            if self._database.upsert(session, JobRow, values, keys=unique):
                return job_of(find_job(session, str(values["id"])))
            row = session.scalars(
                select(JobRow).where(
                    JobRow.owner == owner, JobRow.idempotency_key == idempotency_key
                )
            ).one()
        same = (row.kind, row.name, row.device) == (str(kind), name, device)
        if not same or canonical_json(row.spec) != canonical_json(spec):
            raise ConflictError(
                f"idempotency key {idempotency_key!r} was used for job {row.id} with another "
                "request, name or device; use a new key"
            )
        return job_of(row)

    def job(self, job_id: str) -> Job:
        with self._database.read() as session:
            return job_of(find_job(session, job_id))

    def jobs(
        self, query: JobQuery = EVERY_JOB, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Job]:
        statement = select(JobRow)
        if query.kind is not None:
            statement = statement.where(JobRow.kind == str(query.kind))
        if query.state is not None:
            statement = statement.where(JobRow.state == str(query.state))
        if query.owner is not None:
            statement = statement.where(JobRow.owner == query.owner)
        if query.device is not None:
            wanted = (query.device,) if isinstance(query.device, str) else query.device
            statement = statement.where(JobRow.device.in_(wanted))
        with self._database.read() as session:
            return fetch_page(
                session,
                statement,
                order="jobs",
                key=JobRow.created_at.expression,
                id_column=JobRow.id.expression,
                descending=True,
                limit=limit,
                cursor=cursor,
                make=lambda rows: [job_of(row) for row in rows],
            )

    def owners(self, job_ids: Collection[str]) -> Mapping[str, str]:
        statement = select(JobRow.id, JobRow.owner).where(JobRow.id.in_(sorted(job_ids)))
        with self._database.read() as session:
            return {row.id: row.owner for row in session.execute(statement)}

    def delete(self, job_id: str) -> None:
        with self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            if not JobState(row.state).final:
                raise ConflictError(
                    f"job {job_id} is {row.state}; only a job that is over can be deleted, "
                    "so cancel it first"
                )
            for table in (CandidateRow, CheckpointRow, JobEventRow):
                session.execute(delete(table).where(table.job_id == job_id))
            session.delete(row)

    def claim(
        self,
        worker: str,
        *,
        lease_s: float,
        devices: Sequence[str] = (),
        job_id: str | None = None,
    ) -> Job | None:
        waiting = (
            select(JobRow)
            .where(
                JobRow.state == str(JobState.QUEUED),
                or_(JobRow.device.is_(None), JobRow.device.in_(list(devices))),
            )
            .order_by(JobRow.created_at, JobRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if job_id is not None:
            waiting = waiting.where(JobRow.id == job_id)
        with self._database.write() as session:
            if job_id is not None:
                find_job(session, job_id)
            while (row := session.scalars(waiting).first()) is not None:
                if row.attempt >= MAX_ATTEMPTS:
                    self._quarantine(row)
                    session.flush()
                    continue
                if self._take(session, row, worker, lease_s):
                    session.refresh(row)
                    return job_of(row)
        return None

    def _take(self, session: Session, row: JobRow, worker: str, lease_s: float) -> bool:
        now = self._database.now()
        taken = session.connection().execute(
            update(JobRow)
            .where(
                JobRow.id == row.id,
                JobRow.state == str(JobState.QUEUED),
                JobRow.token == row.token,
            )
            .values(
                state=str(JobState.RUNNING),
                attempt=row.attempt + 1,
                token=row.token + 1,
                worker=worker,
                lease_expires_at=now + timedelta(seconds=lease_s),
                started_at=row.started_at or now,
                reason=None,
            )
        )
        return taken.rowcount == 1

    def heartbeat(
        self, job_id: str, token: int, *, lease_s: float, progress: Mapping[str, Json] | None = None
    ) -> JobRequest | None:
        with self._database.write() as session:
            row = held_job(session, job_id, token)
            row.lease_expires_at = self._database.now() + timedelta(seconds=lease_s)
            if progress is not None:
                row.progress = document(progress)
            return JobRequest(row.request) if row.request else None

    def finish(
        self,
        job_id: str,
        token: int,
        state: JobState,
        *,
        result: Mapping[str, Json] | None = None,
        reason: str | None = None,
    ) -> Job:
        with self._database.write() as session:
            row = held_job(session, job_id, token)
            self._move(row, state, reason=reason)
            if result is not None:
                row.result = document(result)
            return job_of(row)

    def request(self, job_id: str, request: JobRequest) -> Job:
        wanted = ASKED_STATES[JobRequest(request)]
        with self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            check_transition(job_id, JobState(row.state), wanted)
            if row.state != JobState.RUNNING:
                self._move(row, wanted, reason=f"{request} asked for")
            elif row.request != JobRequest.CANCEL:
                row.request = str(request)
            return job_of(row)

    def resume(self, job_id: str) -> Job:
        with self._database.write() as session:
            row = find_job(session, job_id, lock=True)
            if row.state != JobState.PAUSED:
                raise IllegalTransitionError(
                    f"job {job_id} is {row.state}; only a paused job can be resumed"
                )
            self._move(row, JobState.QUEUED, reason=None)
            return job_of(row)

    def reap(self, unmoved: Mapping[str, datetime] | None = None) -> list[Job]:
        expired = (
            select(JobRow)
            .where(
                JobRow.state == str(JobState.RUNNING),
                JobRow.lease_expires_at < self._database.now()
                if unmoved is None
                else JobRow.id.in_(sorted(unmoved)),
            )
            .order_by(JobRow.created_at, JobRow.id)
            .with_for_update(skip_locked=True)
        )
        with self._database.write() as session:
            rows = [
                row
                for row in session.scalars(expired)
                if unmoved is None or row.lease_expires_at == unmoved[row.id]
            ]
            for row in rows:
                if row.request is not None:
                    wanted = ASKED_STATES[JobRequest(row.request)]
                    self._move(row, wanted, reason=f"{row.request} asked for")
                elif row.attempt >= MAX_ATTEMPTS:
                    self._quarantine(row)
                else:
                    silent = f"worker {row.worker} went silent"
                    self._move(row, JobState.QUEUED, reason=silent, attempt=row.attempt)
            return [job_of(row) for row in rows]

    def _quarantine(self, row: JobRow) -> None:
        self._move(
            row,
            JobState.FAILED,
            reason=f"quarantined: {row.attempt} attempts ended without a result; last worker "
            f"{row.worker}; clone the job to try again",
        )

    def _move(self, row: JobRow, state: JobState, *, reason: str | None, attempt: int = 0) -> None:
        state = JobState(state)
        check_transition(row.id, JobState(row.state), state)
        row.state = str(state)
        row.reason = reason
        row.request = None
        row.lease_expires_at = None
        if state.final:
            row.finished_at = self._database.now()
        else:
            row.worker = None
            row.attempt = attempt
