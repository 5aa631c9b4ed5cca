"""Evaluations in SQL: one row a key, claimed by one job at a time, kept for all jobs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from zoo.canonical import Json
from zoo.errors import NotFoundError, StaleTokenError
from zoo.spec import Evaluation
from zoo.store.database import Database
from zoo.store.job_rows import document, held_job
from zoo.store.protocols import Claimed, InFlight
from zoo.store.tables import EvaluationRow


class SqlEvaluations:
    """``EvaluationStore`` on SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(
        self, key: str, *, job: str, lease_s: float, token: int | None = None
    ) -> Evaluation | Claimed | InFlight:
        now = self._database.now()
        expires = now + timedelta(seconds=lease_s)
        fresh = {"key": key, "token": 1, "claimed_by": job, "lease_expires_at": expires}
        with self._database.write() as session:
            if token is not None:
                held_job(session, job, token)
            if self._database.upsert(session, EvaluationRow, fresh, keys=("key",)):
                return Claimed(key=key, token=1)
            row = self._row(session, key)
            if row.metrics is not None:
                return _evaluation_of(row)
            held = row.lease_expires_at is not None and row.lease_expires_at > now
            if held and row.claimed_by is not None and row.claimed_by != job:
                return InFlight(key=key, job=row.claimed_by)
            row.claimed_by = job
            row.token += 1
            row.lease_expires_at = expires
            return Claimed(key=key, token=row.token)

    def extend(self, key: str, token: int, *, lease_s: float) -> None:
        with self._database.write() as session:
            row = self._held(session, key, token)
            row.lease_expires_at = self._database.now() + timedelta(seconds=lease_s)

    def finish(self, key: str, token: int, evaluation: Evaluation, *, info: dict[str, Any]) -> None:
        with self._database.write() as session:
            row = self._held(session, key, token)
            row.signature = info.get("signature")
            row.scope = info.get("scope")
            row.info = document(info)
            row.metrics = document(evaluation.metrics)
            row.cost_s = evaluation.cost_s
            row.repeats = evaluation.repeats
            row.job = evaluation.job or row.claimed_by
            row.device = evaluation.device
            row.finished_at = self._database.now()
            row.claimed_by = None
            row.lease_expires_at = None

    def abandon(self, key: str, token: int) -> None:
        with self._database.write() as session:
            row = self._held(session, key, token)
            row.claimed_by = None
            row.lease_expires_at = None

    def get(self, key: str) -> Evaluation | None:
        with self._database.read() as session:
            row = session.get(EvaluationRow, key)
            return None if row is None or row.metrics is None else _evaluation_of(row)

    def find(
        self, signature: str, *, scope: str | None = None
    ) -> tuple[tuple[str, Evaluation], ...]:
        statement = (
            select(EvaluationRow)
            .where(
                EvaluationRow.signature == signature,
                EvaluationRow.finished_at.is_not(None),
                EvaluationRow.scope.is_(None) if scope is None else EvaluationRow.scope == scope,
            )
            .order_by(EvaluationRow.key)
        )
        with self._database.read() as session:
            return tuple((row.key, _evaluation_of(row)) for row in session.scalars(statement))

    def info(self, key: str) -> dict[str, Any]:
        with self._database.read() as session:
            row = session.get(EvaluationRow, key)
            if row is None:
                raise NotFoundError(f"there is no evaluation {key}")
            return dict(row.info or {})

    def certify(self, key: str, architecture: str, certificate: Mapping[str, Json]) -> None:
        with self._database.write() as session:
            row = self._row(session, key)
            info = row.info or {}
            certificates = {**info.get("certificates", {}), architecture: dict(certificate)}
            row.info = document({**info, "certificates": certificates})

    def _row(self, session: Session, key: str) -> EvaluationRow:
        row = session.scalars(
            select(EvaluationRow).where(EvaluationRow.key == key).with_for_update()
        ).first()
        if row is None:
            raise NotFoundError(f"nobody has claimed evaluation {key}; claim it first")
        return row

    def _held(self, session: Session, key: str, token: int) -> EvaluationRow:
        row = self._row(session, key)
        if row.token != token or row.claimed_by is None:
            raise StaleTokenError(
                f"the claim of evaluation {key} with token {token} is over (it has token "
                f"{row.token} now); its result is refused"
            )
        return row


def _evaluation_of(row: EvaluationRow) -> Evaluation:
    assert row.metrics is not None
    assert row.cost_s is not None
    assert row.repeats is not None
    return Evaluation(
        metrics=row.metrics,
        cost_s=row.cost_s,
        repeats=row.repeats,
        job=row.job,
        device=row.device,
    )
