"""Searches in the in-process worker: recorded, reused, stopped, resumed, and published."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from nas import checkpoint
from tests import embedded, toys
from workers.embedded import EmbeddedWorker
from zoo.errors import CorruptArtifactError, NotFoundError
from zoo.jobs import Arm, Candidate, CandidateState, Job, JobKind, JobRequest, JobState
from zoo.store.protocols import ChainQuery, Store
from zoo.weights import load_chain

url, store, worker = embedded.FIXTURES


def submit(store: Store, **changes: object) -> Job:
    return store.jobs.submit(JobKind.SEARCH, toys.search(**changes))  # type: ignore[arg-type]


def scores(candidates: Sequence[Candidate]) -> list[tuple[object, ...]]:
    """Return what must be the same however often a search was interrupted."""
    names = ("accuracy", "num_params", "flops")
    return [
        (
            item.arm,
            item.number,
            item.architecture_id,
            item.state,
            *(item.metrics.get(name) for name in names),
        )
        for item in candidates
        if item.arm is not Arm.WINNER
    ]


def test_a_search_ends_with_winners_that_load_from_the_zoo(
    store: Store, worker: EmbeddedWorker
) -> None:
    job = submit(store, seed=1, winners=2, baseline=True)
    while not store.jobs.job(job.id).state.final:  # what is listed is measured, at any moment
        for chain in store.blocks.chains(ChainQuery(task="digits", job=job.id)).items:
            assert "latency" in chain.card
            assert store.blocks.profiles(chain.id)
        time.sleep(0.02)
    result = toys.succeeded(store, job.id).result
    assert result is not None
    candidates = store.jobs.candidates(job.id)
    assert {item.attempt for item in candidates} == {1}
    for arm in (Arm.SEARCH, Arm.BASELINE):
        assert [item.number for item in candidates if item.arm is arm] == list(range(6))
    assert set(result["front"]) <= set(range(6))  # type: ignore[arg-type]
    assert result["baseline_front"]
    winners: list[dict[str, object]] = result["winners"]  # type: ignore[assignment]
    assert len(winners) == 2
    for winner in winners:
        chain = store.blocks.chain(str(winner["chain"]))
        card = chain.card
        assert card["task"] == "digits"
        assert card["licence"]
        assert card["latency"]["device"]["name"] == "cpu"  # type: ignore[index,call-overload]
        assert card["metrics"]["accuracy"] > 0.1  # type: ignore[index,call-overload,operator]
        assert len(card["class_names"]) == 10  # type: ignore[arg-type]
        assert load_chain(chain, store.files)
        assert store.blocks.onnx(chain.id)
        for subject in (chain.id, *(block.id for block in chain.blocks)):
            measured = {(p.runtime, p.batch) for p in store.blocks.profiles(subject)}
            assert measured == {(r, b) for r in ("torch", "onnx") for b in (1, 8)}
        edges = store.blocks.lineage(chain.id)
        assert any(edge.parent == job.id and edge.relation == "searched-by" for edge in edges)


def test_no_candidate_is_trained_twice_in_one_search_or_in_two(
    store: Store, worker: EmbeddedWorker
) -> None:
    first = submit(store, seed=2, candidates=10)
    toys.succeeded(store, first.id)
    ours = store.jobs.candidates(first.id, arm=Arm.SEARCH)
    trained = [item for item in ours if item.reused_from is None]
    assert len(trained) == len({item.signature for item in ours}) <= 4
    assert all(item.reused_from == first.id for item in ours if item not in trained)
    second = submit(store, seed=2, candidates=10, objectives=["accuracy", "latency_ms"])
    toys.succeeded(store, second.id)
    theirs = store.jobs.candidates(second.id, arm=Arm.SEARCH)
    assert {item.reused_from for item in theirs} == {first.id}
    assert all(item.saved_s > 0 for item in theirs)
    latency = {item.signature: item.metrics["latency_ms"] for item in ours}
    assert all(item.metrics["latency_ms"] == latency[item.signature] for item in theirs)


def test_the_baseline_s_reuse_is_booked_as_such(store: Store, worker: EmbeddedWorker) -> None:
    space = {"widths": [5, 6], "twins": 4}
    job = submit(store, seed=10, candidates=6, baseline=True, space=space)
    toys.succeeded(store, job.id)
    scored = [item for item in store.jobs.candidates(job.id) if item.arm is not Arm.WINNER]
    distinct = {item.signature for item in scored}
    saved = store.jobs.savings(job.id)
    assert saved["candidates"] == len(scored) == 12
    assert saved["evaluations"] == len(distinct) <= 2
    assert saved["hits"] == 12 - len(distinct)
    found = [store.evaluations.find(str(signature)) for signature in distinct]
    paid = sum(evaluation.cost_s for items in found for _, evaluation in items)
    assert saved["spent_s"] == pytest.approx(paid)


def test_what_a_search_learns_can_be_drawn(store: Store, worker: EmbeddedWorker) -> None:
    recipe = {"epochs": 3, "batch_size": 256}
    job = submit(store, seed=11, candidates=4, recipe=recipe, final_recipe=recipe)
    toys.succeeded(store, job.id)
    data = [event.data for event in store.jobs.events(job.id)]
    drawn = [item for item in data if item.get("kind") == "metrics"]
    assert drawn[-1]["step"] == 4
    assert "hypervolume" in drawn[-1]["metrics"]  # type: ignore[operator]
    curves = {(item["arm"], item["number"]): item for item in data if item.get("kind") == "curve"}
    trained = [item for item in store.jobs.candidates(job.id) if item.reused_from is None]
    assert set(curves) == {(str(item.arm), item.number) for item in trained}
    for curve in curves.values():
        assert curve["epoch"] == [1, 2, 3]
        assert len(curve["loss"]) == 3  # type: ignore[arg-type]


def test_without_reuse_every_candidate_is_trained(store: Store, worker: EmbeddedWorker) -> None:
    job = submit(store, seed=2, candidates=6, reuse=False)
    toys.succeeded(store, job.id)
    ours = store.jobs.candidates(job.id, arm=Arm.SEARCH)
    assert [item.reused_from for item in ours] == [None] * 6
    assert all(item.cost_s > 0 for item in ours)


@pytest.mark.parametrize(
    ("fault", "why", "attempts"),
    [("segfault", "SIGSEGV", "3 attempts"), ("nan", "the loss became nan", "")],
)
def test_a_poison_candidate_is_quarantined_and_the_job_goes_on(
    store: Store, worker: EmbeddedWorker, fault: str, why: str, attempts: str
) -> None:
    space = {"widths": [4, 8], "faults": {"4": fault}}
    # One that fails, itself again, one that computes the same, that again, and a good one.
    proposed = [[0, 0], [0, 0], [0, 1], [0, 1], [1, 0]]
    method = {"name": "toy-listed", "params": {"choices": proposed}}
    job = submit(store, seed=3, method=method, space=space)
    toys.succeeded(store, job.id)
    *failed, good = store.jobs.candidates(job.id, arm=Arm.SEARCH)
    assert good.state is CandidateState.EVALUATED
    assert {item.state for item in failed} == {CandidateState.FAILED}
    # A fault may be one of cost, which others that compute the same need not have.
    tried = [True, False, bool(attempts), False]
    for item, itself in zip(failed, tried, strict=True):
        reason = item.reason or ""
        assert why in reason
        assert attempts in reason
        assert ("computes the same" in reason) is not itself
        assert item.attempt == (3 if attempts and itself else 1)


def test_a_search_without_one_good_candidate_fails_with_the_reason(
    store: Store, worker: EmbeddedWorker
) -> None:
    space = {"widths": [4], "twins": 1, "faults": {"4": "nan"}}
    job = submit(store, seed=4, candidates=2, space=space)
    ended = toys.finished(store, job.id)
    assert ended.state is JobState.FAILED
    assert "no candidate could be evaluated" in (ended.reason or "")
    assert "the loss became nan" in (ended.reason or "")


def test_a_wrong_request_fails_and_names_the_choices(store: Store, worker: EmbeddedWorker) -> None:
    job = submit(store, space={"width": [4]})
    ended = toys.finished(store, job.id)
    assert ended.state is JobState.FAILED
    assert "widths" in (ended.reason or "")


def test_cancelling_stops_a_candidate_that_hangs_within_seconds(
    store: Store, worker: EmbeddedWorker
) -> None:
    job = submit(store, seed=5, space={"widths": [4], "faults": {"4": "hang"}})
    toys.wait_for(lambda: store.jobs.candidates(job.id), timeout_s=60, what="the first candidate")
    store.jobs.request(job.id, JobRequest.CANCEL)
    asked = time.monotonic()
    ended = toys.finished(store, job.id, timeout_s=10)
    assert ended.state is JobState.CANCELLED
    assert time.monotonic() - asked < 10


def test_a_paused_and_resumed_search_gives_the_same_candidates(
    store: Store, worker: EmbeddedWorker
) -> None:
    changes = {
        "seed": 6,
        "method": {"name": "nsga2", "params": {"candidates": 6}},
        "space": {"delay_s": 0.05},
        "reuse": False,
        "baseline": True,
    }
    undisturbed = submit(store, **changes)
    expected = scores(store.jobs.candidates(toys.succeeded(store, undisturbed.id).id))
    job = submit(store, **changes)
    toys.wait_for(lambda: len(store.jobs.candidates(job.id)) > 3, what="candidates")
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    store.jobs.resume(job.id)
    toys.succeeded(store, job.id)
    assert scores(store.jobs.candidates(job.id)) == expected


def test_a_torn_checkpoint_gives_way_to_the_one_before_it(
    store: Store, worker: EmbeddedWorker, tmp_path: Path
) -> None:
    changes = {"seed": 7, "space": {"delay_s": 0.05}, "reuse": False, "candidates": 8}
    expected = submit(store, **changes)
    toys.succeeded(store, expected.id)
    job = submit(store, **changes)
    toys.wait_for(lambda: len(store.jobs.checkpoints(job.id)) == 2, what="two checkpoints")
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    (_, newest), (_, previous) = store.jobs.checkpoints(job.id)
    store.files.delete(newest)
    with pytest.raises((NotFoundError, CorruptArtifactError)):
        store.files.get(newest)
    store.jobs.resume(job.id)
    toys.succeeded(store, job.id)
    assert scores(store.jobs.candidates(job.id)) == scores(store.jobs.candidates(expected.id))
    said = [event.message for event in store.jobs.events(job.id)]
    assert any("is unusable" in line for line in said)
    assert any(line.startswith("resumed from the checkpoint") for line in said)
    assert previous


def test_a_checkpoint_of_other_fields_is_unusable(
    store: Store, worker: EmbeddedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(store, seed=12, space={"delay_s": 0.05}, reuse=False, candidates=8, winners=0)
    toys.wait_for(lambda: store.jobs.checkpoints(job.id), what="a checkpoint")
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    kept = store.jobs.checkpoints(job.id)
    written = {digest for _, digest in kept}  # two may hold the same state
    get = type(store.files).get
    foreign = checkpoint.pack({"phase": "search", "something": 1})
    monkeypatch.setattr(
        type(store.files), "get", lambda it, key: foreign if key in written else get(it, key)
    )
    store.jobs.resume(job.id)
    toys.succeeded(store, job.id)
    said = [event.message for event in store.jobs.events(job.id)]
    assert sum("is unusable" in line and "something" in line for line in said) == len(kept)
    assert len(store.jobs.candidates(job.id, arm=Arm.SEARCH)) == 8


def test_a_gradient_search_goes_on_bit_for_bit_after_a_pause_and_a_dead_trainer(
    store: Store, worker: EmbeddedWorker
) -> None:
    changes = {
        "seed": 9,
        "method": {"name": "pc-darts", "params": {"epochs": 5, "warmup_epochs": 1, "k": 2}},
        "space": {"name": "darts", "params": {"cells": 1, "channels": 4, "nodes": 2}},
        "final_recipe": {"epochs": 1},
    }
    spec = toys.search() | changes
    whole = toys.succeeded(store, store.jobs.submit(JobKind.SEARCH, spec).id)
    job = store.jobs.submit(JobKind.SEARCH, spec)
    toys.wait_for(lambda: store.jobs.checkpoints(job.id), what="a checkpoint")
    pid = worker.trainer_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    toys.wait_for(
        lambda: any("going on from" in event.message for event in store.jobs.events(job.id)),
        what="the recovery",
    )
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    store.jobs.resume(job.id)
    ended = toys.succeeded(store, job.id)
    assert ended.result is not None
    assert whole.result is not None
    assert ended.result["winners"][0]["chain"] == whole.result["winners"][0]["chain"]  # type: ignore[index,call-overload]


def test_publishing_twice_gives_the_same_chain(store: Store, worker: EmbeddedWorker) -> None:
    ids = []
    for _ in range(2):
        job = submit(store, seed=8, candidates=3)
        result = toys.succeeded(store, job.id).result
        assert result is not None
        ids.append([winner["chain"] for winner in result["winners"]])  # type: ignore[union-attr]
    assert ids[0] == ids[1]


def test_assembly_returns_a_chain_within_the_limit_and_names_it(
    store: Store, worker: EmbeddedWorker
) -> None:
    for seed in (21, 22):
        job = submit(store, seed=seed, candidates=4, winners=2, space={"widths": [8, 256]})
        toys.succeeded(store, job.id)
    chains = store.blocks.chains(ChainQuery(task="digits"), limit=500).items
    sizes = sorted(chain.size_bytes for chain in chains)
    answers = []
    for limit in (sizes[0], sizes[-1]):
        spec = {
            "task": "digits",
            "limits": [
                {"metric": "size_bytes", "max": limit},
                {"metric": "latency_ms", "max": 1000.0},
            ],
            "name": f"best-{limit}",
        }
        job = toys.succeeded(store, store.jobs.submit(JobKind.ASSEMBLE, spec).id)
        assert job.result is not None
        chain = store.blocks.chain(f"best-{limit}")
        assert chain.id == job.result["chain"]
        assert chain.size_bytes <= limit
        latency_ms = job.result["metrics"]["latency_ms"]  # type: ignore[call-overload,index]
        stored = {p.median_ms for p in store.blocks.profiles(chain.id) if p.batch == 1}
        assert latency_ms in stored  # what decided is what is on record
        answers.append(chain)
    assert answers[0].id != answers[1].id
    accuracy = [chain.card["metrics"]["val_accuracy"] for chain in answers]  # type: ignore[index,call-overload]
    assert accuracy[0] < accuracy[1]


def test_an_assembly_that_nothing_meets_names_the_nearest(
    store: Store, worker: EmbeddedWorker
) -> None:
    toys.succeeded(store, submit(store, seed=1).id)
    spec = {"task": "digits", "limits": [{"metric": "latency_ms", "max": 1e-6}]}
    ended = toys.finished(store, store.jobs.submit(JobKind.ASSEMBLE, spec).id)
    assert ended.state is JobState.FAILED
    assert "the nearest" in (ended.reason or "")


def test_a_search_that_finds_fewer_winners_than_asked_for_says_so(
    store: Store, worker: EmbeddedWorker
) -> None:
    job = submit(store, candidates=1, winners=2)
    toys.succeeded(store, job.id)
    told = [event.message for event in store.jobs.events(job.id) if event.level == "warning"]
    assert told == ["2 winners were asked for; the 1 best found made 1"]


def test_a_preview_says_size_cost_and_time(store: Store, worker: EmbeddedWorker) -> None:
    spec = {"search": toys.search(limits=[{"metric": "num_params", "max": 1}]), "samples": 8}
    job = toys.succeeded(store, store.jobs.submit(JobKind.PREVIEW, spec).id)
    assert job.result is not None
    assert job.result["size"] == 8
    assert job.result["feasible"] is False
    assert "num_params" in str(job.result["reason"])
    assert set(job.result["cost"]) >= {"flops", "num_params", "latency_ms"}  # type: ignore[arg-type]
    assert job.result["candidate_s"] > 0  # type: ignore[operator]
    misspelt = {"method": {"name": "random", "params": {"candidate": 3}}}
    spec = {"search": spec["search"] | misspelt}  # type: ignore[operator]
    ended = toys.finished(store, store.jobs.submit(JobKind.PREVIEW, spec).id)
    assert ended.reason is not None
    assert "unknown parameter of search method 'random' 'candidate'" in ended.reason


def test_a_profile_job_measures_a_chain_and_its_blocks_anew(
    store: Store, worker: EmbeddedWorker
) -> None:
    toys.succeeded(store, submit(store, seed=1).id)
    chain = store.blocks.chains(limit=1).items[0]
    spec = {"subjects": [chain.id], "runtimes": ["torch"], "batches": [4]}
    job = toys.succeeded(store, store.jobs.submit(JobKind.PROFILE, spec).id)
    assert job.result is not None
    (profile,) = job.result["profiles"]  # type: ignore[misc]
    assert profile["batch"] == 4  # type: ignore[index,call-overload]
    assert any(item.batch == 4 for item in store.blocks.profiles(chain.blocks[0].id))
