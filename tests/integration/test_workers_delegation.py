"""What a job has the owner of another device do, when either of them is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests import toys
from workers.context import JobContext
from workers.session import JobStoppedError, Session, Stop
from workers.supervisor import Trainer
from zoo.errors import TrainerError
from zoo.jobs import MAX_ATTEMPTS, Job, JobKind, JobRequest, JobState
from zoo.spec import Device
from zoo.store.protocols import JobQuery, Store

HERE = Device(name="cpu", kind="cpu", info={"model": "here"})
THERE = Device(name="cpu", kind="cpu", info={"model": "there"})


def no_help(*, blocked: bool = False) -> None: ...


@contextmanager
def parent(store: Store) -> Iterator[JobContext]:
    job = store.jobs.claim("w", lease_s=30)
    assert job is not None
    with Session(store, job, holder="w/1", timing=toys.QUICK) as session:
        yield JobContext(
            session=session, trainer=Trainer(), devices=(HERE,), queue=None, help=no_help
        )


def children(store: Store) -> list[Job]:
    """Return the delegated jobs, oldest first."""
    return list(reversed(store.jobs.jobs(JobQuery(kind=JobKind.MEASURE)).items))


def stopped(store: Store, stop: Stop) -> Job:
    """Delegate, stop the parent meanwhile, and return the child."""
    with parent(store) as context:
        context.session.ask(stop)
        with pytest.raises(JobStoppedError):
            context.delegate(JobKind.MEASURE, {"n": 1}, THERE)
        return children(store)[-1]


def end(store: Store, child: Job, state: JobState) -> None:
    claimed = store.jobs.claim("owner", lease_s=30, devices=[THERE.id], job_id=child.id)
    assert claimed is not None
    result = {"median_ms": 1.0} if state is JobState.SUCCEEDED else None
    store.jobs.finish(child.id, claimed.token, state, result=result, reason="so it went")


@pytest.fixture
def job(store: Store) -> Job:
    return store.jobs.submit(JobKind.SEARCH, {})


@pytest.mark.parametrize("stop", [Stop.PAUSE, Stop.HAND_BACK, Stop.LOST])
def test_a_pause_leaves_the_measurement_alone_and_its_result_is_found(
    store: Store, job: Job, stop: Stop
) -> None:
    child = stopped(store, stop)
    assert child.state is JobState.QUEUED
    end(store, child, JobState.SUCCEEDED)
    token = store.jobs.job(job.id).token
    store.jobs.finish(job.id, token, JobState.QUEUED)
    with parent(store) as context:
        assert context.delegate(JobKind.MEASURE, {"n": 1}, THERE) == {"median_ms": 1.0}
    assert len(children(store)) == 1


def test_a_cancelled_job_cancels_what_it_delegated(store: Store, job: Job) -> None:
    assert stopped(store, Stop.CANCEL).state is JobState.CANCELLED


def test_a_measurement_that_was_cancelled_before_is_made_anew(store: Store, job: Job) -> None:
    child = stopped(store, Stop.PAUSE)
    store.jobs.request(child.id, JobRequest.CANCEL)
    store.jobs.finish(job.id, store.jobs.job(job.id).token, JobState.QUEUED)
    again = stopped(store, Stop.PAUSE)
    assert again.id != child.id
    assert again.state is JobState.QUEUED


def test_a_measurement_that_keeps_failing_is_not_made_for_ever(store: Store, job: Job) -> None:
    for _ in range(MAX_ATTEMPTS):
        child = stopped(store, Stop.PAUSE)
        end(store, child, JobState.FAILED)
        store.jobs.finish(job.id, store.jobs.job(job.id).token, JobState.QUEUED)
    with parent(store) as context, pytest.raises(TrainerError, match="so it went"):
        context.delegate(JobKind.MEASURE, {"n": 1}, THERE)
    assert len(children(store)) == MAX_ATTEMPTS
