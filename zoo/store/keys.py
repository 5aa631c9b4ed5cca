"""API keys in SQL: the secret is shown once, only its hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from zoo.errors import InvalidInputError, NotFoundError, UnauthenticatedError, UnknownNameError
from zoo.store.database import Database
from zoo.store.protocols import SCOPES, ApiKey
from zoo.store.tables import ApiKeyRow, OwnerRow

_SECRET = re.compile(r"by_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


class SqlKeys:
    """``KeyStore`` on SQL.

    A secret has 256 random bits, so one sha256 hides it as well as a slow hash would.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        *,
        owner: str,
        scopes: Sequence[str],
        expires_at: datetime | None = None,
        shares: bool | None = None,
    ) -> tuple[ApiKey, str]:
        for scope in scopes:
            if scope not in SCOPES:
                raise UnknownNameError("scope", scope, SCOPES)
        if not (name and owner and scopes):
            raise InvalidInputError("an API key needs a name, an owner and at least one scope")
        if expires_at is not None and expires_at.tzinfo is None:
            raise InvalidInputError(f"expiry {expires_at} has no time zone; give one")
        key_id = secrets.token_hex(8)
        secret = f"by_{key_id}_{secrets.token_urlsafe(32)}"
        row = ApiKeyRow(
            id=key_id,
            name=name,
            owner=owner,
            scopes=list(scopes),
            secret_hash=_hash(secret),
            created_at=self._database.now(),
            expires_at=expires_at,
            revoked_at=None,
        )
        with self._database.write() as session:
            session.add(row)
            session.flush()
            if shares is not None:
                self._set_sharing(session, owner, shares)
            return _key_of(row, shares_evaluations(session, owner)), secret

    def authenticate(self, secret: str) -> ApiKey:
        refused = UnauthenticatedError(
            "the API key is unknown, revoked or expired; `blockyard key create` makes one"
        )
        match = _SECRET.fullmatch(secret)
        if match is None:
            raise refused
        with self._database.read() as session:
            row = session.get(ApiKeyRow, match[1])
            shares = row is None or shares_evaluations(session, row.owner)
        known = hmac.compare_digest(row.secret_hash if row else _hash(""), _hash(secret))
        if row is None or not known or row.revoked_at is not None:
            raise refused
        if row.expires_at is not None and row.expires_at <= self._database.now():
            raise refused
        return _key_of(row, shares)

    def update(self, key_id: str, *, shares: bool) -> ApiKey:
        with self._database.write() as session:
            row = self._row(session, key_id)
            self._set_sharing(session, row.owner, shares)
            return _key_of(row, shares)

    def revoke(self, key_id: str) -> None:
        with self._database.write() as session:
            row = self._row(session, key_id)
            row.revoked_at = row.revoked_at or self._database.now()

    def keys(self) -> tuple[ApiKey, ...]:
        statement = (
            select(ApiKeyRow, OwnerRow.shares)
            .outerjoin(OwnerRow, OwnerRow.owner == ApiKeyRow.owner)
            .order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        )
        with self._database.read() as session:
            found = session.execute(statement)
            return tuple(_key_of(row, shares is not False) for row, shares in found)

    def _row(self, session: Session, key_id: str) -> ApiKeyRow:
        row = session.get(ApiKeyRow, key_id)
        if row is None:
            raise NotFoundError(f"there is no API key {key_id!r}; `blockyard key list` shows all")
        return row

    def _set_sharing(self, session: Session, owner: str, shares: bool) -> None:
        values = {"owner": owner, "shares": shares}
        self._database.upsert(session, OwnerRow, values, keys=("owner",), update=("shares",))


def shares_evaluations(session: Session, owner: str) -> bool:
    """Say whether an owner takes evaluations from others and gives them its own."""
    statement = select(OwnerRow.shares).where(OwnerRow.owner == owner)
    return session.scalars(statement).first() is not False


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key_of(row: ApiKeyRow, shares: bool) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        owner=row.owner,
        scopes=tuple(row.scopes),
        shares=shares,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
