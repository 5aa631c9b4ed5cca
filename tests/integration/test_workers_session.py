"""A claimed job's session and the reaper, on a real store and without a trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import toys
from workers.cache import Cache
from workers.reaper import Reaper
from workers.session import JobStoppedError, Session, Stop, Timing
from zoo.errors import NotReadyError, StaleTokenError
from zoo.jobs import Job, JobKind, JobRequest, JobState
from zoo.spec import Device, Evaluation
from zoo.store import open_store
from zoo.store.protocols import Claimed, Store, WorkerInfo

FAST = Timing(lease_s=1.0, heartbeat_s=0.05, poll_s=0.02, pause_grace_s=0.2)
CPU = Device(name="cpu", kind="cpu", info={"model": "a processor"})


class Queue:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, job_id: str) -> None:
        self.sent.append(job_id)

    def close(self) -> None: ...


@pytest.fixture
def claimed(store: Store) -> Job:
    store.devices.announce(WorkerInfo(id="w", devices=(CPU,), catalogue={}))
    job = store.jobs.submit(JobKind.PREVIEW, {"search": {}})
    taken = store.jobs.claim("w", lease_s=FAST.lease_s, job_id=job.id)
    assert taken is not None
    return taken


@pytest.fixture
def session(store: Store, claimed: Job) -> Iterator[Session]:
    with Session(store, claimed, holder="w/1", timing=FAST) as session:
        yield session


def test_a_lease_is_kept_alive_beyond_its_length(store: Store, session: Session) -> None:
    deadline = time.monotonic() + 1.5 * FAST.lease_s
    while time.monotonic() < deadline:
        assert store.jobs.reap() == []
        time.sleep(0.05)
    session.check()


def test_progress_is_stored_without_numbers_that_are_none(store: Store, session: Session) -> None:
    session.progress(
        step=1, total=4, message="on", phase="search", metrics={"loss": float("nan"), "lr": 0.5}
    )
    shown = toys.wait_for(lambda: store.jobs.job(session.job.id).progress, timeout_s=5)
    assert shown["metrics"] == {"lr": 0.5}
    assert (shown["step"], shown["total"], shown["eta_s"]) == (1, 4, None)


@pytest.mark.parametrize(
    ("request_", "stop"), [(JobRequest.CANCEL, Stop.CANCEL), (JobRequest.PAUSE, Stop.PAUSE)]
)
def test_a_request_reaches_the_job(
    store: Store, session: Session, request_: JobRequest, stop: Stop
) -> None:
    store.jobs.request(session.job.id, request_)
    toys.wait_for(lambda: session.stop, timeout_s=5, what="the request")
    with pytest.raises(JobStoppedError) as caught:
        session.check()
    assert caught.value.stop is stop


def test_the_stronger_of_two_requests_holds(session: Session) -> None:
    for stop in (Stop.HAND_BACK, Stop.PAUSE, Stop.HAND_BACK):
        session.ask(stop)
    assert session.stop is Stop.PAUSE
    session.ask(Stop.CANCEL)
    session.ask(Stop.PAUSE)
    assert session.stop is Stop.CANCEL


def test_a_step_worth_a_checkpoint_may_finish_when_paused_but_not_when_cancelled(
    session: Session,
) -> None:
    session.ask(Stop.PAUSE)
    session.check_patiently()
    with pytest.raises(JobStoppedError):
        toys.wait_for(session.check_patiently, timeout_s=5)
    session.ask(Stop.CANCEL)
    with pytest.raises(JobStoppedError):
        session.check_patiently()


def test_a_claim_taken_over_stops_the_job_and_refuses_its_writes(
    store: Store, session: Session
) -> None:
    store.jobs.finish(session.job.id, session.token, JobState.QUEUED)
    assert store.jobs.claim("other", lease_s=30, job_id=session.job.id)
    toys.wait_for(lambda: session.stop is Stop.LOST, timeout_s=5, what="the loss")
    with pytest.raises(StaleTokenError):
        store.jobs.save_checkpoint(session.job.id, session.token, store.files.put(b"x"), 1)


def test_a_device_held_exclusively_is_waited_for_and_given_back(
    store: Store, session: Session
) -> None:
    assert store.devices.acquire(CPU.id, "another", "exclusive", lease_s=0.3)
    with session.device(CPU, "exclusive"):
        deadline = time.monotonic() + 1.5 * FAST.lease_s
        while time.monotonic() < deadline:
            assert not store.devices.acquire(CPU.id, "third", "shared", lease_s=1)
            time.sleep(0.05)
    assert store.devices.acquire(CPU.id, "third", "shared", lease_s=1)


def test_a_device_lease_that_was_lost_hands_the_job_back(store: Store, session: Session) -> None:
    with session.device(CPU, "shared"):
        store.devices.release(CPU.place, session.holder)  # as if it had expired meanwhile
        assert store.devices.acquire(CPU.place, "another", "exclusive", lease_s=30)
        toys.wait_for(lambda: session.stop, timeout_s=5, what="the notice")
        assert session.stop is Stop.HAND_BACK


def test_a_job_run_for_another_is_handed_back_when_that_is_stopped(
    store: Store, session: Session
) -> None:
    job = store.jobs.submit(JobKind.MEASURE, {})
    claimed = store.jobs.claim("w", lease_s=FAST.lease_s, job_id=job.id)
    assert claimed is not None
    with Session(store, claimed, holder="w/2", timing=FAST, outer=session) as inner:
        inner.check()
        store.jobs.request(session.job.id, JobRequest.CANCEL)
        toys.wait_for(lambda: inner.stop, timeout_s=5, what="the request")
        assert session.stop is Stop.CANCEL
        with pytest.raises(JobStoppedError) as caught:
            inner.check()
    assert caught.value.stop is Stop.HAND_BACK


def test_a_database_that_is_away_is_waited_for_but_not_for_ever(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def log(*_: object, **__: object) -> None:
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise NotReadyError("the database does not answer")

    monkeypatch.setattr(session._raw.jobs, "log", log)
    session.log("hello")
    assert len(calls) == 4

    def never(*_: object, **__: object) -> None:
        calls.append(time.monotonic())
        raise NotReadyError("the database does not answer")

    monkeypatch.setattr(session._raw.jobs, "log", never)
    started = time.monotonic()
    with pytest.raises(NotReadyError):
        session.log("hello")
    assert time.monotonic() - started > FAST.lease_s


def test_waiting_for_a_device_ends_when_the_job_is_stopped(store: Store, session: Session) -> None:
    assert store.devices.acquire(CPU.id, "another", "exclusive", lease_s=60)
    session.ask(Stop.CANCEL)
    with pytest.raises(JobStoppedError), session.device(CPU, "shared"):
        pytest.fail("the device was never free")


def test_the_claim_of_an_evaluation_outlives_its_lease_while_it_is_held(
    store: Store, session: Session
) -> None:
    found = store.evaluations.claim("key", job=session.job.id, lease_s=0.4)
    assert isinstance(found, Claimed)
    with session.claim("key", found.token):
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            assert not isinstance(store.evaluations.claim("key", job="another", lease_s=1), Claimed)
            time.sleep(0.05)


def test_a_worker_that_lost_its_job_unnoticed_does_not_take_an_evaluation_back(
    store: Store, claimed: Job
) -> None:
    # Never entered, the session has no heartbeat that could notice.
    session = Session(store, claimed, holder="w/1", timing=FAST)
    cache = Cache(SimpleNamespace(session=session, store=store, help=lambda: None))  # type: ignore[arg-type]
    made = Evaluation(metrics={"accuracy": 0.5}, cost_s=1.0, repeats=1, job=claimed.id)
    taken: list[object] = []

    def compute() -> Evaluation:
        store.jobs.finish(claimed.id, claimed.token, JobState.QUEUED)
        again = store.jobs.claim("other", lease_s=30, job_id=claimed.id)
        assert again is not None
        key = cache.key({"k": 1})
        taken.append(store.evaluations.claim(key, job=again.id, token=again.token, lease_s=30))
        return made

    with pytest.raises(StaleTokenError, match=claimed.id):
        cache.once({"k": 1}, {}, None, compute)
    (held,) = taken
    assert isinstance(held, Claimed)
    store.evaluations.finish(held.key, held.token, made, info={})


def test_the_reaper_requeues_what_a_dead_worker_left_and_tells_the_queue(
    store: Store,
) -> None:
    job = store.jobs.submit(JobKind.PREVIEW, {})
    assert store.jobs.claim("dead", lease_s=0.05, job_id=job.id)
    queue = Queue()
    reaper = Reaper(store, queue, FAST, lambda: None)
    toys.wait_for(lambda: reaper.reap(), timeout_s=5, what="the end of the lease")
    assert store.jobs.job(job.id).state is JobState.QUEUED
    assert queue.sent == [job.id]


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_takes_no_job_from_a_worker_that_lives(
    tmp_path: Path, jump_s: float
) -> None:
    moment, elapsed = datetime(2026, 1, 1, tzinfo=UTC), 0.0
    store = open_store(f"sqlite:///{tmp_path}/zoo.db", now=lambda: moment)
    lives, dies = (store.jobs.submit(JobKind.PREVIEW, {}) for _ in range(2))
    timing = Timing(lease_s=30.0, heartbeat_s=2.0)
    reaper = Reaper(store, None, timing, lambda: None, clock=lambda: elapsed, today=lambda: moment)
    tokens = {}
    for job in (lives, dies):
        claimed = store.jobs.claim("w", lease_s=30.0, job_id=job.id)
        assert claimed is not None
        tokens[job.id] = claimed.token
    reaped: list[tuple[float, str]] = []
    for second in range(60):
        elapsed += 1
        moment += timedelta(seconds=jump_s if second == 5 else 1)
        if second % 2:
            reaped += [(elapsed, job.id) for job in reaper.reap()]
        else:  # so that the reaper is the first to see the clock after its jump
            store.jobs.heartbeat(lives.id, tokens[lives.id], lease_s=30.0)
            if second < 4:
                store.jobs.heartbeat(dies.id, tokens[dies.id], lease_s=30.0)
    store.close()
    ((when, job_id),) = reaped
    assert job_id == dies.id
    assert when <= 4 + timing.lease_s + 2


def test_a_refill_names_every_job_that_waits_and_no_other(store: Store) -> None:
    waiting = [store.jobs.submit(JobKind.PREVIEW, {}) for _ in range(3)]
    assert store.jobs.claim("w", lease_s=30, job_id=waiting[0].id)
    queue = Queue()
    Reaper(store, queue, FAST, lambda: None).refill()
    assert sorted(queue.sent) == sorted(job.id for job in waiting[1:])


def test_a_chore_that_fails_is_tried_again(store: Store) -> None:
    times = []

    def announce() -> None:
        times.append(time.monotonic())
        raise OSError("the database is away")

    reaper = Reaper(store, None, Timing(announce_s=0.05, reap_s=60, refill_s=60), announce)
    reaper.start()
    toys.wait_for(lambda: len(times) > 2, timeout_s=5, what="three attempts")
    reaper.stop()
