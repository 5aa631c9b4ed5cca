"""The store: SQL rows for what is known, content-addressed files for the bytes.

``zoo.store.protocols`` says what a store promises. Importing this package loads
neither SQLAlchemy nor torch; ``open_store`` loads SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from zoo.store.protocols import Store


def open_store(
    url: str,
    *,
    files: Path | None = None,
    now: Callable[[], datetime] | None = None,
    grace_s: float = 3600.0,
) -> Store:
    """Open the store behind a database URL; an empty database gets its tables first.

    Args:
        url: ``sqlite:///zoo.db`` or ``postgresql+psycopg://user@host/name``.
        files: Folder of the content-addressed files. On SQLite the default is
            ``zoo.db.files`` beside the database; on PostgreSQL it must be given.
        now: Clock, always UTC.
        grace_s: Age below which garbage collection leaves blocks and files alone: the
            time that a writer has between writing a file and the row that refers to it.

    Raises:
        InvalidInputError: The URL names no supported database, or ``files`` is missing.
        EnvironmentUnfitError: The database has another revision than this program.
        NotReadyError: The database server does not answer.
    """
    from zoo.store.sql import open_sql_store

    return open_sql_store(url, files=files, now=now, grace_s=grace_s)
