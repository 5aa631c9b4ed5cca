"""Searches whose candidates are priced from a latency table instead of being measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nas.cost.operations import trace
from nas.cost.proxyless_yaml import from_proxyless_yaml
from nas.cost.table import LatencyTable
from nas.methods.proxyless.costs import latency_tensor, layers, named_lookup
from nas.plugins import space_of
from nas.spaces.mbconv import MBConvSpace
from tests import embedded, toys
from ui.commands.search import request, search_run
from workers.embedded import EmbeddedWorker
from zoo.canonical import content_id
from zoo.jobs import Arm, Candidate, CandidateState, Job, JobKind, JobRequest, JobState
from zoo.schemas import parse_request
from zoo.spec import Architecture, TensorSpec
from zoo.store.protocols import Store

DIGITS = TensorSpec(shape=(1, 16, 16))


url, store, worker = embedded.FIXTURES


@pytest.fixture(scope="module")
def built(store: Store, worker: EmbeddedWorker) -> Job:
    """A finished job that built the table of the toy space."""
    spec = {"space": {"name": "toy"}, "data": "digits", "samples": 4, "networks": 0, "repeats": 5}
    checked = parse_request(JobKind.COST_TABLE, spec).model_dump(mode="json")
    return toys.succeeded(store, store.jobs.submit(JobKind.COST_TABLE, checked).id)


def content(built: Job) -> dict[str, Any]:
    assert built.result is not None
    found: Any = built.result["table"]
    return copy.deepcopy(found)


def submit(store: Store, **changes: Any) -> Job:
    changes = {"objectives": ["accuracy", "latency_ms"], "winners": 0, **changes}
    return store.jobs.submit(JobKind.SEARCH, toys.search(candidates=4, **changes))


def searched(store: Store, job: Job) -> list[Candidate]:
    found = store.jobs.candidates(job.id, arm=Arm.SEARCH)
    assert {item.state for item in found} == {CandidateState.EVALUATED}
    return list(found)


def summed_ms(table: LatencyTable, item: Candidate) -> float:
    architecture = Architecture.from_json(item.architecture)
    net = space_of(architecture).build(architecture, inputs=DIGITS, num_classes=10)
    return table.total_ms(operation.key for operation in trace(net, DIGITS))


def test_candidates_are_priced_by_the_table_and_winners_measured_whole(
    store: Store, worker: EmbeddedWorker, built: Job
) -> None:
    latency = {"kind": "table", "job": built.id}
    job = toys.succeeded(store, submit(store, latency=latency, winners=1, seed=21).id)
    table = LatencyTable.from_json(content(built))
    for item in searched(store, job):
        assert item.metrics["latency_ms"] == pytest.approx(summed_ms(table, item), rel=1e-9)
        assert item.metrics["latency_predicted"] == 1
        assert "latency_p95_ms" not in item.metrics
    (winner,) = store.jobs.candidates(job.id, arm=Arm.WINNER)
    assert winner.metrics["latency_p95_ms"] > 0
    assert "latency_predicted" not in winner.metrics
    assert job.result is not None
    assert job.result["latency"] == {
        "source": "table",
        "table": content_id(content(built)),
        "device": table.device["name"],
        "predicted": True,
    }


def test_a_preview_sums_the_table_too(store: Store, worker: EmbeddedWorker, built: Job) -> None:
    doubled = content(built)
    for entry in doubled["entries"].values():
        entry["median_ms"] = 100.0
    search = toys.search() | {"latency": {"kind": "table", "table": doubled}}
    spec = parse_request(JobKind.PREVIEW, {"search": search, "samples": 8}).model_dump(mode="json")
    job = toys.succeeded(store, store.jobs.submit(JobKind.PREVIEW, spec).id)
    assert job.result is not None
    cost: Any = job.result["cost"]
    assert cost["latency_ms"]["min"] == pytest.approx(300)  # two products and a ReLU
    assert cost["latency_ms"]["max"] == pytest.approx(300)


def test_another_table_gives_other_latencies_and_the_same_training(
    store: Store, worker: EmbeddedWorker, built: Job
) -> None:
    first = toys.succeeded(
        store, submit(store, latency={"kind": "table", "table": content(built)}, seed=22).id
    )
    doubled = content(built)
    for entry in doubled["entries"].values():
        entry["median_ms"] *= 2
    second = toys.succeeded(
        store, submit(store, latency={"kind": "table", "table": doubled}, seed=22).id
    )
    pairs = list(zip(searched(store, first), searched(store, second), strict=True))
    for ours, theirs in pairs:
        assert theirs.metrics["latency_ms"] == pytest.approx(2 * ours.metrics["latency_ms"])
        assert theirs.metrics["accuracy"] == ours.metrics["accuracy"]
        assert theirs.reused_from == first.id


def test_what_a_table_lacks_is_measured_on_its_device_and_kept_for_others(
    store: Store, worker: EmbeddedWorker, built: Job
) -> None:
    short = content(built)
    removed = sorted(short["entries"])[::2]
    for key in removed:
        del short["entries"][key]
    latency = {"kind": "table", "table": short}
    job = toys.succeeded(store, submit(store, latency=latency, seed=23).id)
    # A table that differs in what prices nothing: all candidates are priced anew.
    other = copy.deepcopy(short)
    entry = next(iter(other["entries"].values()))
    entry["count"] += 1
    latency = {"kind": "table", "table": other}
    again = toys.succeeded(store, submit(store, latency=latency, seed=23).id)
    table = LatencyTable.from_json(short)
    for first, second in zip(searched(store, job), searched(store, again), strict=True):
        architecture = Architecture.from_json(first.architecture)
        net = space_of(architecture).build(architecture, inputs=DIGITS, num_classes=10)
        keys = [operation.key for operation in trace(net, DIGITS)]
        known = table.total_ms(key for key in keys if key in table)
        assert first.metrics["latency_ms"] > known
        assert second.metrics["latency_ms"] == first.metrics["latency_ms"]


def test_what_a_table_of_no_device_here_lacks_is_an_error_or_predicted(
    store: Store, worker: EmbeddedWorker, built: Job
) -> None:
    short = content(built)
    short["device"] |= {"id": None}
    lacking = [key for key in short["entries"] if "[32" in key]
    for key in lacking:
        del short["entries"][key]
    space = {"widths": [32]}
    job = submit(store, latency={"kind": "table", "table": short}, space=space, seed=24)
    failed = toys.finished(store, job.id)
    assert failed.state is JobState.FAILED
    assert "is not in this latency table" in (failed.reason or "")
    job = submit(store, latency={"kind": "predictor", "table": short}, space=space, seed=24)
    done = toys.succeeded(store, job.id)
    assert all(item.metrics["latency_ms"] > 0 for item in searched(store, done))
    assert done.result is not None
    assert done.result["latency"]["source"] == "predictor"  # type: ignore[index,call-overload]


def test_a_repeat_of_a_candidate_whose_evaluation_is_gone_is_scored(
    store: Store, worker: EmbeddedWorker, built: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "toy-listed", "params": {"choices": [[0, 0]] * 4}}
    spec = {
        "method": method,
        "latency": {"kind": "table", "job": built.id},
        "space": {"delay_s": 0.1},
        "max_duplicates": 4,
    }
    job = submit(store, seed=25, **spec)

    def scored() -> bool:
        found = store.jobs.candidates(job.id, arm=Arm.SEARCH)
        return any(item.state is CandidateState.EVALUATED for item in found)

    toys.wait_for(scored, what="a candidate")
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    # All is replayed from the record, and what was evaluated is not there to learn from.
    monkeypatch.setattr(type(store.jobs), "checkpoints", lambda *_: ())
    monkeypatch.setattr(type(store.evaluations), "get", lambda *_: None)
    store.jobs.resume(job.id)
    toys.succeeded(store, job.id)
    found = searched(store, job)
    assert [item.repeats for item in found] == [1, 2, 3, 4]
    assert any("is gone" in event.message for event in store.jobs.events(job.id))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": {"id": "0123456789abcdef", "name": "phone"}}, "is of phone"),
        ({"batch": 8}, "batch 8"),
        ({"format": "something"}, "no latency table"),
    ],
)
def test_a_table_made_under_other_conditions_is_refused(
    store: Store, worker: EmbeddedWorker, built: Job, change: dict[str, Any], message: str
) -> None:
    job = submit(store, latency={"kind": "table", "table": content(built) | change})
    failed = toys.finished(store, job.id)
    assert failed.state is JobState.FAILED
    assert message in (failed.reason or "")


def test_a_method_that_wants_layers_is_given_those_of_a_published_table(
    store: Store, worker: EmbeddedWorker, tmp_path: Path
) -> None:
    params: dict[str, Any] = {
        "preset": "cifar", "widths": [4], "depths": [2], "strides": [1], "stem": 4,
        "first": 4, "last": 8, "kernels": [3, 7], "expands": [2],
    }  # fmt: skip
    space = MBConvSpace(**params)
    keys = [str(layer) for layer in layers(space, inputs=DIGITS, num_classes=10)]
    text = "\n".join(
        f"{key}: {{count: 9, mean: {1 + 0.25 * n}, var: 0.01}}" for n, key in enumerate(keys)
    )
    table = from_proxyless_yaml(text, device="pixel1")
    settings = {"warmup_epochs": 0, "epochs": 2, "batch_size": 256, "loss": "add#linear"}
    spec = toys.search() | {
        "method": {"name": "proxyless", "params": settings},
        "space": {"name": "mbconv", "params": params},
        "objectives": ["accuracy", "latency_ms"],
        "winners": 0,
        "latency": {"kind": "table", "table": table.to_json()},
    }
    job = toys.succeeded(store, store.jobs.submit(JobKind.SEARCH, spec).id)
    (found,) = searched(store, job)
    known = {key: entry.median_ms for key, entry in table.entries.items()}
    priced = latency_tensor(space, named_lookup(known), inputs=DIGITS, num_classes=10)
    choices = Architecture.from_json(found.architecture).choices
    assert found.metrics["latency_ms"] == pytest.approx(priced.total(choices), rel=1e-12)
    path = tmp_path / "pixel1.json"
    table.save(path)
    written = request(options_of("--latency-table", str(path), "--predict-latency"))
    assert written["latency"] == {"kind": "predictor", "table": json.loads(path.read_text())}
    named = request(options_of("--latency-table", "job_1"))
    assert named["latency"] == {"kind": "table", "job": "job_1"}


def options_of(*words: str) -> dict[str, Any]:
    basics = ["--method", "random", "--space", "toy", "--data", "digits"]
    return dict(search_run.make_context("run", [*basics, *words]).params)
