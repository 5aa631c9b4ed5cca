"""Rows of blocks and chains: found by id, prefix or alias, and turned into values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from zoo.errors import InvalidInputError, NotFoundError
from zoo.names import ID_PREFIX
from zoo.spec import Block, BlockSpec, Chain
from zoo.store.tables import AliasRow, BlockRow, ChainBlockRow, ChainRow

AnyRow = TypeVar("AnyRow", BlockRow, ChainRow)


def find_block(session: Session, ref: str) -> BlockRow:
    """Return the block with this id or unique id prefix.

    Raises:
        NotFoundError: There is none.
        InvalidInputError: The prefix is of several blocks.
    """
    row = session.get(BlockRow, ref) or _by_prefix(session, BlockRow, ref)
    if row is None:
        raise NotFoundError(f"there is no block {ref!r:.200}; `blockyard zoo list` shows all")
    return row


def find_chain(session: Session, ref: str) -> ChainRow:
    """Return the chain with this id, alias or unique id prefix.

    Raises:
        NotFoundError: There is none.
        InvalidInputError: The prefix is of several chains.
    """
    row = session.get(ChainRow, ref)
    if row is None and (alias := session.get(AliasRow, ref)) is not None:
        row = session.get(ChainRow, alias.chain_id)
    row = row or _by_prefix(session, ChainRow, ref)
    if row is None:
        raise NotFoundError(f"there is no chain {ref!r:.200}; `blockyard zoo list` shows all")
    return row


def _by_prefix(session: Session, row: type[AnyRow], ref: str) -> AnyRow | None:
    if not ID_PREFIX.fullmatch(ref):
        return None
    found = session.scalars(
        select(row).where(row.id >= ref, row.id < ref + "g").order_by(row.id).limit(2)
    ).all()
    if len(found) > 1:
        raise InvalidInputError(
            f"prefix {ref} is of several ids, e.g. {found[0].id} and {found[1].id}; give more of it"
        )
    return found[0] if found else None


def block_of(row: BlockRow) -> Block:
    """Return the value of a row."""
    return Block(
        spec=BlockSpec.from_json(row.spec),
        weights=row.weights,
        num_params=row.num_params,
        size_bytes=row.size_bytes,
        signature=row.signature,
    )


def chains_of(session: Session, rows: Sequence[ChainRow]) -> list[Chain]:
    """Return the values of some rows, with one query for the blocks of all."""
    statement = (
        select(ChainBlockRow.chain_id, BlockRow)
        .join(BlockRow, ChainBlockRow.block_id == BlockRow.id)
        .where(ChainBlockRow.chain_id.in_([row.id for row in rows]))
        .order_by(ChainBlockRow.chain_id, ChainBlockRow.position)
    )
    values: dict[str, Block] = {}
    blocks: dict[str, list[Block]] = {row.id: [] for row in rows}
    for chain_id, row in session.execute(statement):
        blocks[chain_id].append(values.setdefault(row.id, block_of(row)))
    return [Chain(blocks=tuple(blocks[row.id]), card=row.card) for row in rows]
