"""The worker's side of its one trainer process: start, ask, watch, kill, replace."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from workers.wire import Message, receive, send
from zoo import errors
from zoo.errors import EnvironmentUnfitError, TrainerCrashError, TrainerTimeoutError

Progress = Callable[[Mapping[str, Any]], None]

Keep = Callable[[bytes], None]
"""Takes the state of a training under way whenever the trainer sends one."""

WATCH_INTERVAL_S = 0.05

SECRETS = ("BLOCKYARD_URL", "BLOCKYARD_BROKER")
"""Variables that a process without need of the database is not given: they hold passwords."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may take: seconds, and bytes of resident memory of the process."""

    timeout_s: float = 3600.0
    memory_bytes: int | None = None


class Trainer:
    """One spawned trainer: warm between requests, replaced after a fault.

    ``generation`` counts the processes; state left in the trainer by an earlier request
    is gone when it has changed. Not for use by two threads at once.
    """

    def __init__(
        self,
        *,
        data_root: Path | None = None,
        duties: str = "workers.duties",
        start_timeout_s: float = 180.0,
    ) -> None:
        """Describe the process; ``start`` or the first ``call`` spawns it.

        Args:
            data_root: Folder of data sets.
            duties: Module whose ``Duties`` answers the requests.
            start_timeout_s: How long loading its libraries may take.
        """
        self._data_root = data_root
        self._duties = duties
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._ready = False
        self._lock = threading.Lock()
        self.generation = 0

    @property
    def pid(self) -> int | None:
        """The process id, or None while no trainer runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Spawn the process unless it runs; it loads its libraries while the caller goes on."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        ours, theirs = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.trainer", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env={name: text for name, text in os.environ.items() if name not in SECRETS},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._connection = ours
        self._ready = False
        self.generation += 1
        root = str(self._data_root) if self._data_root else None
        with contextlib.suppress(OSError):  # a trainer that died at once is reported by call()
            greeting = {"path": sys.path, "data_root": root, "duties": self._duties}
            send(ours, Message(greeting))

    def call(
        self,
        name: str,
        args: Mapping[str, Any],
        blobs: tuple[bytes, ...] = (),
        *,
        limits: Limits | None = None,
        progress: Progress | None = None,
        keep: Keep | None = None,
        check: Callable[[], None] | None = None,
    ) -> Message:
        """Ask the trainer and wait for its answer; ``check`` is called all the while.

        Whatever ``check``, ``progress`` or ``keep`` raises kills the trainer and is passed on.

        Raises:
            TrainerCrashError: The process died or passed its memory limit.
            TrainerTimeoutError: It took longer than ``limits.timeout_s``; it was killed.
            TrainerError: The request raised an exception that was not deliberate.
            BlockyardError: The request refused with this error.
        """
        limits = limits or Limits()
        with self._lock:
            try:
                self.start()
                self._await_ready(check)
                request = {"call": name, "args": args, "timeout_s": limits.timeout_s}
                self._send(Message(request, blobs))
                answer = self._wait(name, limits, progress, check, keep)
            except BaseException:
                self.kill()
                raise
            if answer.head["kind"] == "error":
                if answer.head["faulty"]:
                    self.kill()
                raise getattr(errors, answer.head["error"])(answer.head["message"])
            return answer

    def kill(self) -> None:
        """End the process and what it started, at once; safe to repeat."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _await_ready(self, check: Callable[[], None] | None) -> None:
        if not self._ready:
            self._wait("start", Limits(timeout_s=self._start_timeout_s), None, check)
            self._ready = True

    def _send(self, message: Message) -> None:
        assert self._connection is not None  # start() opened it
        try:
            send(self._connection, message)
        except OSError as error:
            raise self._death() from error

    def _wait(
        self,
        name: str,
        limits: Limits,
        progress: Progress | None,
        check: Callable[[], None] | None,
        keep: Keep | None = None,
    ) -> Message:
        assert self._connection is not None  # start() opened it
        deadline = time.monotonic() + limits.timeout_s
        while True:
            try:
                message = (
                    receive(self._connection) if self._connection.poll(WATCH_INTERVAL_S) else None
                )
            except (EOFError, OSError) as error:
                raise self._death() from error
            kind = message.head["kind"] if message is not None else None
            if message is not None and kind not in ("progress", "checkpoint"):
                return message
            if message is not None and kind == "progress" and progress is not None:
                progress(message.head)
            if message is not None and kind == "checkpoint" and keep is not None:
                keep(message.blobs[0])
            if check is not None:
                check()
            if time.monotonic() > deadline:
                raise TrainerTimeoutError(
                    f"{name} took longer than {limits.timeout_s:g} s; the trainer was killed; "
                    "raise the time limit or choose something smaller"
                )
            self._check_memory(name, limits.memory_bytes)

    def _check_memory(self, name: str, limit: int | None) -> None:
        if limit is None or self._process is None:
            return
        used = resident_bytes(self._process.pid)
        if used > limit:
            raise TrainerCrashError(
                f"out of memory: {name} used {used:,} bytes, the limit is {limit:,}; the trainer "
                "was killed"
            )

    def _death(self) -> TrainerCrashError:
        """Say how the process died, once it has."""
        assert self._process is not None  # start() spawned it
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return TrainerCrashError("the trainer closed its pipe and hangs; it was killed")
        if code >= 0:
            return TrainerCrashError(f"the trainer exited with code {code}")
        name = signal.Signals(-code).name
        hint = ", most likely because memory ran out" if -code == signal.SIGKILL else ""
        return TrainerCrashError(f"the trainer was ended by {name}{hint}")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it is gone.

    Raises:
        EnvironmentUnfitError: This system has no ``/proc``.
    """
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except FileNotFoundError as error:
        if not Path("/proc/self/statm").exists():
            raise EnvironmentUnfitError(
                "memory limits need /proc, which this system lacks; drop max_memory_bytes"
            ) from error
        return 0
    except ProcessLookupError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
