"""Rows of jobs: found, locked, checked against a token, and turned into values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from zoo.canonical import plain
from zoo.errors import InvalidInputError, NotFoundError, StaleTokenError
from zoo.jobs import Job, JobKind, JobRequest, JobState
from zoo.store.tables import JobRow


def find_job(session: Session, job_id: str, *, lock: bool = False) -> JobRow:
    """Return the row of a job, locked for the rest of the transaction if asked.

    Raises:
        NotFoundError: There is none.
    """
    statement = select(JobRow).where(JobRow.id == job_id)
    row = session.scalars(statement.with_for_update() if lock else statement).first()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}; `blockyard job list` shows all")
    return row


def held_job(session: Session, job_id: str, token: int) -> JobRow:
    """Return the locked row of a running job if ``token`` is that of its present claim.

    Raises:
        StaleTokenError: It was claimed again, or moved on.
    """
    row = find_job(session, job_id, lock=True)
    if row.state != JobState.RUNNING or row.token != token:
        raise StaleTokenError(
            f"job {job_id} is {row.state} under token {row.token}; the claim with token {token} "
            "is over and its results are refused"
        )
    return row


def job_of(row: JobRow) -> Job:
    """Return the snapshot of a row."""
    return Job(
        id=row.id,
        kind=JobKind(row.kind),
        state=JobState(row.state),
        spec=row.spec,
        owner=row.owner,
        shares=row.shares is not False,
        name=row.name,
        device=row.device,
        reason=row.reason,
        request=JobRequest(row.request) if row.request else None,
        progress=row.progress,
        result=row.result,
        attempt=row.attempt,
        token=row.token,
        worker=row.worker,
        lease_expires_at=row.lease_expires_at,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def document(value: Mapping[str, object]) -> dict[str, Any]:
    """Return a mapping as plain JSON.

    Raises:
        InvalidInputError: It holds what is not JSON, such as NaN.
    """
    made = plain(value)
    if not isinstance(made, dict):
        raise InvalidInputError(f"{value!r:.100} is not a JSON object")
    return made
