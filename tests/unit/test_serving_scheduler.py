"""Fair queues, checked by properties: nothing lost, nobody starved, bounded unfairness."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.scheduler import (
    Deadlines,
    SegmentQueue,
    Throughput,
    VirtualTime,
    displaced,
    pick,
)
from zoo.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Job:
    tenant: str
    rows: int
    order: int


TENANTS = st.sampled_from(["a", "b", "c"])
ARRIVALS = st.lists(st.tuples(TENANTS, st.integers(1, 8)), max_size=40)


def filled(
    arrivals: list[tuple[str, int]], virtual: VirtualTime, cost_s: float = 1.0
) -> tuple[SegmentQueue[Job], list[Job]]:
    queue = SegmentQueue[Job](virtual, cost_s=cost_s)
    jobs = [Job(tenant=t, rows=r, order=i) for i, (t, r) in enumerate(arrivals)]
    for job in jobs:
        virtual.arrive(job.tenant)
        queue.push(job)
    return queue, jobs


@given(ARRIVALS, st.integers(1, 16))
def test_everything_pushed_is_taken_exactly_once(
    arrivals: list[tuple[str, int]], max_rows: int
) -> None:
    queue, jobs = filled(arrivals, VirtualTime())
    taken = []
    while queue.rows:
        batch = queue.take(max_rows)
        assert batch
        assert sum(job.rows for job in batch) <= max_rows or len(batch) == 1
        taken += batch
    assert sorted(job.order for job in taken) == [job.order for job in jobs]
    assert len(queue) == 0


@given(ARRIVALS, st.sets(st.integers(0, 39)))
def test_discarded_work_is_never_taken_and_never_counted(
    arrivals: list[tuple[str, int]], gone: set[int]
) -> None:
    queue, jobs = filled(arrivals, VirtualTime())
    for job in jobs:
        if job.order in gone:
            assert queue.discard(job)
            assert not queue.discard(job)
    left = [job for job in jobs if job.order not in gone]
    assert queue.rows == sum(job.rows for job in left)
    assert [job in queue for job in jobs] == [job in left for job in jobs]
    assert {job.order for job in queue.take(10**6)} == {job.order for job in left}


@given(ARRIVALS)
def test_one_tenant_is_served_in_order_of_arrival(arrivals: list[tuple[str, int]]) -> None:
    queue, _ = filled([("a", rows) for _, rows in arrivals], VirtualTime())
    orders = [job.order for job in queue.take(10**6)]
    assert orders == sorted(orders)


@given(
    st.lists(st.integers(1, 8), min_size=10, max_size=60),
    st.lists(st.integers(1, 8), min_size=10, max_size=60),
    st.floats(0.25, 4.0),
    st.floats(0.0, 20.0),
)
def test_backlogged_tenants_get_service_by_weight_within_a_bound(
    first: list[int], second: list[int], weight: float, slack_s: float
) -> None:
    virtual = VirtualTime({"b": weight}, slack_s=slack_s)
    queue, _ = filled([("a", r) for r in first] + [("b", r) for r in second], virtual)
    left = Counter(a=len(first), b=len(second))
    served = {"a": 0.0, "b": 0.0}
    while left["a"] and left["b"]:
        (job,) = queue.take(1)
        left[job.tenant] -= 1
        served[job.tenant] += job.rows / (weight if job.tenant == "b" else 1.0)
        largest = 8 / min(weight, 1.0)
        assert abs(served["a"] - served["b"]) <= slack_s + largest + 1e-9


def test_a_flooder_delays_a_newcomer_by_the_slack_and_a_batch_only() -> None:
    virtual = VirtualTime(slack_s=5.0)
    queue, _ = filled([("flood", 1)] * 500, virtual)
    for _ in range(10):
        queue.take(4)
    newcomer = Job(tenant="quiet", rows=1, order=1000)
    virtual.arrive("quiet")
    queue.push(newcomer)
    rows_before = 0
    while newcomer not in (batch := queue.take(4)):
        rows_before += len(batch)
    assert rows_before <= 5 + 4


def test_nobody_saves_up_service_by_staying_away() -> None:
    virtual = VirtualTime()
    queue, _ = filled([("busy", 1)] * 100, virtual)
    queue.take(50)
    virtual.arrive("late")
    assert virtual.lead("late", virtual.least()) == virtual.lead("busy", virtual.least()) == 0.0


def test_a_tenant_that_comes_and_goes_keeps_its_account() -> None:
    virtual = VirtualTime()
    virtual.arrive("steady")
    virtual.arrive("hopper")
    virtual.charge("hopper", 9.0)
    virtual.leave("hopper")
    virtual.arrive("hopper")
    assert virtual.lead("hopper", virtual.least()) == 9.0


def test_idle_tenants_are_forgotten() -> None:
    virtual = VirtualTime()
    for number in range(10_000):
        virtual.arrive(str(number))
        virtual.charge(str(number), 1.0)
        virtual.leave(str(number))
    assert len(virtual._used) <= 20


def test_a_weight_must_be_positive() -> None:
    with pytest.raises(InvalidInputError, match="'a'"):
        VirtualTime({"a": 0.0})


@given(st.lists(ARRIVALS, min_size=1, max_size=4))
def test_the_segment_with_the_oldest_work_goes_first_within_one_tenant(
    segments: list[list[tuple[str, int]]],
) -> None:
    virtual = VirtualTime()
    orders = itertools.count()
    queues = []
    for arrivals in segments:
        queue = SegmentQueue[Job](virtual, cost_s=1.0)
        for _, rows in arrivals:
            virtual.arrive("a")
            queue.push(Job(tenant="a", rows=rows, order=next(orders)))
        queues.append(queue)
    chosen = pick(queues)
    waiting = [queue for queue in queues if queue.rows]
    assert chosen is (waiting[0] if waiting else None)


@given(
    st.lists(st.tuples(st.integers(0, 3), TENANTS, st.integers(1, 4)), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_no_work_starves_while_new_work_keeps_coming(
    arrivals: list[tuple[int, str, int]], max_rows: int
) -> None:
    virtual = VirtualTime(slack_s=1.0)
    queues = [SegmentQueue[Job](virtual, cost_s=1.0) for _ in range(4)]
    orders = itertools.count()

    def add(where: int, tenant: str, rows: int) -> Job:
        job = Job(tenant=tenant, rows=rows, order=next(orders))
        virtual.arrive(tenant)
        queues[where].push(job)
        return job

    watched = {add(*arrival).order for arrival in arrivals}
    for _ in range(40 * len(arrivals)):
        add(0, "a", 1)
        queue = pick(queues)
        assert queue is not None
        for job in queue.take(max_rows):
            watched.discard(job.order)
            virtual.leave(job.tenant)
        if not watched:
            return
    pytest.fail(f"{len(watched)} pieces of work were never served")


@given(st.lists(st.floats(0, 100)), st.floats(0, 100))
def test_exactly_the_expired_deadlines_come_out_in_order(times: list[float], now: float) -> None:
    deadlines: Deadlines[Job] = Deadlines()
    for order, time in enumerate(times):
        deadlines.add(time, Job(tenant="a", rows=1, order=order))
    late = [times[job.order] for job in deadlines.expired(now)]
    assert late == sorted(time for time in times if time <= now)
    assert len(deadlines) == sum(time > now for time in times)


def test_finished_work_is_forgotten_before_its_deadline() -> None:
    deadlines: Deadlines[Job] = Deadlines()
    for order in range(10):
        deadlines.add(100.0, Job(tenant="a", rows=1, order=order))
    deadlines.keep(lambda job: job.order >= 7)
    assert [job.order for job in deadlines.expired(100.0)] == [7, 8, 9]


def test_the_time_to_come_back_follows_the_measured_rate() -> None:
    throughput = Throughput()
    assert throughput.retry_after_s(100) == 1.0
    for _ in range(100):
        throughput.record(0, 0.005)
        throughput.record(10, 0.005)
    assert throughput.retry_after_s(2000) == pytest.approx(2.0, rel=0.05)
    assert throughput.retry_after_s(1) == 0.05
    assert throughput.retry_after_s(10**9) == 60.0


@given(st.dictionaries(TENANTS, st.integers(1, 50)), TENANTS, st.integers(1, 20))
def test_only_a_tenant_with_more_waiting_is_displaced(
    waiting: dict[str, int], tenant: str, rows: int
) -> None:
    victim = displaced(waiting, tenant, rows)
    if victim is None:
        mine = waiting.get(tenant, 0)
        assert all(count <= mine + rows for name, count in waiting.items() if name != tenant)
    else:
        assert victim != tenant
        assert waiting[victim] == max(waiting.values()) > waiting.get(tenant, 0) + rows
