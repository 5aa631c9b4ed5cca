"""Steps of several small networks at the same time: threads on a CPU, streams on a GPU.

One step of a small network cannot fill a device: its operations are too short to be shared
by cores, and leave most of a GPU idle. Side by side the networks need nothing of each other:
every one takes the step that it would take alone, with as many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")


class Lanes:
    """Runs ``count`` independent calls at once, time after time.

    On a CPU there are as many threads as PyTorch has, at most ``count``, and each gets its
    share of PyTorch's. On a GPU the calls are made one after the other, each on a stream of
    its own: what they launch runs at the same time, as long as no call waits for the device,
    and in order with all launched before and after.

    Args:
        device: Where the calls compute.
        count: Calls of one ``run``.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self.count = count
        self._device = device
        self._streams: list[torch.cuda.Stream] = []
        self._pool: ThreadPoolExecutor | None = None
        if device.type == "cuda" and count > 1:
            self._streams = [
                torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                for _ in range(count)
            ]
        elif count > 1 and (threads := torch.get_num_threads()) > 1:
            workers = min(count, threads)
            share = threads // workers
            self._pool = ThreadPoolExecutor(workers, "lane", initializer=_take, initargs=(share,))

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make all calls and return their results in order.

        Raises:
            Exception: What the first call that failed did with; calls beside it, though maybe
                not those after it, were made too.
        """
        if self._streams:
            return self._on_streams(calls)
        if self._pool is None:
            return [call() for call in calls]
        threads = torch.get_num_threads()
        try:
            futures = [self._pool.submit(call) for call in calls]
            wait(futures)
        finally:
            # What a lane takes would be what later threads of the process begin with.
            torch.set_num_threads(threads)
        return [future.result() for future in futures]

    def _on_streams(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        present = torch.cuda.current_stream(self._device)
        found = []
        try:
            for stream, call in zip(self._streams, calls, strict=True):
                stream.wait_stream(present)
                with torch.cuda.stream(stream):
                    found.append(call())
        finally:
            for stream in self._streams:
                present.wait_stream(stream)
        return found


def _take(threads: int) -> None:
    """Give the thread that calls this its number of PyTorch threads, for good.

    PyTorch sets a thread's number at its first parallel operation to the one set last in the
    process, unless that has been asked for before.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)
