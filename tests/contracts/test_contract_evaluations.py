"""What every ``EvaluationStore`` promises: each key is evaluated once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from zoo.errors import NotFoundError, StaleTokenError
from zoo.jobs import JobKind, JobState
from zoo.spec import Evaluation
from zoo.store.protocols import Claimed, InFlight

RESULT = Evaluation(
    metrics={"accuracy": 0.5, "flops": 12}, cost_s=3.0, repeats=2, job="job_a", device="d"
)
INFO = {"signature": "sig", "architecture": "arch", "recipe": {"epochs": 3}}


class TestEvaluations:
    implementations = ("sqlite", "postgres")

    def test_a_finished_evaluation_serves_every_job(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        claim = evaluations.claim("k", job="job_a", lease_s=60)
        assert claim == Claimed(key="k", token=1)
        evaluations.finish("k", claim.token, RESULT, info=INFO)
        assert evaluations.claim("k", job="job_b", lease_s=60) == RESULT
        assert evaluations.claim("k", job="job_a", lease_s=60) == RESULT
        assert evaluations.find("sig") == (("k", RESULT),)
        assert evaluations.find("other") == ()

    def test_what_is_there_is_read_without_a_claim(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        assert evaluations.get("k") is None
        claim = evaluations.claim("k", job="job_a", lease_s=60)
        assert claim == Claimed(key="k", token=1)
        assert evaluations.get("k") is None
        evaluations.finish("k", claim.token, RESULT, info=INFO)
        assert evaluations.get("k") == RESULT

    def test_a_signature_is_found_only_in_its_scope(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        for key, scope in (("k", None), ("a", "owner:ann"), ("b", "owner:bob")):
            claim = evaluations.claim(key, job="job_a", lease_s=60)
            evaluations.finish(key, claim.token, RESULT, info=INFO | {"scope": scope})
        assert [key for key, _ in evaluations.find("sig")] == ["k"]
        assert [key for key, _ in evaluations.find("sig", scope="owner:ann")] == ["a"]
        assert evaluations.find("sig", scope="owner:eve") == ()

    def test_another_job_is_told_who_is_at_it(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        evaluations.claim("k", job="job_a", lease_s=60)
        assert evaluations.claim("k", job="job_b", lease_s=60) == InFlight(key="k", job="job_a")
        assert evaluations.find("sig") == ()

    def test_of_100_concurrent_jobs_one_evaluates(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        with ThreadPoolExecutor(20) as pool:
            answers = list(
                pool.map(lambda n: evaluations.claim("k", job=f"job_{n}", lease_s=60), range(100))
            )
        claims = [answer for answer in answers if isinstance(answer, Claimed)]
        assert claims == [Claimed(key="k", token=1)]
        assert len({answer.job for answer in answers if isinstance(answer, InFlight)}) == 1

    def test_an_expired_claim_is_taken_over_and_its_result_refused(
        self, make_store: Any, clock: Any
    ) -> None:
        evaluations = make_store(now=clock).evaluations
        old = evaluations.claim("k", job="job_a", lease_s=10)
        clock.advance(9)
        evaluations.extend("k", old.token, lease_s=10)
        clock.advance(9)
        assert isinstance(evaluations.claim("k", job="job_b", lease_s=10), InFlight)
        clock.advance(2)
        new = evaluations.claim("k", job="job_b", lease_s=10)
        assert new == Claimed(key="k", token=2)
        for act in (
            lambda: evaluations.finish("k", old.token, RESULT, info=INFO),
            lambda: evaluations.extend("k", old.token, lease_s=10),
            lambda: evaluations.abandon("k", old.token),
        ):
            with pytest.raises(StaleTokenError, match="k"):
                act()
        evaluations.finish("k", new.token, RESULT, info=INFO)
        with pytest.raises(StaleTokenError):
            evaluations.finish("k", new.token, RESULT, info=INFO)

    def test_a_restarted_job_takes_over_its_own_claim(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        old = evaluations.claim("k", job="job_a", lease_s=60)
        new = evaluations.claim("k", job="job_a", lease_s=60)
        assert new.token == old.token + 1
        with pytest.raises(StaleTokenError):
            evaluations.finish("k", old.token, RESULT, info=INFO)

    def test_only_the_present_worker_of_a_job_takes_over_its_claim(self, make_store: Any) -> None:
        store = make_store()
        job = store.jobs.submit(JobKind.SEARCH, {}).id
        claim = partial(store.evaluations.claim, "k", job=job, lease_s=60)
        lost = store.jobs.claim("w", lease_s=60, job_id=job)
        first = claim(token=lost.token)
        store.jobs.finish(job, lost.token, JobState.QUEUED)
        with pytest.raises(StaleTokenError, match=job):
            claim(token=lost.token)  # nobody works at the job
        present = store.jobs.claim("w2", lease_s=60, job_id=job)
        second = claim(token=present.token)
        assert second == Claimed(key="k", token=first.token + 1)
        with pytest.raises(StaleTokenError):
            store.evaluations.finish("k", first.token, RESULT, info=INFO)
        with pytest.raises(StaleTokenError, match=job):
            claim(token=lost.token)
        store.evaluations.finish("k", second.token, RESULT, info=INFO)

    def test_an_abandoned_claim_is_free_under_a_new_token(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        old = evaluations.claim("k", job="job_a", lease_s=60)
        evaluations.abandon("k", old.token)
        with pytest.raises(StaleTokenError):
            evaluations.finish("k", old.token, RESULT, info=INFO)
        assert evaluations.claim("k", job="job_b", lease_s=60) == Claimed(key="k", token=2)

    def test_a_key_that_nobody_claimed_is_not_found(self, make_store: Any) -> None:
        with pytest.raises(NotFoundError):
            make_store().evaluations.finish("k", 1, RESULT, info=INFO)

    def test_certificates_are_kept_with_what_they_are_of(self, make_store: Any) -> None:
        evaluations = make_store().evaluations
        claim = evaluations.claim("k", job="job_a", lease_s=60)
        evaluations.finish("k", claim.token, RESULT, info=INFO)
        assert evaluations.info("k") == INFO
        refused, confirmed = {"confirmed": False, "deviation": 0.5}, {"confirmed": True}
        for architecture, certificate in (("a", refused), ("b", confirmed), ("a", confirmed)):
            evaluations.certify("k", architecture, certificate)
        kept = evaluations.info("k")["certificates"]
        assert kept == {"a": confirmed, "b": confirmed}
        assert evaluations.claim("k", job="job_b", lease_s=60) == RESULT
        with pytest.raises(NotFoundError):
            evaluations.info("other")
        with pytest.raises(NotFoundError):
            evaluations.certify("other", "a", confirmed)
