"""Blocks and chains by typed filters, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, func, select
from sqlalchemy.orm import Session

from zoo.errors import InvalidInputError
from zoo.spec import Block, Chain
from zoo.store.block_rows import block_of, chains_of
from zoo.store.paging import fetch_page
from zoo.store.protocols import BlockQuery, ChainQuery, Page
from zoo.store.tables import BlockRow, ChainBlockRow, ChainRow, DeviceRow, ProfileRow

BLOCK_ORDERS = ("created", "num_params", "size_bytes")
CHAIN_ORDERS = ("created", "accuracy", "num_params", "size_bytes", "latency")


def list_blocks(
    session: Session, query: BlockQuery, *, limit: int, cursor: str | None
) -> Page[Block]:
    """Return one page of the blocks that pass every filter."""
    statement = select(BlockRow)
    if query.op is not None:
        statement = statement.where(BlockRow.op == query.op)
    if query.signature is not None:
        statement = statement.where(BlockRow.signature == query.signature)
    if query.max_params is not None:
        statement = statement.where(BlockRow.num_params <= query.max_params)
    if query.max_size_bytes is not None:
        statement = statement.where(BlockRow.size_bytes <= query.max_size_bytes)
    keys: dict[str, ColumnElement[Any]] = {
        "created": BlockRow.created_at.expression,
        "num_params": BlockRow.num_params.expression,
        "size_bytes": BlockRow.size_bytes.expression,
    }
    return fetch_page(
        session,
        statement,
        order=query.order,
        key=_choose(keys, query.order, BLOCK_ORDERS),
        id_column=BlockRow.id.expression,
        descending=query.descending,
        limit=limit,
        cursor=cursor,
        make=lambda rows: [block_of(row) for row in rows],
    )


def list_chains(
    session: Session, query: ChainQuery, *, limit: int, cursor: str | None
) -> Page[Chain]:
    """Return one page of the chains that pass every filter.

    Chains of unknown accuracy count as the least accurate; with a latency limit or
    order, chains that were not measured under the query's conditions are left out.

    Raises:
        InvalidInputError: A latency limit or order without a device.
    """
    statement = _filtered(select(ChainRow), query)
    keys: dict[str, ColumnElement[Any]] = {
        "created": ChainRow.created_at.expression,
        "accuracy": func.coalesce(ChainRow.accuracy, -1.0),
        "num_params": ChainRow.num_params.expression,
        "size_bytes": ChainRow.size_bytes.expression,
    }
    if query.max_latency_ms is not None or query.order == "latency":
        measured = _measured(session, query)
        statement = statement.join(measured, measured.c.subject == ChainRow.id)
        keys["latency"] = measured.c.latency_ms
        if query.max_latency_ms is not None:
            statement = statement.where(measured.c.latency_ms <= query.max_latency_ms)
    return fetch_page(
        session,
        statement,
        order=query.order,
        key=_choose(keys, query.order, CHAIN_ORDERS),
        id_column=ChainRow.id.expression,
        descending=query.descending,
        limit=limit,
        cursor=cursor,
        make=lambda rows: chains_of(session, rows),
    )


def _filtered(statement: Select[Any], query: ChainQuery) -> Select[Any]:
    if query.task is not None:
        statement = statement.where(ChainRow.task == query.task)
    if query.job is not None:
        statement = statement.where(ChainRow.job == query.job)
    if query.min_accuracy is not None:
        statement = statement.where(ChainRow.accuracy >= query.min_accuracy)
    if query.max_params is not None:
        statement = statement.where(ChainRow.num_params <= query.max_params)
    if query.max_size_bytes is not None:
        statement = statement.where(ChainRow.size_bytes <= query.max_size_bytes)
    if query.block is not None:
        having = select(ChainBlockRow.chain_id).where(ChainBlockRow.block_id == query.block)
        statement = statement.where(ChainRow.id.in_(having))
    return statement


def _measured(session: Session, query: ChainQuery) -> Subquery:
    """Return (subject, latency_ms): the fastest precision measured on the query's device."""
    if query.device is None:
        raise InvalidInputError("a latency limit or order needs a device; give its id or name")
    newest = (
        select(DeviceRow.id)
        .where(DeviceRow.name == query.device)
        .order_by(DeviceRow.seen_at.desc())
        .limit(1)
    )
    device_id = session.scalar(newest) or query.device
    return (
        select(ProfileRow.subject, func.min(ProfileRow.median_ms).label("latency_ms"))
        .where(
            ProfileRow.device == device_id,
            ProfileRow.runtime == query.runtime,
            ProfileRow.batch == query.batch,
        )
        .group_by(ProfileRow.subject)
        .subquery()
    )


def _choose(
    keys: dict[str, ColumnElement[Any]], order: str, choices: Sequence[str]
) -> ColumnElement[Any]:
    if order not in keys:
        raise InvalidInputError(f"order {order!r} is not one of: {', '.join(choices)}")
    return keys[order]
