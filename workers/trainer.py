"""The trainer process: does what its worker asks, one request at a time, and nothing else.

Everything that may crash, hang or eat the memory runs here: building and training
candidates, supernets, measuring, exporting. It is started as a program of its own
(``python -m workers.trainer FD``) and not through ``multiprocessing``, whose start-up
pickles its arguments and imports the caller's main module again. It holds no database
connection. When its worker dies it exits by itself: the pipe reports the hang-up even
while a candidate trains, and a timer in C ends it should Python no longer run.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from workers.wire import Message, receive, send
from zoo.errors import BlockyardError, TrainerCrashError, TrainerError

PROGRESS_INTERVAL_S = 0.25
"""Progress is sent upwards at most this often."""

OVERTIME_S = 30.0
"""How long after its time limit a request ends the process, should nobody else do so."""


class Reporter:
    """Sends progress upwards, thinned out to what somebody can read."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._last = 0.0

    def __call__(self, *, done: int, total: int, message: str, **metrics: float) -> None:
        """Report that ``done`` of ``total`` units are done; may be dropped if too frequent."""
        now = time.monotonic()
        if now - self._last < PROGRESS_INTERVAL_S:
            return
        self._last = now
        head = {
            "kind": "progress",
            "done": done,
            "total": total,
            "message": message,
            "metrics": metrics,
        }
        send(self._connection, Message(head))

    def keep(self, state: bytes, *, epoch: int) -> None:
        """Send the state of the training under way, from which another trainer may go on."""
        send(self._connection, Message({"kind": "checkpoint", "epoch": epoch}, (state,)))


def main(argv: list[str]) -> None:
    """Serve the worker on the inherited socket ``argv[0]`` until it hangs up."""
    connection: Connection[Any, Any] = Connection(int(argv[0]))
    # A terminal's Ctrl-C reaches the worker too, and the worker decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(connection.fileno(), os.getppid()), daemon=True).start()
    try:
        greeting = receive(connection).head
        sys.path.extend(path for path in greeting["path"] if path not in sys.path)
        duties = importlib.import_module(greeting["duties"]).Duties(
            data_root=greeting["data_root"], progress=Reporter(connection)
        )
        send(connection, Message({"kind": "ready"}))
        while True:
            _serve(connection, duties)
    except (EOFError, OSError):
        return


def _serve(connection: Connection[Any, Any], duties: Any) -> None:
    request = receive(connection)
    faulthandler.dump_traceback_later(request.head["timeout_s"] + OVERTIME_S, exit=True)
    try:
        answer = duties.perform(request.head["call"], request.head["args"], request.blobs)
    except Exception as error:
        answer = describe(error)
    finally:
        faulthandler.cancel_dump_traceback_later()
    send(connection, answer)


def describe(error: Exception) -> Message:
    """Put an error into words that the worker can raise again.

    Deliberate errors keep their class. Out of memory counts as a crash, since another
    attempt may find more; any other exception is the candidate's own and will repeat.
    ``faulty`` says that the process should be replaced.
    """
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, BlockyardError):
        plain = next(c for c in type(error).__mro__ if "__init__" not in vars(c))
        return _failure(plain.__name__, str(error), faulty=False)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return _failure(TrainerCrashError.__name__, f"out of memory: {first_line}", faulty=True)
    if "can't allocate memory" in str(error):
        return _failure(TrainerCrashError.__name__, f"out of memory: {first_line}", faulty=True)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    message = f"{type(error).__name__} at {where}: {first_line}"
    return _failure(TrainerError.__name__, message, faulty=True)


def _failure(name: str, message: str, *, faulty: bool) -> Message:
    return Message({"kind": "error", "error": name, "message": message, "faulty": faulty})


def _watch(fd: int, parent: int) -> None:
    """End the process once the worker is gone, whatever the main thread is doing."""
    poller = select.poll()
    poller.register(fd, 0)  # hang-up and error are always reported
    while True:
        if poller.poll(1000) or os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
