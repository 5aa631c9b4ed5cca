"""Which revision a database has, and how it gets to another one.

The revisions are in the package ``migrations``, which this module names only by string:
imports point down, and the migrations import the tables from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, inspect, text

from zoo.errors import EnvironmentUnfitError, InvalidInputError
from zoo.store.database import translated
from zoo.store.tables import Row

REMEDY = "run `blockyard db upgrade`"

_LOCK = 0x626C6F636B79


def config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, working on ``connection``."""
    made = Config()
    made.set_main_option("script_location", "migrations:")
    made.attributes["connection"] = connection
    return made


def head() -> str:
    """Return the revision that this program works with."""
    found = ScriptDirectory.from_config(config()).get_current_head()
    assert found is not None
    return found


def current(connection: Connection) -> str | None:
    """Return the revision of a database, None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring a database up to ``revision``, in one transaction and one process at a time.

    Raises:
        InvalidInputError: There is no such revision.
    """
    with _migrating(engine) as connection:
        command.upgrade(config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Bring a database down to ``revision``, in one transaction; ``base`` removes all tables.

    Raises:
        InvalidInputError: There is no such revision.
    """
    with _migrating(engine) as connection:
        command.downgrade(config(connection), revision)


def drift(engine: Engine) -> list[Any]:
    """Return every difference between a database's tables and ``zoo.store.tables``."""
    with translated(), engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, Row.metadata))


def prepare(engine: Engine) -> None:
    """Create the tables of an empty database and check the revision of any other.

    Raises:
        EnvironmentUnfitError: It has an older or an unknown revision, or foreign tables.
    """
    wanted = head()
    with translated(), engine.connect() as connection:
        found = current(connection)
    if found == wanted:
        return
    if found is None:
        with _migrating(engine) as connection:
            found = current(connection)
            if found is None:
                _refuse_foreign(connection)
                command.upgrade(config(connection), "head")
                return
    if found != wanted:
        where = engine.url.render_as_string(hide_password=True)
        known = any(item.revision == found for item in _revisions())
        raise EnvironmentUnfitError(
            f"{where} has revision {found}, this program needs {wanted}; "
            + (REMEDY if known else "it was written by a newer release: install that one")
        )


def _revisions() -> list[Any]:
    return list(ScriptDirectory.from_config(config()).walk_revisions())


def _refuse_foreign(connection: Connection) -> None:
    foreign = set(inspect(connection).get_table_names()) - {"alembic_version"}
    if foreign:
        raise EnvironmentUnfitError(
            f"the database has tables of another program ({', '.join(sorted(foreign))}); "
            "name an empty one"
        )


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in a transaction that no other migration can enter."""
    with translated(), engine.execution_options(writes=True).begin() as connection:
        # SQLite's writing transaction holds the one write lock from its start.
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        try:
            yield connection
        except CommandError as error:
            known = ", ".join(item.revision for item in _revisions())
            raise InvalidInputError(f"{error}; known revisions: base, {known}, head") from error
