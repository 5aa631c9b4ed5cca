"""What every ``JobStore`` promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from zoo.canonical import content_id
from zoo.canonical import digest as digest_of
from zoo.errors import (
    ConflictError,
    IllegalTransitionError,
    InvalidInputError,
    NotFoundError,
    StaleTokenError,
)
from zoo.jobs import MAX_ATTEMPTS, Arm, Candidate, CandidateState, JobKind, JobRequest, JobState
from zoo.store.protocols import JobQuery

SPEC = {"question": 42, "nested": {"list": [1, 2.5, None, "ü"]}}


def submit(jobs: Any, **options: Any) -> Any:
    return jobs.submit(JobKind.SEARCH, SPEC, **options)


def candidate(job: str, number: int = 0, **changes: Any) -> Candidate:
    architecture = {"space": {"name": "s", "params": {}}, "choices": [number]}
    values: dict[str, Any] = {
        "job": job,
        "number": number,
        "architecture": architecture,
        "architecture_id": content_id(architecture),
    }
    return Candidate(**(values | changes))


class TestSubmission:
    implementations = ("sqlite", "postgres")  # a server refuses a request that no worker can read

    def test_a_submitted_job_waits_and_can_be_read(self, make_store: Any, clock: Any) -> None:
        jobs = make_store(now=clock).jobs
        job = submit(jobs, owner="ann", name="first", device="cpu")
        assert job.state is JobState.QUEUED
        assert (job.owner, job.name, job.device, job.spec) == ("ann", "first", "cpu", SPEC)
        assert job.created_at == clock.moment
        assert jobs.job(job.id) == job

    def test_an_unknown_job_is_not_found(self, make_store: Any) -> None:
        jobs = make_store().jobs
        for act in (jobs.job, jobs.resume, jobs.events, jobs.candidates, jobs.checkpoints):
            with pytest.raises(NotFoundError, match="job_x"):
                act("job_x")
        with pytest.raises(NotFoundError):
            jobs.claim("w", lease_s=1, job_id="job_x")
        with pytest.raises(NotFoundError):
            jobs.log("job_x", "hello")

    def test_an_idempotency_key_returns_the_first_job_again(self, make_store: Any) -> None:
        jobs = make_store().jobs
        first = submit(jobs, owner="ann", idempotency_key="k")
        assert submit(jobs, owner="ann", idempotency_key="k").id == first.id
        assert submit(jobs, owner="bob", idempotency_key="k").id != first.id
        assert submit(jobs, owner="ann").id != first.id

    def test_an_idempotency_key_is_for_one_request(self, make_store: Any) -> None:
        jobs = make_store().jobs
        submit(jobs, idempotency_key="k")
        with pytest.raises(ConflictError, match="'k'"):
            jobs.submit(JobKind.SEARCH, {"question": 43}, idempotency_key="k")
        with pytest.raises(ConflictError):
            jobs.submit(JobKind.PREVIEW, SPEC, idempotency_key="k")

    def test_one_key_submitted_from_many_threads_makes_one_job(self, make_store: Any) -> None:
        jobs = make_store().jobs
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(lambda _: submit(jobs, idempotency_key="k").id, range(32)))
        assert len(set(made)) == 1
        assert len(jobs.jobs().items) == 1

    def test_a_request_that_is_not_json_is_refused(self, make_store: Any) -> None:
        with pytest.raises(InvalidInputError, match="nan"):
            make_store().jobs.submit(JobKind.SEARCH, {"x": float("nan")})

    def test_pages_are_newest_first_and_stable_under_inserts(
        self, make_store: Any, clock: Any
    ) -> None:
        jobs = make_store(now=clock).jobs
        made = []
        for number in range(7):
            made.append(submit(jobs).id)
            clock.advance(number % 2)  # some share a moment
        page = jobs.jobs(limit=3)
        seen = [job.id for job in page.items]
        while page.next:
            clock.advance(1)
            submit(jobs)
            page = jobs.jobs(limit=3, cursor=page.next)
            seen += [job.id for job in page.items]
        assert sorted(seen) == sorted(made)
        assert seen[-2:] == sorted(made[:2], reverse=True) or seen[-1] == made[0]

    def test_filters_hold_together(self, make_store: Any) -> None:
        jobs = make_store().jobs
        wanted = submit(jobs, owner="ann")
        submit(jobs, owner="bob")
        jobs.submit(JobKind.PREVIEW, SPEC, owner="ann")
        query = JobQuery(kind=JobKind.SEARCH, state=JobState.QUEUED, owner="ann")
        assert [job.id for job in jobs.jobs(query).items] == [wanted.id]

    def test_jobs_are_found_by_the_device_they_ask_for(self, make_store: Any) -> None:
        jobs = make_store().jobs
        by_device = {name: submit(jobs, device=name).id for name in ("cpu", "0123", "tpu", None)}
        assert [job.id for job in jobs.jobs(JobQuery(device="cpu")).items] == [by_device["cpu"]]
        found = jobs.jobs(JobQuery(device=("cpu", "0123"))).items
        assert {job.id for job in found} == {by_device["cpu"], by_device["0123"]}

    @pytest.mark.parametrize("cursor", ["", "garbage", "W10", "ü", "eyJhIjoxfQ"])
    def test_a_foreign_cursor_is_refused(self, make_store: Any, cursor: str) -> None:
        with pytest.raises(InvalidInputError, match="cursor"):
            make_store().jobs.jobs(cursor=cursor)

    @pytest.mark.parametrize("limit", [0, -1, 10**9])
    def test_a_limit_out_of_range_is_refused(self, make_store: Any, limit: int) -> None:
        with pytest.raises(InvalidInputError, match=str(limit)):
            make_store().jobs.jobs(limit=limit)


class TestClaims:
    implementations = ("sqlite", "postgres")

    def test_the_oldest_job_is_claimed_first(self, make_store: Any, clock: Any) -> None:
        jobs = make_store(now=clock).jobs
        made = []
        for _ in range(3):
            made.append(submit(jobs).id)
            clock.advance(1)
        assert [jobs.claim("w", lease_s=9).id for _ in range(3)] == made
        assert jobs.claim("w", lease_s=9) is None

    def test_a_claim_says_who_and_until_when(self, make_store: Any, clock: Any) -> None:
        jobs = make_store(now=clock).jobs
        submit(jobs)
        job = jobs.claim("worker-1", lease_s=9)
        assert (job.state, job.worker, job.attempt, job.token) == ("running", "worker-1", 1, 1)
        assert (job.lease_expires_at - clock.moment).total_seconds() == 9
        assert job.started_at == clock.moment
        assert jobs.job(job.id) == job

    def test_one_message_delivered_100_times_has_one_winner(self, make_store: Any) -> None:
        jobs = make_store().jobs
        job = submit(jobs)
        with ThreadPoolExecutor(20) as pool:
            claims = list(
                pool.map(lambda n: jobs.claim(f"w{n}", lease_s=60, job_id=job.id), range(100))
            )
        winners = [claim for claim in claims if claim is not None]
        assert len(winners) == 1
        assert jobs.job(job.id) == winners[0]

    def test_racing_workers_claim_every_job_once(self, make_store: Any) -> None:
        jobs = make_store().jobs
        made = {submit(jobs).id for _ in range(24)}

        def drain(worker: int) -> list[str]:
            claimed = []
            while (job := jobs.claim(f"w{worker}", lease_s=60)) is not None:
                claimed.append(job.id)
            return claimed

        with ThreadPoolExecutor(8) as pool:
            claimed = [job_id for found in pool.map(drain, range(8)) for job_id in found]
        # A skipped lock may hide a job from a worker that then stops, never double it.
        assert len(claimed) == len(set(claimed))
        assert set(claimed) == made

    def test_a_job_for_a_device_waits_for_its_owner(self, make_store: Any) -> None:
        jobs = make_store().jobs
        job = submit(jobs, device="cuda:0")
        assert jobs.claim("w", lease_s=9) is None
        assert jobs.claim("w", lease_s=9, devices=["cpu"], job_id=job.id) is None
        assert jobs.claim("w", lease_s=9, devices=["cpu", "cuda:0"]).id == job.id

    def test_a_heartbeat_extends_the_lease_and_shows_progress(
        self, make_store: Any, clock: Any
    ) -> None:
        jobs = make_store(now=clock).jobs
        submit(jobs)
        job = jobs.claim("w", lease_s=10)
        clock.advance(9)
        assert jobs.heartbeat(job.id, job.token, lease_s=10, progress={"step": 3}) is None
        clock.advance(9)
        assert jobs.reap() == []
        assert jobs.job(job.id).progress == {"step": 3}
        jobs.heartbeat(job.id, job.token, lease_s=10)
        assert jobs.job(job.id).progress == {"step": 3}

    def test_a_silent_worker_loses_its_job_to_the_next(self, make_store: Any, clock: Any) -> None:
        jobs = make_store(now=clock).jobs
        submit(jobs)
        jobs.claim("old", lease_s=10)
        clock.advance(11)
        (requeued,) = jobs.reap()
        assert (requeued.state, requeued.attempt) == ("queued", 1)
        assert "old" in requeued.reason
        new = jobs.claim("new", lease_s=10)
        assert (new.attempt, new.token) == (2, 2)
        assert jobs.reap() == []

    def test_a_stale_token_is_refused_after_a_takeover(self, make_store: Any, clock: Any) -> None:
        store = make_store(now=clock)
        jobs = store.jobs
        submit(jobs)
        old = jobs.claim("old", lease_s=10)
        digest = store.files.put(b"checkpoint")
        clock.advance(11)
        jobs.reap()

        def late_acts() -> list[Any]:
            return [
                lambda: jobs.heartbeat(old.id, old.token, lease_s=10),
                lambda: jobs.finish(old.id, old.token, JobState.SUCCEEDED, result={}),
                lambda: jobs.save_checkpoint(old.id, old.token, digest, 1),
                lambda: jobs.put_candidate(candidate(old.id), old.token),
            ]

        for act in late_acts():  # while it waits in the queue
            with pytest.raises(StaleTokenError):
                act()
        new = jobs.claim("new", lease_s=10)
        for act in late_acts():  # and once somebody else has it
            with pytest.raises(StaleTokenError):
                act()
        assert jobs.candidates(old.id) == ()
        assert jobs.finish(new.id, new.token, JobState.SUCCEEDED, result={"x": 1}).result == {
            "x": 1
        }
        with pytest.raises(StaleTokenError):
            jobs.finish(new.id, new.token, JobState.FAILED)

    def test_a_job_that_keeps_killing_workers_is_quarantined(
        self, make_store: Any, clock: Any
    ) -> None:
        jobs = make_store(now=clock).jobs
        job = submit(jobs)
        for _ in range(MAX_ATTEMPTS):
            assert jobs.claim("w", lease_s=1) is not None
            clock.advance(2)
            jobs.reap()
        last = jobs.job(job.id)
        assert last.state is JobState.FAILED
        assert "quarantined" in last.reason
        assert last.finished_at == clock.moment
        assert jobs.claim("w", lease_s=1) is None

    def test_handing_back_is_no_failed_attempt(self, make_store: Any) -> None:
        jobs = make_store().jobs
        job = submit(jobs)
        for turn in range(MAX_ATTEMPTS + 2):
            claimed = jobs.claim("w", lease_s=60)
            assert (claimed.attempt, claimed.token) == (1, turn + 1)
            handed = jobs.finish(job.id, claimed.token, JobState.QUEUED, reason="shutdown")
            assert handed.worker is None


class TestRequests:
    implementations = ("sqlite", "postgres")

    def test_a_waiting_job_is_cancelled_or_paused_at_once(self, make_store: Any) -> None:
        jobs = make_store().jobs
        first, second = submit(jobs), submit(jobs)
        assert jobs.request(first.id, JobRequest.CANCEL).state is JobState.CANCELLED
        assert jobs.request(second.id, JobRequest.PAUSE).state is JobState.PAUSED
        assert jobs.claim("w", lease_s=9) is None
        assert jobs.resume(second.id).state is JobState.QUEUED
        assert jobs.claim("w", lease_s=9).id == second.id

    def test_a_running_job_hears_of_it_with_its_next_heartbeat(self, make_store: Any) -> None:
        jobs = make_store().jobs
        submit(jobs)
        job = jobs.claim("w", lease_s=60)
        assert jobs.request(job.id, JobRequest.PAUSE).state is JobState.RUNNING
        assert jobs.heartbeat(job.id, job.token, lease_s=60) is JobRequest.PAUSE
        jobs.request(job.id, JobRequest.CANCEL)
        jobs.request(job.id, JobRequest.PAUSE)  # too late: cancelling is for good
        assert jobs.heartbeat(job.id, job.token, lease_s=60) is JobRequest.CANCEL
        done = jobs.finish(job.id, job.token, JobState.CANCELLED)
        assert done.request is None

    @pytest.mark.parametrize(
        ("request_", "state"),
        [(JobRequest.CANCEL, JobState.CANCELLED), (JobRequest.PAUSE, JobState.PAUSED)],
    )
    def test_the_reaper_obeys_for_a_dead_worker(
        self, make_store: Any, clock: Any, request_: JobRequest, state: JobState
    ) -> None:
        jobs = make_store(now=clock).jobs
        submit(jobs)
        job = jobs.claim("w", lease_s=1)
        jobs.request(job.id, request_)
        clock.advance(2)
        assert [reaped.state for reaped in jobs.reap()] == [state]

    def test_what_the_state_does_not_allow_is_refused(self, make_store: Any) -> None:
        jobs = make_store().jobs
        job = submit(jobs)
        with pytest.raises(IllegalTransitionError, match="queued"):
            jobs.resume(job.id)
        jobs.request(job.id, JobRequest.PAUSE)
        with pytest.raises(IllegalTransitionError, match="paused"):
            jobs.request(job.id, JobRequest.PAUSE)
        jobs.request(job.id, JobRequest.CANCEL)
        for request in JobRequest:
            with pytest.raises(IllegalTransitionError, match="final"):
                jobs.request(job.id, request)
        with pytest.raises(IllegalTransitionError):
            jobs.resume(job.id)


class TestRecords:
    implementations = ("sqlite", "postgres")

    def test_events_are_numbered_within_their_job(self, make_store: Any, clock: Any) -> None:
        jobs = make_store(now=clock).jobs
        job, other = submit(jobs), submit(jobs)
        jobs.log(job.id, "one")
        jobs.log(other.id, "elsewhere")
        jobs.log(job.id, "two", level="warning", data={"loss": 0.5})
        first, second = jobs.events(job.id)
        assert (first.number, first.level, first.message, first.data) == (1, "info", "one", {})
        assert (second.number, second.level, second.data) == (2, "warning", {"loss": 0.5})
        assert second.at == clock.moment
        assert jobs.events(job.id, after=1) == (second,)
        assert jobs.events(job.id, limit=1) == (first,)

    def test_events_from_many_threads_are_all_kept(self, make_store: Any) -> None:
        jobs = make_store().jobs
        job = submit(jobs)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: jobs.log(job.id, str(n)), range(40)))
        events = jobs.events(job.id)
        assert [event.number for event in events] == list(range(1, 41))
        assert {event.message for event in events} == {str(n) for n in range(40)}

    def test_the_newest_checkpoint_and_the_one_before_are_kept(self, make_store: Any) -> None:
        store = make_store()
        submit(store.jobs)
        job = store.jobs.claim("w", lease_s=60)
        digests = [store.files.put(b"state %d" % step) for step in range(4)]
        for step, digest in enumerate(digests):
            store.jobs.save_checkpoint(job.id, job.token, digest, step)
        assert store.jobs.checkpoints(job.id) == ((3, digests[3]), (2, digests[2]))

    def test_a_resume_from_an_older_checkpoint_makes_newer_ones(self, make_store: Any) -> None:
        """After a torn file at step 9 the search goes on from 5: then 6 is the newest."""
        store = make_store()
        submit(store.jobs)
        job = store.jobs.claim("w", lease_s=60)
        for step in (5, 9, 6):
            digest = store.files.put(b"state %d" % step)
            store.jobs.save_checkpoint(job.id, job.token, digest, step)
        assert [step for step, _ in store.jobs.checkpoints(job.id)] == [6, 9]

    def test_the_file_of_a_dropped_checkpoint_goes_unless_another_needs_it(
        self, make_store: Any
    ) -> None:
        store = make_store()
        jobs = []
        for number in range(2):
            submit(store.jobs)
            jobs.append(store.jobs.claim(f"w{number}", lease_s=60))
        shared = store.files.put(b"both began alike")
        for job in jobs:
            store.jobs.save_checkpoint(job.id, job.token, shared, 0)
        digests = [store.files.put(b"state %d" % step) for step in range(4)]
        for step, digest in enumerate(digests):
            store.jobs.save_checkpoint(jobs[0].id, jobs[0].token, digest, step)
        assert set(store.files.digests()) == {shared, *digests[2:]}
        assert [digest for _, digest in store.jobs.checkpoints(jobs[1].id)] == [shared]

    def test_a_job_that_advances_between_kills_is_never_quarantined(
        self, make_store: Any, clock: Any
    ) -> None:
        store = make_store(now=clock)
        job = submit(store.jobs)
        for kill in range(3 * MAX_ATTEMPTS):
            claimed = store.jobs.claim("w", lease_s=10)
            assert claimed is not None
            digest = store.files.put(b"state %d" % kill)
            store.jobs.save_checkpoint(job.id, claimed.token, digest, kill + 1)
            clock.advance(11)
            store.jobs.reap()
        for _ in range(MAX_ATTEMPTS - 1):  # and one that stands still is
            claimed = store.jobs.claim("w", lease_s=10)
            store.jobs.save_checkpoint(job.id, claimed.token, digest, kill + 1)
            clock.advance(11)
            store.jobs.reap()
        assert store.jobs.job(job.id).state is JobState.FAILED

    def test_a_checkpoint_without_its_file_is_refused(self, make_store: Any) -> None:
        store = make_store()
        submit(store.jobs)
        job = store.jobs.claim("w", lease_s=60)
        with pytest.raises(NotFoundError):
            store.jobs.save_checkpoint(job.id, job.token, digest_of(b"?"), 1)
        assert store.jobs.checkpoints(job.id) == ()

    def test_a_candidate_is_replaced_under_its_number(self, make_store: Any) -> None:
        jobs = make_store().jobs
        submit(jobs)
        job = jobs.claim("w", lease_s=60)
        jobs.put_candidate(candidate(job.id, 1), job.token)
        jobs.put_candidate(candidate(job.id, 0), job.token)
        jobs.put_candidate(candidate(job.id, 0, arm=Arm.BASELINE), job.token)
        done = candidate(
            job.id,
            0,
            state=CandidateState.EVALUATED,
            signature="s",
            metrics={"accuracy": 0.75, "flops": 10**12},
            feasible=False,
            reason="too slow",
            attempt=2,
            reused_from="job_other",
            saved_s=1.5,
            cost_s=0.25,
            chain="c",
        )
        jobs.put_candidate(done, job.token)
        assert jobs.candidates(job.id, arm=Arm.SEARCH) == (done, candidate(job.id, 1))
        assert len(jobs.candidates(job.id)) == 3

    def test_an_architecture_that_a_job_met_is_found_by_its_whole_id(self, make_store: Any) -> None:
        jobs = make_store().jobs
        submit(jobs)
        job = jobs.claim("w", lease_s=60)
        met = candidate(job.id)
        jobs.put_candidate(met, job.token)
        assert jobs.architecture(met.architecture_id, owner="local") == met.architecture
        with pytest.raises(NotFoundError, match="no job of yours has met"):
            jobs.architecture(met.architecture_id[:12], owner="local")

    def test_an_architecture_under_a_wrong_id_is_refused(self, make_store: Any) -> None:
        jobs = make_store().jobs
        submit(jobs)
        job = jobs.claim("w", lease_s=60)
        with pytest.raises(InvalidInputError, match="content id"):
            jobs.put_candidate(candidate(job.id, architecture_id="0" * 64), job.token)

    def test_savings_count_what_reuse_spared(self, make_store: Any) -> None:
        jobs = make_store().jobs
        submit(jobs)
        job = jobs.claim("w", lease_s=60)
        assert jobs.savings(job.id)["candidates"] == 0
        evaluated = {"state": CandidateState.EVALUATED}
        for made in (
            candidate(job.id, 0, cost_s=2.0, **evaluated),
            candidate(job.id, 1, reused_from=job.id, saved_s=2.0, **evaluated),
            candidate(job.id, 2, state=CandidateState.FAILED, cost_s=0.5),
            candidate(job.id, 0, arm=Arm.BASELINE, cost_s=1.0, **evaluated),
            candidate(job.id, 0, arm=Arm.WINNER, cost_s=50.0, **evaluated),
        ):
            jobs.put_candidate(made, job.token)
        expected = {"candidates": 4, "hits": 1, "evaluations": 3, "saved_s": 2.0, "spent_s": 3.5}
        assert jobs.savings(job.id) == expected
        assert jobs.savings() == expected
