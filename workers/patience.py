"""A store whose calls wait for a database that is away for a moment."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, cast

from zoo.errors import CapacityError, DeadlineExceededError, StorageFullError
from zoo.store.protocols import Store

Wait = Callable[[CapacityError, float], bool]
"""Waits after an error, given the moment of the first; False says to give up."""


def patient(store: Store, wait: Wait) -> Store:
    """Return ``store`` with every call repeated while the database is busy or away.

    Only for calls that may be repeated: a transaction whose answer was lost may have been
    committed. Those of a job are, by fencing token, content id or idempotency key.
    """
    return cast(Store, _Patient(store, wait))


class _Patient:
    """A store, or one part of it."""

    def __init__(self, target: object, wait: Wait) -> None:
        self._target = target
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return _Patient(value, self._wait)

        @functools.wraps(value)
        def call(*args: object, **options: object) -> object:
            first = None
            while True:
                try:
                    return value(*args, **options)
                except (StorageFullError, DeadlineExceededError):
                    raise
                except CapacityError as error:
                    first = first or time.monotonic()
                    if not self._wait(error, first):
                        raise

        return call
