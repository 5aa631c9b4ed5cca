"""Alembic's entry: run the revisions on the connection that ``zoo.store.migrate`` hands in."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from zoo.errors import EnvironmentUnfitError
from zoo.store.tables import Row, UtcDateTime


def render_item(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Write plain column types into a new revision, so that it depends on no later code."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


connection = context.config.attributes.get("connection")
if connection is None:
    raise EnvironmentUnfitError(
        "migrations need an open database; run `python -m migrations upgrade --db URL`"
    )
context.configure(
    connection=connection,
    target_metadata=Row.metadata,
    render_as_batch=context.config.attributes.get("batch", True),
    render_item=render_item,
    compare_type=True,
    compare_server_default=True,
)
context.run_migrations()
