"""The state machine of jobs, checked against a model on a real store."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zoo.errors import BlockyardError, IllegalTransitionError, StaleTokenError
from zoo.jobs import (
    MAX_ATTEMPTS,
    TRANSITIONS,
    Job,
    JobKind,
    JobRequest,
    JobState,
    check_transition,
)
from zoo.store import open_store


@pytest.mark.parametrize(("present", "wanted"), list(product(JobState, JobState)))
def test_a_job_moves_only_where_the_table_says(present: JobState, wanted: JobState) -> None:
    if wanted in TRANSITIONS[present]:
        check_transition("job_1", present, wanted)
    else:
        with pytest.raises(IllegalTransitionError, match=f"job_1 is {present}.*{wanted}"):
            check_transition("job_1", present, wanted)


def test_a_final_state_is_one_that_cannot_be_left() -> None:
    assert {state for state in JobState if state.final} == {
        state for state in JobState if not TRANSITIONS[state]
    }


class Jobs(RuleBasedStateMachine):
    """One job, its past claims, and random acts of workers, users, the reaper and time."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_store(
            f"sqlite:///{Path(self.folder.name)}/zoo.db", now=lambda: self.moment
        )
        self.jobs: Any = self.store.jobs
        self.id = self.jobs.submit(JobKind.SEARCH, {}).id
        self.last: Job = self.jobs.job(self.id)
        self.tokens: list[int] = []

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.moment += timedelta(seconds=seconds)

    @rule()
    def claim(self) -> None:
        job = self.jobs.claim("w", lease_s=10)
        if self.last.state is JobState.QUEUED and self.last.attempt < MAX_ATTEMPTS:
            assert job is not None
            assert job.token == self.last.token + 1
            assert job.attempt == self.last.attempt + 1
            self.tokens.append(job.token)
        else:
            assert job is None

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.tokens))
        if self.holds(token):
            assert self.jobs.heartbeat(self.id, token, lease_s=10) == self.last.request
        else:
            with pytest.raises(StaleTokenError):
                self.jobs.heartbeat(self.id, token, lease_s=10)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), state=st.sampled_from(JobState))
    def finish(self, data: st.DataObject, state: JobState) -> None:
        token = data.draw(st.sampled_from(self.tokens))
        if not self.holds(token):
            with pytest.raises(StaleTokenError):
                self.jobs.finish(self.id, token, state)
        elif state is JobState.RUNNING:
            with pytest.raises(IllegalTransitionError):
                self.jobs.finish(self.id, token, state)
        else:
            assert self.jobs.finish(self.id, token, state).state is state

    @rule(request=st.sampled_from(JobRequest))
    def ask(self, request: JobRequest) -> None:
        wanted = {JobRequest.CANCEL: JobState.CANCELLED, JobRequest.PAUSE: JobState.PAUSED}[request]
        try:
            job = self.jobs.request(self.id, request)
        except IllegalTransitionError:
            assert wanted not in TRANSITIONS[self.last.state]
        else:
            assert job.state is (
                JobState.RUNNING if self.last.state is JobState.RUNNING else wanted
            )

    @rule()
    def resume(self) -> None:
        try:
            self.jobs.resume(self.id)
        except IllegalTransitionError:
            assert self.last.state is not JobState.PAUSED

    @rule()
    def reap(self) -> None:
        expired = (
            self.last.lease_expires_at is not None and self.last.lease_expires_at < self.moment
        )
        assert bool(self.jobs.reap()) == expired

    def holds(self, token: int) -> bool:
        return self.last.state is JobState.RUNNING and self.last.token == token

    @invariant()
    def the_row_is_sound_and_moved_legally(self) -> None:
        job = self.jobs.job(self.id)
        before, self.last = self.last, job
        assert job.state is before.state or job.state in TRANSITIONS[before.state]
        assert job.token >= before.token
        assert job.attempt <= MAX_ATTEMPTS
        assert (job.lease_expires_at is not None) == (job.state is JobState.RUNNING)
        assert (job.finished_at is not None) == job.state.final
        assert job.request is None or job.state is JobState.RUNNING
        assert Job.from_json(job.to_json()) == job


Jobs.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
TestJobs = Jobs.TestCase


def test_every_job_error_is_one_of_ours() -> None:
    assert issubclass(IllegalTransitionError, BlockyardError)
