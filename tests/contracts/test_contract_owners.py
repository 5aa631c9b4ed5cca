"""What every store promises about whose things are, and about what is over."""

from __future__ import annotations

from typing import Any

import pytest

from zoo.canonical import content_id
from zoo.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError
from zoo.jobs import Candidate, CandidateState, JobKind, JobState
from zoo.store.protocols import UNFINISHED, ChainQuery, Origin

COST_S = 0.5


def evaluated(store: Any, owner: str) -> str:
    """Run a job with one candidate, a line of log and a checkpoint to its end; return its id."""
    job = store.jobs.submit(JobKind.SEARCH, {}, owner=owner)
    claimed = store.jobs.claim("w", lease_s=60, job_id=job.id)
    architecture = {"choices": [1]}
    candidate = Candidate(
        job=job.id,
        number=0,
        architecture=architecture,
        architecture_id=content_id(architecture),
        state=CandidateState.EVALUATED,
        cost_s=COST_S,
    )
    store.jobs.put_candidate(candidate, claimed.token)
    store.jobs.log(job.id, "hello")
    store.jobs.save_checkpoint(job.id, claimed.token, store.files.put(b"state"), 1)
    return str(store.jobs.finish(job.id, claimed.token, JobState.SUCCEEDED).id)


class TestOwners:
    implementations = ("sqlite", "postgres")  # over HTTP the owner is that of the key

    def test_another_owners_chain_is_neither_changed_nor_deleted(
        self, make_store: Any, put_chain: Any
    ) -> None:
        store = make_store()
        chain = put_chain(store, 1, card={"by": "alice"}, owner="alice")
        assert store.blocks.chain_owner(chain.id[:12]) == "alice"
        with pytest.raises(ForbiddenError, match=chain.id):
            put_chain(store, 1, card={"by": "bob"}, owner="bob", guard=True)
        with pytest.raises(ForbiddenError, match=chain.id):
            store.blocks.delete_chain(chain.id, owner="bob", guard=True)
        assert store.blocks.chain(chain.id).card == {"by": "alice"}
        put_chain(store, 1, card={"by": "alice again"}, owner="alice", guard=True)
        put_chain(store, 1, card={"by": "an admin"}, owner="root")
        assert store.blocks.chain(chain.id).card == {"by": "an admin"}
        assert store.blocks.chain_owner(chain.id) == "alice"
        store.blocks.delete_chain(chain.id, owner="alice", guard=True)

    def test_another_owners_alias_stays_where_it_is(self, make_store: Any, put_chain: Any) -> None:
        store = make_store()
        first, second = (put_chain(store, value).id for value in (1, 2))
        assert store.blocks.alias_owner("prod") is None
        store.blocks.set_alias("prod", first, owner="alice", guard=True)
        with pytest.raises(ForbiddenError, match="prod"):
            store.blocks.set_alias("prod", second, owner="bob", guard=True)
        assert store.blocks.aliases() == {"prod": first}
        store.blocks.set_alias("prod", second, owner="root")
        assert store.blocks.aliases() == {"prod": second}
        assert store.blocks.alias_owner("prod") == "alice"

    def test_a_chain_that_a_job_made_is_the_jobs_owners(
        self, make_store: Any, put_chain: Any
    ) -> None:
        store = make_store()
        job = store.jobs.submit(JobKind.SEARCH, {}, owner="alice")
        assert store.blocks.chain_owner(put_chain(store, 1, job=job.id).id) == "alice"
        assert store.blocks.chain_owner(put_chain(store, 2).id) == "local"

    def test_a_finished_chain_is_not_taken_over_by_another_owners_equal_training(
        self, make_store: Any, put_chain: Any, onnx_file: bytes
    ) -> None:
        store = make_store()
        alice, bob = (
            store.jobs.submit(JobKind.TRAIN, {}, owner=owner).id for owner in ("alice", "bob")
        )
        onnx = store.files.put(onnx_file)
        card = {"metrics": {"accuracy": 0.9}, "task": "digits", "job": alice}
        chain = put_chain(store, 1, card=card, job=alice, onnx=onnx)
        other = {"metrics": {"accuracy": 0.1}, "task": "faces", "job": bob}
        assert put_chain(store, 1, card=other, job=bob, onnx=store.files.put(b"x")).id == chain.id
        assert store.blocks.chain(chain.id).card == card
        assert store.blocks.chain_owner(chain.id) == "alice"
        assert store.blocks.onnx(chain.id) == onnx
        by_accuracy = ChainQuery(min_accuracy=0.5)
        assert [found.id for found in store.blocks.chains(by_accuracy).items] == [chain.id]
        again = card | {"metrics": {"accuracy": 0.8}}
        put_chain(store, 1, card=again, job=alice)
        assert store.blocks.chain(chain.id).card == again

    def test_an_unfinished_chain_is_its_who_finishes_it_first(
        self, make_store: Any, put_chain: Any
    ) -> None:
        store = make_store()
        alice, bob = (
            store.jobs.submit(JobKind.TRAIN, {}, owner=owner).id for owner in ("alice", "bob")
        )
        chain = put_chain(store, 1, card=UNFINISHED, job=alice)
        put_chain(store, 1, card=UNFINISHED, job=bob)
        assert store.blocks.chain_owner(chain.id) == "alice"
        put_chain(store, 1, card={"job": bob}, job=bob)
        assert store.blocks.chain_owner(chain.id) == "bob"
        put_chain(store, 1, card={"job": alice}, job=alice)
        assert store.blocks.chain(chain.id).card == {"job": bob}

    def test_an_architecture_is_found_by_those_alone_whose_jobs_met_it(
        self, make_store: Any
    ) -> None:
        jobs = (store := make_store()).jobs
        made = evaluated(store, "alice")
        (met,) = jobs.candidates(made)
        assert jobs.architecture(met.architecture_id, owner="alice") == met.architecture
        refusals = []
        for unknown in (met.architecture_id, "0" * 64):
            with pytest.raises(NotFoundError, match="no job of yours has met") as refused:
                jobs.architecture(unknown, owner="bob")
            refusals.append(str(refused.value).replace(unknown, "ID"))
        assert refusals[0] == refusals[1]
        evaluated(store, "bob")
        assert jobs.architecture(met.architecture_id, owner="bob") == met.architecture
        jobs.delete(made)
        with pytest.raises(NotFoundError, match="no job of yours has met"):
            jobs.architecture(met.architecture_id, owner="alice")

    def test_savings_are_counted_by_owner(self, make_store: Any) -> None:
        store = make_store()
        for owner in ("alice", "alice", "bob"):
            evaluated(store, owner)
        assert store.jobs.savings(owner="alice")["spent_s"] == 2 * COST_S
        assert store.jobs.savings(owner="bob")["candidates"] == 1
        assert store.jobs.savings(owner="carol")["candidates"] == 0
        assert store.jobs.savings()["spent_s"] == 3 * COST_S

    def test_savings_name_the_jobs_that_they_came_from(self, make_store: Any) -> None:
        store = make_store()
        sources = [evaluated(store, owner) for owner in ("alice", "bob")]
        job = store.jobs.submit(JobKind.SEARCH, {}, owner="alice")
        claimed = store.jobs.claim("w", lease_s=60, job_id=job.id)
        for number, (source, saved_s) in enumerate(
            ((sources[0], 1.0), (sources[1], 5.0), (sources[0], 2.0), (None, 0.0))
        ):
            architecture = {"choices": [number]}
            candidate = Candidate(
                job=job.id,
                number=number,
                architecture=architecture,
                architecture_id=content_id(architecture),
                state=CandidateState.EVALUATED,
                metrics={"accuracy": 0.5},
                spread={"accuracy": 0.25},
                repeats=2,
                reused_from=source,
                saved_s=saved_s,
            )
            store.jobs.put_candidate(candidate, claimed.token)
        kept = store.jobs.candidates(job.id)
        assert [item.reused for item in kept] == [True, True, True, False]
        assert {(item.repeats, item.spread["accuracy"]) for item in kept} == {(2, 0.25)}
        assert [type(item).from_json(item.to_json()) for item in kept] == list(kept)
        expected = (
            Origin(job=sources[1], hits=1, saved_s=5.0),
            Origin(job=sources[0], hits=2, saved_s=3.0),
        )
        assert store.jobs.origins(job.id) == store.jobs.origins() == expected
        assert store.jobs.origins(owner="alice") == expected
        assert store.jobs.origins(owner="bob") == store.jobs.origins(sources[0]) == ()
        assert store.jobs.savings(owner="alice")["hits"] == 3
        with pytest.raises(NotFoundError, match="job_x"):
            store.jobs.origins("job_x")


class TestDeletedJobs:
    implementations = ("sqlite", "postgres")  # a server runs no job itself

    def test_a_job_that_is_over_goes_with_all_that_it_recorded(self, make_store: Any) -> None:
        store = make_store()
        job, other = evaluated(store, "alice"), evaluated(store, "bob")
        assert store.jobs.owners([job, other, "job_x"]) == {job: "alice", other: "bob"}
        store.jobs.delete(job)
        for act in (store.jobs.job, store.jobs.events, store.jobs.candidates, store.jobs.delete):
            with pytest.raises(NotFoundError, match=job):
                act(job)
        assert len(store.jobs.candidates(other)) == 1
        assert store.jobs.savings()["candidates"] == 1

    def test_a_job_that_is_not_over_is_not_deleted(self, make_store: Any) -> None:
        jobs = make_store().jobs
        job = jobs.submit(JobKind.SEARCH, {})
        with pytest.raises(ConflictError, match="cancel it first"):
            jobs.delete(job.id)
        assert jobs.job(job.id) == job

    def test_an_idempotency_key_is_for_one_name_and_device(self, make_store: Any) -> None:
        jobs = make_store().jobs
        jobs.submit(JobKind.SEARCH, {}, name="a", device="cpu", idempotency_key="k")
        for options in ({"name": "b", "device": "cpu"}, {"name": "a"}):
            with pytest.raises(ConflictError, match="'k'"):
                jobs.submit(JobKind.SEARCH, {}, idempotency_key="k", **options)


class TestWholeness:
    implementations = ("sqlite", "postgres", "http")

    def test_a_lost_onnx_file_is_found(
        self, make_store: Any, put_chain: Any, onnx_file: bytes
    ) -> None:
        store = make_store()
        digest = store.files.put(onnx_file)
        put_chain(store, 1, onnx=digest)
        assert store.blocks.verify() == []
        store.files.delete(digest)
        assert store.blocks.verify() == [digest]

    def test_an_unknown_order_is_answered_with_every_order(self, make_store: Any) -> None:
        query: Any = ChainQuery(order="beauty")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="latency"):
            make_store().blocks.chains(query)


class TestLostCheckpoints:
    implementations = ("sqlite", "postgres")  # a server writes no checkpoint

    def test_the_lost_checkpoint_of_a_live_job_is_found(self, make_store: Any) -> None:
        store = make_store()
        job = store.jobs.submit(JobKind.SEARCH, {})
        claimed = store.jobs.claim("w", lease_s=60)
        digest = store.files.put(b"state")
        store.jobs.save_checkpoint(job.id, claimed.token, digest, 1)
        store.files.delete(digest)
        assert store.blocks.verify() == [digest]
        store.jobs.finish(job.id, claimed.token, JobState.CANCELLED)
        assert store.blocks.verify() == []
