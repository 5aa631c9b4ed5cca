"""Servers as process groups that can be started, paused, resumed and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
START_S = 120.0
STOP_S = 10.0


class ServerProcess:
    """One server in its own process group, so that its workers pause and stop with it.

    Paused servers use no processor time, so that several can be measured in turns.
    """

    def __init__(self, script: str, options: Mapping[str, object], log: Path) -> None:
        self.port = free_port()
        self._log = log
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"support.{script}", f"--port={self.port}", *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, request: bytes) -> None:
        """Wait until the server answers ``request`` with 200, then return.

        Raises:
            RuntimeError: It died or took longer than two minutes; with the end of its log.
        """
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            if self._answers(request):
                return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-3000:]}")

    def pause(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the whole group: politely first, then by force."""
        self._signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _answers(self, request: bytes) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(request)
                return b" 200 " in connection.recv(4096)[:16]
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_request(path: str, parts: Sequence[bytes], headers: Mapping[str, str]) -> bytes:
    """Return a whole POST request as bytes."""
    body = b"".join(parts)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Length: {len(body)}",
        "Content-Type: application/octet-stream",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
