"""Pages by key: a cursor names the last row seen, so that inserts shift nothing."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, or_
from sqlalchemy.orm import Session

from zoo.errors import InvalidInputError
from zoo.store.protocols import Page
from zoo.store.tables import UtcDateTime

MAX_LIMIT = 1000

_ID = re.compile(r"[0-9A-Za-z_.-]{1,128}")
_BIGGEST = 2**62

T = TypeVar("T")


def fetch_page(
    session: Session,
    statement: Select[Any],
    *,
    order: str,
    key: ColumnElement[Any],
    id_column: ColumnElement[str],
    descending: bool,
    limit: int,
    cursor: str | None,
    make: Callable[[Sequence[Any]], Sequence[T]],
) -> Page[T]:
    """Return one page of ``statement``, ordered by ``key`` and then by id.

    The cursor keeps the name of the ``order``, and one of another order is refused.
    ``statement`` selects the row first; ``make`` turns all rows of a page into values.

    Raises:
        InvalidInputError: The limit is out of range, or the cursor is not of this listing.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidInputError(f"limit {limit} is out of range; use 1 to {MAX_LIMIT}")
    if cursor is not None:
        value, last_id = _decode(cursor, order, timed=isinstance(key.type, UtcDateTime))
        if descending:
            after = or_(key < value, and_(key == value, id_column < last_id))
        else:
            after = or_(key > value, and_(key == value, id_column > last_id))
        statement = statement.where(after)
    ordering = (key.desc(), id_column.desc()) if descending else (key.asc(), id_column.asc())
    rows = session.execute(
        statement.add_columns(key.label("page_key")).order_by(*ordering).limit(limit + 1)
    ).all()
    more = len(rows) > limit
    rows = rows[:limit]
    following = _encode(order, rows[-1].page_key, rows[-1][0].id) if more else None
    return Page(items=tuple(make([row[0] for row in rows])), next=following)


def _encode(order: str, value: Any, last_id: str) -> str:
    tagged = {"at": value.isoformat()} if isinstance(value, datetime) else {"value": value}
    data = json.dumps([order, tagged, last_id], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(cursor: str, order: str, *, timed: bool) -> tuple[Any, str]:
    """Return the key and id in a cursor; one that was not made by ``_encode`` is refused."""
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        kept_order, tagged, last_id = json.loads(data)
        value: Any = _moment(tagged["at"]) if timed else tagged["value"]
        valid = kept_order == order and bool(_ID.fullmatch(last_id))
        if not timed:
            valid = valid and type(value) in (int, float) and abs(value) <= _BIGGEST
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise _wrong(cursor) from error
    if not valid:
        raise _wrong(cursor)
    return value, last_id


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)


def _wrong(cursor: str) -> InvalidInputError:
    return InvalidInputError(
        f"cursor {cursor!r:.100} is not of this listing; pass the `next` of its last page"
    )
