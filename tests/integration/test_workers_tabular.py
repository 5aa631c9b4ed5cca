"""Searches over the published tables through the real job loop, trainer process and all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.cost.table import LatencyTable
from nas.plugins import make_space
from nas.tabular import open_table
from tests import tables, toys
from workers.embedded import EmbeddedWorker
from zoo.jobs import Arm, Job, JobKind, JobRequest, JobState
from zoo.schemas import parse_request
from zoo.store import open_store
from zoo.store.protocols import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path_factory.mktemp('zoo')}/zoo.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a table of NAS-Bench-201, and no other."""
    folder = tmp_path_factory.mktemp("data")
    tables.write_nasbench201(folder)
    return folder


@pytest.fixture(scope="module")
def worker(store: Store, root: Path) -> Iterator[EmbeddedWorker]:
    worker = EmbeddedWorker(store, data_root=root, timing=toys.QUICK)
    worker.start()
    yield worker
    worker.stop()


def submit(store: Store, *, method: str = "random", candidates: int = 12, **changes: Any) -> Job:
    request: dict[str, Any] = {
        "method": {"name": method, "params": {"candidates": candidates}},
        "space": {"name": "nas-bench-201"},
        "evaluator": {"name": "tabular", "params": {"device": "pixel3"}},
        "data": "digits",
        "winners": 0,
    }
    spec = parse_request(JobKind.SEARCH, request | changes).model_dump(mode="json")
    return store.jobs.submit(JobKind.SEARCH, spec)


@pytest.mark.parametrize("method", ["evolution", "local-search", "nsga2", "tpe"])
def test_a_replayed_search_scores_every_candidate_as_the_table_does(
    method: str, store: Store, worker: EmbeddedWorker, root: Path
) -> None:
    job = submit(store, method=method, baseline=method == "evolution")
    result = toys.succeeded(store, job.id).result
    assert result is not None
    assert result["winners"] == []
    assert result["front"]
    space = make_space("nas-bench-201")
    table = open_table(space, root, device="pixel3")
    candidates = store.jobs.candidates(job.id, arm=Arm.SEARCH)
    assert len(candidates) == 12
    for item in candidates:
        choices = item.architecture["choices"]
        row = table.rows[tuple(choices)]  # type: ignore[arg-type]
        assert item.metrics == {name: values[row] for name, values in table.metrics.items()}
        assert item.signature == f"architecture-{item.architecture_id}"


def test_scores_that_are_looked_up_are_priced_by_no_latency_table(
    store: Store, worker: EmbeddedWorker
) -> None:
    table = LatencyTable(device={}, runtime="torch", precision="float32", batch=1, entries={})
    failed = toys.finished(
        store, submit(store, latency={"kind": "table", "table": table.to_json()}).id
    )
    assert failed.state is JobState.FAILED
    assert "'tabular' looks latency up" in (failed.reason or "")


def test_a_look_up_is_shared_with_look_ups_of_the_same_table_only(
    store: Store, worker: EmbeddedWorker
) -> None:
    first = submit(store, seed=5)
    toys.succeeded(store, first.id)
    again = submit(store, seed=5)
    toys.succeeded(store, again.id)
    assert {c.reused_from for c in store.jobs.candidates(again.id)} == {first.id}
    final = {"name": "tabular", "params": {"device": "pixel3", "accuracy": "test-200"}}
    other = submit(store, seed=5, evaluator=final)
    toys.succeeded(store, other.id)
    theirs, ours = store.jobs.candidates(first.id), store.jobs.candidates(other.id)
    assert {candidate.reused_from for candidate in ours} <= {None, other.id}
    assert [c.architecture_id for c in theirs] == [c.architecture_id for c in ours]
    assert all(
        a.metrics["accuracy"] != b.metrics["accuracy"]
        for a, b in zip(theirs, ours, strict=True)
        if a.metrics["accuracy"]
    )


def test_a_replay_that_was_paused_goes_on_to_the_same_candidates(
    store: Store, worker: EmbeddedWorker
) -> None:
    def scores(job: Job) -> list[tuple[str, float]]:
        found = store.jobs.candidates(job.id)
        return [(item.architecture_id, item.metrics["accuracy"]) for item in found]

    whole = submit(store, method="local-search", candidates=60, seed=9, reuse=False)
    toys.succeeded(store, whole.id)
    job = submit(store, method="local-search", candidates=60, seed=9, reuse=False)
    toys.wait_for(lambda: len(store.jobs.candidates(job.id)) > 3, what="candidates")
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is not JobState.RUNNING, what="the pause")
    if store.jobs.job(job.id).state is JobState.PAUSED:
        store.jobs.resume(job.id)
    toys.succeeded(store, job.id)
    assert scores(job) == scores(whole)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"space": {"name": "nas-bench-macro"}}, "nasbench_macro_cifar10.parquet"),
        ({"evaluator": {"name": "tabular"}}, "does not report the objective 'latency_ms'"),
        ({"evaluator": {"name": "tabular", "params": {"device": "x"}}}, "pixel3"),
        ({"space": {"name": "darts"}}, "nats-bench-size"),
    ],
)
def test_what_the_tables_do_not_hold_fails_with_the_reason(
    changes: dict[str, Any], why: str, store: Store, worker: EmbeddedWorker
) -> None:
    ended = toys.finished(store, submit(store, **changes).id)
    assert ended.state is JobState.FAILED
    assert why in (ended.reason or "")


@pytest.mark.slow
def test_a_winner_found_in_a_table_can_be_trained_and_stored(
    store: Store, worker: EmbeddedWorker
) -> None:
    job = submit(
        store,
        candidates=3,
        seed=2,
        winners=1,
        final_recipe={"epochs": 1, "batch_size": 256},
    )
    result = toys.succeeded(store, job.id, timeout_s=240).result
    assert result is not None
    (winner,) = result["winners"]  # type: ignore[misc]
    chain = store.blocks.chain(winner["chain"])  # type: ignore[index,call-overload]
    assert [block.spec.op for block in chain.blocks].count("nasbench201.cell") == 15


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Iterator[Store]:
    """A store whose worker has the real tables."""
    opened = open_store(f"sqlite:///{tmp_path_factory.mktemp('published')}/zoo.db")
    worker = EmbeddedWorker(opened, data_root=data_root, timing=toys.QUICK)
    worker.start()
    yield opened
    worker.stop()
    opened.close()


@pytest.mark.parametrize(
    ("space", "second"),
    [
        ("nas-bench-101", "training_energy_kwh"),
        ("nas-bench-201", "num_params"),
        ("nas-bench-macro", "flops"),
        ("nats-bench-size", "flops"),
    ],
)
def test_every_table_is_searched_through_the_job_loop(
    space: str, second: str, published: Store
) -> None:
    job = submit(
        published,
        method="evolution",
        candidates=20,
        space={"name": space},
        evaluator={"name": "tabular"},
        objectives=["accuracy", second],
    )
    result = toys.succeeded(published, job.id).result
    assert result is not None
    candidates = published.jobs.candidates(job.id)
    assert len(candidates) == 20
    assert all(set(item.metrics) >= {"accuracy", second} for item in candidates)
    assert result["front"]
