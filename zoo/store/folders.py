"""Folders and what the operating system says about them, in our words."""

from __future__ import annotations

import errno
from pathlib import Path

from zoo.errors import EnvironmentUnfitError, StorageFullError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        StorageFullError: The disk is full.
        EnvironmentUnfitError: A file is in the way, or it is not allowed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(error, f"folder {path} cannot be made") from error


def unusable(error: OSError, what: str) -> StorageFullError | EnvironmentUnfitError:
    """Return the error to raise for ``error``; ``what`` says what could not be done."""
    if error.errno in _FULL:
        return StorageFullError(
            f"{what}: {error.strerror}; free some space, e.g. with `blockyard zoo gc`"
        )
    return EnvironmentUnfitError(f"{what}: {error.strerror}; check the disk and its permissions")
