"""The clock that stamps rows and files; tests hand in their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

Clock: TypeAlias = Callable[[], datetime]

ASK_EVERY_S = 60.0


def utc_now() -> datetime:
    """Return the present moment in UTC."""
    return datetime.now(UTC)


class ServerClock:
    """The time of a database server, so that leases mean the same on every host.

    The server is asked at first and then once a minute; in between this process counts on by
    itself. So neither hosts whose clocks differ nor one whose clock is set matter. A server
    that does not answer is asked again by the next caller.
    """

    def __init__(self, engine: Engine, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._asking = threading.Lock()
        self._known = self._ask()

    def __call__(self) -> datetime:
        moment, then = self._known
        # One asks, the others go on with what is known: they may hold the connections.
        if self._monotonic() - then > ASK_EVERY_S and self._asking.acquire(blocking=False):
            try:
                with suppress(SQLAlchemyError):  # what is done next meets it too, and says so
                    self._known = moment, then = self._ask()
            finally:
                self._asking.release()
        return moment + timedelta(seconds=self._monotonic() - then)

    def _ask(self) -> tuple[datetime, float]:
        with self._engine.connect() as connection:
            moment = connection.scalar(select(func.clock_timestamp()))
            then = self._monotonic()
        assert isinstance(moment, datetime)
        return moment.astimezone(UTC), then
