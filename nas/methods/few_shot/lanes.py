"""Steps of several small networks at the same time: threads on a CPU, streams on a GPU.

One step of a small network cannot fill a device: its operations are too short to be shared
by cores, and leave most of a GPU idle. Side by side the networks need nothing of each other,
so every one takes exactly the step that it would take alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")


class Lanes:
    """Runs up to ``count`` independent calls at once.

    On a CPU there are as many threads as PyTorch has, at most ``count``, and each gets its
    share of PyTorch's. On a GPU the calls are made one after the other, each on a stream of
    its own: what they launch runs at the same time, in order with all launched before and
    after.

    Args:
        device: Where the calls compute.
        count: Most calls of one ``run``.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._streams: list[torch.cuda.Stream] = []
        self._pool: ThreadPoolExecutor | None = None
        if device.type == "cuda":
            self._streams = [
                torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                for _ in range(count)
            ]
            return
        threads = torch.get_num_threads()
        workers = min(count, threads)
        if workers > 1:
            self._pool = ThreadPoolExecutor(
                workers, "lane", initializer=torch.set_num_threads, initargs=(threads // workers,)
            )

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make all calls and return their results in order.

        Raises:
            Exception: The first call that failed did with it; the others were made too.
        """
        if self._streams and len(calls) > 1:
            return self._on_streams(calls)
        if self._pool is None or len(calls) == 1:
            return [call() for call in calls]
        # A new thread's number of PyTorch threads is the one that was set last in any thread.
        threads = torch.get_num_threads()
        try:
            futures = [self._pool.submit(call) for call in calls]
            wait(futures)
        finally:
            torch.set_num_threads(threads)
        return [future.result() for future in futures]

    def _on_streams(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        present, found = torch.cuda.current_stream(), []
        for stream, call in zip(self._streams, calls, strict=False):
            stream.wait_stream(present)
            with torch.cuda.stream(stream):
                found.append(call())
        for stream in self._streams:
            present.wait_stream(stream)
        return found
