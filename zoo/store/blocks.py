"""Blocks, chains and aliases in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from zoo.errors import ForbiddenError, NotFoundError
from zoo.names import check_alias
from zoo.spec import Block, Chain
from zoo.store.block_rows import block_of, chains_of, find_block, find_chain
from zoo.store.findings import BlockFindings
from zoo.store.job_rows import document
from zoo.store.listings import list_blocks, list_chains
from zoo.store.protocols import UNFINISHED, BlockQuery, ChainQuery, Page
from zoo.store.tables import (
    AliasRow,
    BlockRow,
    ChainBlockRow,
    ChainRow,
    JobRow,
    LineageRow,
    ProfileRow,
)

EVERY_BLOCK = BlockQuery()
EVERY_CHAIN = ChainQuery()
LOCAL_OWNER = "local"


class SqlBlocks(BlockFindings):
    """``BlockStore`` on SQL; profiles, lineage and garbage are in ``BlockFindings``."""

    def put_block(self, block: Block, *, job: str | None = None) -> str:
        self._files.touch(block.weights)
        now = self._database.now()
        values = {
            "id": block.id,
            "op": block.spec.op,
            "spec": block.spec.to_json(),
            "weights": block.weights,
            "num_params": block.num_params,
            "size_bytes": block.size_bytes,
            "signature": block.signature,
            "job": job,
            "pinned": job is None,
            "created_at": now,
            "touched_at": now,
        }
        update = ("touched_at", "pinned") if job is None else ("touched_at",)
        with self._database.write() as session:
            self._database.upsert(session, BlockRow, values, keys=("id",), update=update)
        return block.id

    def block(self, block_id: str) -> Block:
        with self._database.read() as session:
            return block_of(find_block(session, block_id))

    def blocks(
        self, query: BlockQuery = EVERY_BLOCK, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Block]:
        with self._database.read() as session:
            return list_blocks(session, query, limit=limit, cursor=cursor)

    def put_chain(
        self,
        chain: Chain,
        *,
        job: str | None = None,
        onnx: str | None = None,
        owner: str | None = None,
        guard: bool = False,
    ) -> str:
        if onnx is not None:
            self._files.touch(onnx)
        card = document(chain.card)
        values = {
            "id": chain.id,
            "card": card,
            "num_params": chain.num_params,
            "size_bytes": chain.size_bytes,
            "task": _task(card),
            "accuracy": _accuracy(card),
            "job": job,
            "onnx": onnx,
            "created_at": self._database.now(),
        }
        updated = {"card", "task", "accuracy"}
        updated |= {name for name in ("job", "onnx") if values[name] is not None}
        with self._database.write() as session:
            self._touch_blocks(session, chain)
            values["owner"] = _owner(session, owner, job)
            if not self._database.upsert(session, ChainRow, values, keys=("id",)):
                row = session.get_one(ChainRow, chain.id, with_for_update=True)
                _check_owner(f"chain {row.id}", row.owner, owner, guard=guard)
                if owner is None and job is not None and values["owner"] != row.owner:
                    # Another owner's job made the same; whoever finished it first keeps it.
                    updated = updated | {"owner"} if row.card == UNFINISHED != card else set()
                if updated:
                    changes = {name: values[name] for name in updated}
                    session.execute(update(ChainRow).where(ChainRow.id == row.id).values(changes))
            for position, block in enumerate(chain.blocks):
                part = {"chain_id": chain.id, "position": position, "block_id": block.id}
                keys = ("chain_id", "position")
                self._database.upsert(session, ChainBlockRow, part, keys=keys)
        return chain.id

    def _touch_blocks(self, session: Session, chain: Chain) -> None:
        wanted = sorted({block.id for block in chain.blocks})
        known = session.scalars(
            select(BlockRow.id)
            .where(BlockRow.id.in_(wanted))
            .order_by(BlockRow.id)
            .with_for_update()
        ).all()
        if missing := sorted(set(wanted) - set(known)):
            raise NotFoundError(
                f"block {missing[0]} of the chain is not in the zoo; put its blocks first"
            )
        session.execute(
            update(BlockRow).where(BlockRow.id.in_(wanted)).values(touched_at=self._database.now())
        )

    def chain(self, ref: str) -> Chain:
        with self._database.read() as session:
            return chains_of(session, [find_chain(session, ref)])[0]

    def chain_owner(self, ref: str) -> str:
        with self._database.read() as session:
            return find_chain(session, ref).owner

    def onnx(self, chain_id: str) -> str | None:
        with self._database.read() as session:
            return find_chain(session, chain_id).onnx

    def chains(
        self, query: ChainQuery = EVERY_CHAIN, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Chain]:
        with self._database.read() as session:
            return list_chains(session, query, limit=limit, cursor=cursor)

    def delete_chain(self, chain_id: str, *, owner: str | None = None, guard: bool = False) -> None:
        """Delete a chain with its aliases, profiles and edges; its blocks stay until collected."""
        with self._database.write() as session:
            row = find_chain(session, chain_id)
            _check_owner(f"chain {row.id}", row.owner, owner, guard=guard)
            session.execute(delete(ProfileRow).where(ProfileRow.subject == row.id))
            session.execute(
                delete(LineageRow).where(
                    or_(LineageRow.child == row.id, LineageRow.parent == row.id)
                )
            )
            session.execute(delete(ChainRow).where(ChainRow.id == row.id))

    def set_alias(
        self, alias: str, chain_id: str, *, owner: str | None = None, guard: bool = False
    ) -> None:
        check_alias(alias)
        with self._database.write() as session:
            values = {
                "name": alias,
                "chain_id": find_chain(session, chain_id).id,
                "owner": owner or LOCAL_OWNER,
                "updated_at": self._database.now(),
            }
            if not self._database.upsert(session, AliasRow, values, keys=("name",)):
                row = session.get_one(AliasRow, alias, with_for_update=True)
                _check_owner(f"alias {alias}", row.owner, owner, guard=guard)
                row.chain_id, row.updated_at = str(values["chain_id"]), self._database.now()

    def alias_owner(self, alias: str) -> str | None:
        with self._database.read() as session:
            row = session.get(AliasRow, alias)
            return row.owner if row is not None else None

    def aliases(self) -> Mapping[str, str]:
        with self._database.read() as session:
            rows = session.scalars(select(AliasRow).order_by(AliasRow.name))
            return {row.name: row.chain_id for row in rows}


def _owner(session: Session, owner: str | None, job: str | None) -> str:
    """Return whose a new chain is: the one named, else whose job made it."""
    made = session.get(JobRow, job) if owner is None and job is not None else None
    return owner or (made.owner if made is not None else LOCAL_OWNER)


def _check_owner(what: str, present: str, owner: str | None, *, guard: bool) -> None:
    if guard and owner != present:
        raise ForbiddenError(
            f"{what} belongs to another owner; only that owner or an admin may change it"
        )


def _task(card: Mapping[str, Any]) -> str | None:
    task = card.get("task")
    return task if isinstance(task, str) else None


def _accuracy(card: Mapping[str, Any]) -> float | None:
    metrics = card.get("metrics")
    value = metrics.get("accuracy") if isinstance(metrics, Mapping) else None
    return float(value) if isinstance(value, int | float) else None
