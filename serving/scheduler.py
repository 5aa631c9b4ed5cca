"""Who is served next: fair queues at segments, as plain objects told the time.

Nothing here knows threads, tensors or clocks. Work waits in one ``SegmentQueue`` per
segment; ``pick`` says which segment runs next and ``SegmentQueue.take`` which work forms
its batch. There is no waiting for fuller batches: a batch is what has come while the
device was busy.

Fairness is that of a virtual token counter: every tenant has a counter of the device
seconds it has used, divided by its weight. A tenant ahead of the least served one by more
than ``slack_s`` gives way; within the slack work is served in order of arrival, so that
fairness does not break up batches. A tenant that comes back after a pause starts at the
level of the least served one, so that nobody can save up service.

Source:
    Sheng et al. (2024), Fairness in Serving Large Language Models, arXiv:2401.00588.
    Differs: the cost is measured device time and there is a slack.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from zoo.errors import InvalidInputError

MIN_RETRY_S = 0.05
MAX_RETRY_S = 60.0


class Work(Protocol):
    """What waits: some rows of one tenant; a smaller ``order`` came earlier."""

    @property
    def tenant(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def order(self) -> int: ...


WorkT = TypeVar("WorkT", bound=Work)


class VirtualTime:
    """Device seconds used per unit of weight, by every tenant that has unfinished work.

    Raises:
        InvalidInputError: A weight is not above zero.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, *, slack_s: float = 0.0) -> None:
        self._weights = dict(weights or {})
        for tenant, weight in self._weights.items():
            if not weight > 0:
                raise InvalidInputError(f"weight {weight} of tenant {tenant!r} is not above 0")
        self.slack_s = slack_s
        self._used: dict[str, float] = {}
        self._active: dict[str, int] = {}
        self._floor = 0.0

    def arrive(self, tenant: str) -> None:
        """Note that one more request of the tenant is unfinished."""
        active = self._active.get(tenant, 0)
        if not active:
            self._used[tenant] = max(self._used.get(tenant, 0.0), self.least())
        self._active[tenant] = active + 1

    def leave(self, tenant: str) -> None:
        """Note that one request of the tenant is finished."""
        self._floor = self.least()
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant]
            self._forget()

    def charge(self, tenant: str, cost_s: float) -> None:
        """Add device time to the account of a tenant that has unfinished work."""
        self._used[tenant] += cost_s / self._weights.get(tenant, 1.0)

    def least(self) -> float:
        """Return the counter of the least served tenant that has unfinished work."""
        used = min((self._used[tenant] for tenant in self._active), default=0.0)
        return max(used, self._floor)

    def lead(self, tenant: str, least: float) -> float:
        """Return how far beyond the slack the tenant is ahead of the counter ``least``."""
        return max(0.0, self._used[tenant] - least - self.slack_s)

    def _forget(self) -> None:
        """Drop idle tenants whose counter says no more than the floor does."""
        if len(self._used) > 2 * len(self._active) + 16:
            self._used = {
                tenant: used
                for tenant, used in self._used.items()
                if tenant in self._active or used > self._floor
            }


class SegmentQueue(Generic[WorkT]):
    """Work waiting at one segment, in order of arrival for each tenant.

    ``cost_s`` is the device time that a row is expected to take here.
    """

    def __init__(self, virtual: VirtualTime, *, cost_s: float) -> None:
        self.cost_s = cost_s
        self.rows = 0
        self._virtual = virtual
        self._lines: dict[str, OrderedDict[int, WorkT]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def push(self, work: WorkT) -> None:
        """Add work of a tenant that ``virtual`` knows; its ``order`` must not be here yet."""
        self._lines.setdefault(work.tenant, OrderedDict())[work.order] = work
        self.rows += work.rows

    def discard(self, work: WorkT) -> bool:
        """Remove work that need not be done any more; say whether it was here."""
        line = self._lines.get(work.tenant)
        if line is None or line.pop(work.order, None) is None:
            return False
        self.rows -= work.rows
        if not line:
            del self._lines[work.tenant]
        return True

    def __contains__(self, work: WorkT) -> bool:
        return work.order in self._lines.get(work.tenant, ())

    def urgency(self) -> tuple[float, int]:
        """Return ``(lead, order)`` of the work to be served first; the least goes first."""
        least = self._virtual.least()
        return min(self._rank(tenant, least) for tenant in self._lines)

    def take(self, max_rows: int) -> list[WorkT]:
        """Remove and return the next batch: at least one piece, at most ``max_rows`` rows.

        Every row taken is charged to its tenant at ``cost_s``.
        """
        batch: list[WorkT] = []
        room = max_rows
        least = self._virtual.least()
        ranks = [(*self._rank(tenant, least), tenant) for tenant in self._lines]
        heapq.heapify(ranks)
        while ranks:
            tenant = ranks[0][2]
            line = self._lines[tenant]
            work = next(iter(line.values()))
            if batch and work.rows > room:
                break
            self.discard(work)
            self._virtual.charge(tenant, work.rows * self.cost_s)
            batch.append(work)
            room -= work.rows
            if line:
                heapq.heapreplace(ranks, (*self._rank(tenant, least), tenant))
            else:
                heapq.heappop(ranks)
        return batch

    def _rank(self, tenant: str, least: float) -> tuple[float, int]:
        return self._virtual.lead(tenant, least), next(iter(self._lines[tenant]))


def pick(queues: Iterable[SegmentQueue[WorkT]]) -> SegmentQueue[WorkT] | None:
    """Return the queue whose most urgent work goes first of all, or None if all are empty."""
    return min((queue for queue in queues if queue.rows), key=SegmentQueue.urgency, default=None)


class Deadlines(Generic[WorkT]):
    """Work by deadline, the earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, WorkT]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, work: WorkT) -> None:
        heapq.heappush(self._heap, (deadline, work.order, work))

    def expired(self, now: float) -> Iterator[WorkT]:
        """Remove and yield all work whose deadline is not after ``now``."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]

    def keep(self, wanted: Callable[[WorkT], bool]) -> None:
        """Forget work that is done, so that far deadlines do not pile up."""
        self._heap = [entry for entry in self._heap if wanted(entry[2])]
        heapq.heapify(self._heap)


class Throughput:
    """Rows finished per second of device time, newer batches counting more."""

    def __init__(self, *, keep: float = 0.95) -> None:
        self._keep = keep
        self._rows = 0.0
        self._busy_s = 0.0

    def record(self, rows: int, busy_s: float) -> None:
        """Count a batch that took ``busy_s`` and finished ``rows`` rows (0 in mid-chain)."""
        self._rows = self._rows * self._keep + rows
        self._busy_s = self._busy_s * self._keep + busy_s

    def retry_after_s(self, rows: int) -> float:
        """Return how long ``rows`` rows take, between 0.05 and 60 seconds.

        Before anything was measured it is 1 second.
        """
        if not self._rows:
            return 1.0
        return min(MAX_RETRY_S, max(MIN_RETRY_S, rows * self._busy_s / self._rows))


def displaced(waiting: Mapping[str, int], tenant: str, rows: int) -> str | None:
    """Return whose newest work makes room in a full queue for ``rows`` of ``tenant``.

    It is the tenant with most rows waiting, if it would still have more than ``tenant``;
    so a tenant that floods the queue cannot keep the others out. None: nobody's.
    """
    longest = max(waiting, key=lambda name: (waiting[name], name), default=None)
    if longest is None or longest == tenant:
        return None
    return longest if waiting[longest] > waiting.get(tenant, 0) + rows else None
