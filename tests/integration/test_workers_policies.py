"""How often a search evaluates a function, what it forgets and refuses, and who shares what."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from nas.cost.analytic import cost
from nas.plugins import make_space
from tests import embedded, toys
from zoo.errors import InvalidInputError
from zoo.jobs import Arm, Candidate, Job, JobKind, JobRequest, JobState
from zoo.schemas import parse_request
from zoo.spec import TensorSpec
from zoo.store.protocols import Store

TWO = {"widths": [4, 8], "twins": 8}
"""Two functions under sixteen architectures."""


url, store, worker = embedded.FIXTURES


def submit(store: Store, *, owner: str = "local", **changes: Any) -> Job:
    spec = toys.search(**{"space": TWO, "candidates": 10, "winners": 0} | changes)
    return store.jobs.submit(JobKind.SEARCH, spec, owner=owner)


def searched(store: Store, **changes: Any) -> tuple[Candidate, ...]:
    job = toys.succeeded(store, submit(store, **changes).id)
    return store.jobs.candidates(job.id, arm=Arm.SEARCH)


def by_function(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the candidates of each function, in the order in which they were proposed."""
    groups: dict[str, list[Candidate]] = {}
    for item in candidates:
        groups.setdefault(str(item.signature), []).append(item)
    return list(groups.values())


def trace(candidates: Sequence[Candidate]) -> str:
    """Write a letter each: evaluated, or answered by what is known."""
    return "".join("h" if item.reused else "e" for item in candidates)


def accuracies(store: Store, item: Candidate) -> list[float]:
    """Return what the evaluations of a candidate's function that its job paid for scored."""
    found = [it for _, it in store.evaluations.find(str(item.signature)) if it.job == item.job]
    return [it.metrics["accuracy"] for it in found if "accuracy" in it.metrics]


def outcome(candidates: Sequence[Candidate]) -> list[tuple[Any, ...]]:
    return [
        (it.number, it.architecture_id, it.metrics["accuracy"], dict(it.spread), it.repeats)
        for it in candidates
    ]


@pytest.mark.usefixtures("worker")
def test_by_default_a_function_is_evaluated_once(store: Store) -> None:
    found = searched(store, seed=100)
    for ours in by_function(found):
        assert trace(ours) == ("e" + "h" * 10)[: len(ours)]
    assert all((item.repeats, item.spread) == (1, {}) for item in found)


@pytest.mark.usefixtures("worker")
def test_up_to_three_evaluations_under_seeds_of_their_own_are_averaged(store: Store) -> None:
    found = searched(store, seed=101, max_duplicates=3)
    for ours in by_function(found):
        assert trace(ours) == ("eee" + "h" * 10)[: len(ours)]
        assert [item.repeats for item in ours] == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3][: len(ours)]
        last, values = ours[-1], accuracies(store, ours[-1])
        assert len(values) == len(set(values)) == last.repeats > 1
        assert last.metrics["accuracy"] == pytest.approx(statistics.mean(values))
        assert last.spread["accuracy"] == pytest.approx(statistics.stdev(values))
        assert all(item.cost_s == 0 and item.saved_s > 0 for item in ours[3:])
        assert "latency_ms" not in last.spread  # measured once for all
    job = found[0].job
    saved = store.jobs.savings(job)
    assert saved["evaluations"] == sum(ours[-1].repeats for ours in by_function(found))
    assert [(it.job, it.hits) for it in store.jobs.origins(job)] == [(job, saved["hits"])]


@pytest.mark.usefixtures("worker")
def test_what_is_forgotten_is_evaluated_anew_under_a_new_seed(store: Store) -> None:
    for repeats in (1, 2):
        found = searched(store, seed=111 + repeats, max_duplicates=repeats, forget=1.0)
        assert max(map(len, by_function(found))) > repeats + 1
        for ours in by_function(found):
            assert trace(ours) == (("e" * repeats + "h") * 10)[: len(ours)]
            values = accuracies(store, ours[0])
            assert len(values) == len(set(values)) == trace(ours).count("e")


@pytest.mark.usefixtures("worker")
def test_with_equal_seeds_another_search_finds_the_same_and_pays_nothing(store: Store) -> None:
    policy = {"max_duplicates": 3, "forget": 0.5}
    first = searched(store, seed=103, **policy)
    second = searched(store, seed=103, **policy, owner="bob")
    assert outcome(second) == outcome(first)
    assert all(item.reused_from == first[0].job and item.cost_s == 0 for item in second)
    assert [it.job for it in store.jobs.origins(owner="bob")] == [first[0].job]


@pytest.mark.usefixtures("worker")
def test_searches_of_other_seeds_share_what_one_evaluation_seed_trained(store: Store) -> None:
    first = searched(store, seed=104, evaluation_seed=1000, candidates=8)
    known = {item.signature for item in first}
    second = searched(store, seed=105, evaluation_seed=1000, candidates=8)
    assert all(item.reused_from == first[0].job for item in second if item.signature in known)
    apart = searched(store, seed=105, candidates=8)
    assert all(item.reused_from in (None, apart[0].job) for item in apart)


@pytest.mark.usefixtures("worker")
def test_proposals_are_drawn_again_until_the_function_is_new(store: Store) -> None:
    changes = {
        "method": {"name": "nsga2", "params": {"candidates": 6}},
        "space": {"widths": [3, 4, 5, 6, 7, 8], "twins": 8},
        "seed": 106,
    }
    found = searched(store, **changes, max_proposal_attempts=200)
    assert len({item.signature for item in found}) == len(found) == 6
    assert len({item.signature for item in searched(store, **changes)}) < 6


@pytest.mark.usefixtures("worker")
def test_a_tabu_list_refuses_only_the_latest_functions(store: Store) -> None:
    found = searched(store, seed=107, max_proposal_attempts=200, tabu=1)
    signatures = [item.signature for item in found]
    assert all(a != b for a, b in zip(signatures, signatures[1:], strict=False))
    assert len(set(signatures)) == 2


@pytest.mark.usefixtures("worker")
def test_a_search_with_a_policy_goes_on_bit_for_bit_after_a_pause(store: Store) -> None:
    changes = {
        "method": {"name": "nsga2", "params": {"candidates": 10, "population": 4}},
        "space": {"widths": [4, 8, 16], "twins": 4, "delay_s": 0.1},
        "max_duplicates": 2,
        "forget": 0.5,
        "max_proposal_attempts": 3,
        "tabu": 1,
        "baseline": True,
    }
    expected = toys.succeeded(store, submit(store, seed=108, **changes).id)
    # Private, so that nothing is there when it is evaluated again.
    store.keys.create("k", owner="alice", scopes=["read"], shares=False)
    job = submit(store, seed=108, owner="alice", **changes)
    toys.wait_for(lambda: len(store.jobs.candidates(job.id)) > 8, what="candidates")
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    store.jobs.resume(job.id)
    ended = toys.succeeded(store, job.id)
    assert not ended.shares
    assert outcome(store.jobs.candidates(job.id)) == outcome(store.jobs.candidates(expected.id))
    assert ended.result is not None
    assert expected.result is not None
    assert ended.result["front"] == expected.result["front"]
    ours, theirs = store.jobs.savings(job.id), store.jobs.savings(expected.id)
    assert {k: ours[k] for k in ("hits", "evaluations")} == {
        k: theirs[k] for k in ("hits", "evaluations")
    }


@pytest.mark.usefixtures("worker")
def test_who_does_not_share_takes_and_gives_nothing_but_among_its_own(store: Store) -> None:
    public = searched(store, seed=109, owner="bob")
    key, _ = store.keys.create("k", owner="carol", scopes=["read"], shares=False)
    first = searched(store, seed=109, owner="carol")
    assert {item.reused_from for item in first} <= {None, first[0].job}
    assert store.jobs.savings(first[0].job)["spent_s"] > 0
    second = searched(store, seed=109, owner="carol")
    assert {item.reused_from for item in second} == {first[0].job}
    dave = searched(store, seed=109, owner="dave")
    assert {item.reused_from for item in dave} == {public[0].job}
    assert outcome(first) == outcome(public)  # it costs more and finds the same
    store.keys.update(key.id, shares=True)
    again = searched(store, seed=109, owner="carol")
    assert {item.reused_from for item in again} == {public[0].job}


@pytest.mark.usefixtures("worker")
def test_a_hit_that_is_not_confirmed_is_not_taken(store: Store, url: str) -> None:
    changes = {"seed": 114, "max_duplicates": 2, "space": {"widths": [6], "twins": 2}}
    first = searched(store, **changes)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(
            "UPDATE evaluations SET info = json_remove(json_set(info, '$.architecture', 'x', "
            "'$.proof', null), '$.certificates') WHERE signature = ?",
            (first[0].signature,),
        )
    found = searched(store, **changes)
    for item in found:
        assert item.signature == f"{first[0].signature}-{item.architecture_id}"
    for ours in by_function(found):  # the same scores, each architecture by itself
        assert trace(ours) == ("ee" + "h" * 10)[: len(ours)]
        assert {item.reused_from for item in ours} <= {None, item.job}
    metrics = {item.metrics["accuracy"] for item in (*first, *found)}
    assert len(metrics) == 2


@pytest.mark.usefixtures("worker")
def test_the_front_with_the_cache_is_the_front_without_it(store: Store) -> None:
    changes = {
        "method": {"name": "nsga2", "params": {"candidates": 12, "population": 4}},
        "space": {"widths": [4, 8, 16, 32], "twins": 3},
        "seed": 110,
    }
    cached = searched(store, **changes)
    trained = searched(store, **changes, reuse=False)
    assert outcome(cached) == outcome(trained)
    fronts = []
    for candidates in (cached, trained):
        result = store.jobs.job(candidates[0].job).result
        assert result is not None
        fronts.append({candidates[number].architecture_id for number in result["front"]})  # type: ignore[union-attr,index,call-overload]
    assert fronts[0] == fronts[1]
    assert store.jobs.savings(cached[0].job)["evaluations"] <= 4
    assert store.jobs.savings(trained[0].job)["evaluations"] == 12


CELL = "|skip_connect~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("repeats", [1, 2])
def test_networks_of_one_function_share_a_training_and_have_costs_of_their_own(
    store: Store, repeats: int
) -> None:
    # The first edge of each reaches no output. It runs a convolution, a pool (which counts no
    # multiply-accumulates), or nothing; the last one is the first one again.
    dead = ("nor_conv_3x3", "none", "avg_pool_3x3", "skip_connect", "nor_conv_3x3")
    params = {"channels": 4, "cells": 1}
    space = make_space("nas-bench-201", params)
    cells = [space.parse(f"|{operation}~0|+{CELL}") for operation in dead]  # type: ignore[attr-defined]
    inputs = TensorSpec(shape=(1, 16, 16))
    built = [space.build(cell, inputs=inputs, num_classes=10) for cell in cells]
    costs = [cost(module, inputs).metrics() for module in built]
    assert costs[0]["flops"] > 1.5 * costs[1]["flops"]
    spec = toys.search(
        seed=120 + repeats,
        winners=0,
        limits=[{"metric": "num_params", "max": costs[1]["num_params"]}],
        max_duplicates=repeats,
        method={"name": "toy-listed", "params": {"choices": [cell.choices for cell in cells]}},
    ) | {"space": {"name": "nas-bench-201", "params": params}}
    ended = toys.succeeded(store, store.jobs.submit(JobKind.SEARCH, spec).id)
    found = store.jobs.candidates(ended.id, arm=Arm.SEARCH)
    assert [item.architecture_id for item in found] == [cell.id for cell in cells]
    assert len({item.signature for item in found}) == 1
    assert trace(found) == ("e" * repeats + "h" * 5)[:5]
    for item, counted in zip(found, costs, strict=True):
        assert {name: item.metrics[name] for name in counted} == counted
        assert all(item.spread.get(name, 0.0) == 0 for name in counted)
        assert item.feasible is (counted["num_params"] == costs[1]["num_params"])
    # Only what is the same network has the same latency.
    latency = [item.metrics["latency_ms"] for item in found]
    assert latency[4] == latency[0]
    assert len(set(latency)) == 4
    assert ended.result is not None
    assert set(ended.result["front"]) == {1, 2, 3}  # type: ignore[arg-type]
    # Where all is found, nothing is of another network either.
    again = toys.succeeded(store, store.jobs.submit(JobKind.SEARCH, spec, owner="bob").id)
    theirs = store.jobs.candidates(again.id, arm=Arm.SEARCH)
    assert [item.metrics for item in theirs] == [item.metrics for item in found]
    assert sum(item.cost_s for item in theirs) == 0


@pytest.mark.parametrize(
    "wrong", [{"max_duplicates": 3}, {"forget": 0.1}, {"tabu": 2}, {"max_proposal_attempts": 5}]
)
def test_a_policy_of_reuse_without_reuse_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="reuse=false"):
        parse_request(JobKind.SEARCH, toys.search() | wrong | {"reuse": False})


@pytest.mark.parametrize(
    "wrong", [{"max_duplicates": 0}, {"forget": 1.5}, {"tabu": -1}, {"max_proposal_attempts": 0}]
)
def test_a_policy_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        parse_request(JobKind.SEARCH, toys.search() | wrong)
