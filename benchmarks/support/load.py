"""A light closed-loop HTTP client: many connections, each with one request under way."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A whole HTTP request as bytes, and the last bytes that its answer must hold."""

    request: bytes
    expected: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run of the load found; latencies are per request."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int


@dataclass(slots=True)
class _Run:
    calls: Iterator[Call]
    stop_at: float
    finished: asyncio.Future[None]
    tolerance: float
    open_connections: int = 0
    latencies: list[float] = field(default_factory=list)
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        if not self.finished.done():
            self.finished.set_exception(error)


class _Connection(asyncio.Protocol):
    """Sends a request, checks its answer, and sends the next until the time is up."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._wanted = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._run.open_connections += 1
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._wanted < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            if b" 200 " not in head[:16]:
                self._run.fail(RuntimeError(f"the server answered {bytes(self._buffer)[:500]!r}"))
                self._transport.close()
                return
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            self._wanted = end + 4 + length
        if len(self._buffer) >= self._wanted:
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        self._run.open_connections -= 1
        if self._run.finished.done():
            return
        if time.perf_counter() < self._run.stop_at:
            self._run.fail(error or ConnectionError("the server closed a connection"))
        elif not self._run.open_connections:
            self._run.finished.set_result(None)

    def _send(self) -> None:
        self._call = next(self._run.calls)
        self._wanted = -1
        self._buffer.clear()
        self._sent_at = time.perf_counter()
        self._transport.write(self._call.request)  # type: ignore[attr-defined]

    def _answered(self) -> None:
        now = time.perf_counter()
        want = self._call.expected
        have = np.frombuffer(bytes(self._buffer[-want.nbytes :]), dtype=want.dtype)
        error = float(np.abs(have - want).max())
        if not error <= self._run.tolerance * float(np.abs(want).max()):
            self._run.fail(RuntimeError(f"a wrong answer: {have}, expected {want}"))
            self._transport.close()
        elif now < self._run.stop_at:
            self._run.latencies.append(now - self._sent_at)
            self._send()
        else:
            self._transport.close()


async def drive(
    port: int, calls: Sequence[Call], *, clients: int, seconds: float, tolerance: float = 1e-4
) -> Load:
    """Keep ``clients`` requests under way for ``seconds`` and check every answer.

    Raises:
        RuntimeError: An answer was wrong or not 200.
        ConnectionError: The server closed a connection.
    """
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    run = _Run(itertools.cycle(calls), start + seconds, loop.create_future(), tolerance)
    for _ in range(clients):
        await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port)
    await asyncio.wait_for(run.finished, seconds + 60)
    times = sorted(run.latencies)
    return Load(
        requests_per_s=len(times) / seconds,
        p50_ms=1e3 * _rank(times, 0.5),
        p99_ms=1e3 * _rank(times, 0.99),
        requests=len(times),
    )


def _rank(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, math.floor(fraction * len(ordered)))] if ordered else 0.0
