"""Latency tables and recomputed fronts, through a worker and a real trainer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from nas.cost.table import LatencyTable
from tests import embedded, toys
from ui.cli import cli
from ui.terminal import Terminal
from workers.context import JobContext
from workers.embedded import EmbeddedWorker
from workers.fronts_job import PRECISION, _tabled
from zoo.jobs import CandidateState, Job, JobKind, JobRequest, JobState
from zoo.schemas import parse_request
from zoo.spec import Device
from zoo.store import open_store
from zoo.store.protocols import Store

url, store, worker = embedded.FIXTURES


def submit(store: Store, **changes: Any) -> Job:
    spec = {
        "space": {"name": "toy", "params": {}},
        "data": "digits",
        "samples": 4,
        "networks": 3,
        "repeats": 5,
    } | changes
    request = parse_request(JobKind.COST_TABLE, spec).model_dump(mode="json")
    return store.jobs.submit(JobKind.COST_TABLE, request)


def test_a_table_says_what_was_measured_how_and_how_far_sums_are_off(
    store: Store, worker: EmbeddedWorker, tmp_path: Path
) -> None:
    job = toys.succeeded(store, submit(store).id)
    assert job.result is not None
    table = LatencyTable.from_json(job.result["table"])  # type: ignore[arg-type]
    # Four widths: a matrix product into each and out of each, and a ReLU of each.
    assert len(table.entries) == 12
    for entry in table.entries.values():
        assert entry.median_ms > 0
        assert entry.count == 5
        assert entry.moved_bytes > 0
    assert (table.runtime, table.precision, table.batch) == ("torch", "float32", 1)
    assert table.device["id"] == job.result["device"]
    assert "torch" in table.device["info"]  # type: ignore[operator]
    assert table.space["data"] == "digits"
    assert table.additivity is not None
    assert len(table.additivity.errors) == 3
    path = tmp_path / "table.json"
    table.save(path)
    shown = CliRunner().invoke(cli, ["cost", "table", "show", str(path)], obj=Terminal())
    assert shown.exit_code == 0, shown.output
    assert "12" in shown.output
    assert "3 networks" in shown.output


def test_a_table_that_was_paused_goes_on_where_it_stopped(
    store: Store, worker: EmbeddedWorker
) -> None:
    job = submit(store, networks=40, repeats=400)

    def measuring() -> bool:
        return store.jobs.job(job.id).progress.get("phase") in ("operations", "networks")

    toys.wait_for(measuring, what="measuring")
    store.jobs.request(job.id, JobRequest.PAUSE)
    toys.wait_for(lambda: store.jobs.job(job.id).state is not JobState.RUNNING, what="the pause")
    if store.jobs.job(job.id).state is JobState.PAUSED:
        saved = store.jobs.checkpoints(job.id)
        store.jobs.resume(job.id)
        worker.send(job.id)
        done = toys.succeeded(store, job.id)
        lines = [event.message for event in store.jobs.events(job.id)]
        assert not saved or any("resumed after" in line for line in lines)
    else:
        done = toys.succeeded(store, job.id)
    assert done.result is not None
    assert done.result["measured"] == 12


def test_fronts_are_recomputed_for_a_device_without_training(
    store: Store, worker: EmbeddedWorker
) -> None:
    toys.succeeded(store, submit(store, networks=0, seed=1).id)
    search = toys.search(candidates=6, objectives=["accuracy", "latency_ms"], seed=3)
    first = toys.succeeded(store, store.jobs.submit(JobKind.SEARCH, search).id)
    spent = store.jobs.savings(first.id)["spent_s"]
    device = worker_device(store)
    request = parse_request(
        JobKind.FRONTS, {"device": device, "jobs": [first.id], "repeats": 5}
    ).model_dump(mode="json")
    done = toys.succeeded(store, store.jobs.submit(JobKind.FRONTS, request).id)
    assert done.result is not None
    (found,) = done.result["fronts"]  # type: ignore[union-attr,misc]
    candidates = {
        item.number: item
        for item in store.jobs.candidates(first.id)
        if item.state is CandidateState.EVALUATED and item.chain is None
    }
    assert found["job"] == first.id  # type: ignore[index,call-overload]
    assert found["front"]  # type: ignore[index,call-overload]
    for row in found["front"]:  # type: ignore[index,call-overload,union-attr]
        known = candidates[row["candidate"]]  # type: ignore[index,call-overload]
        assert row["metrics"]["accuracy"] == known.metrics["accuracy"]  # type: ignore[index,call-overload]
        assert row["metrics"]["latency_ms"] > 0  # type: ignore[index,call-overload,operator]
        assert row["sum_ms"] > 0  # type: ignore[index,call-overload,operator]
    assert store.jobs.savings(first.id)["spent_s"] == spent
    assert done.result["measured"] == 0  # the table has every operation


def test_a_front_is_recomputed_in_the_runtime_that_its_search_asked_for(
    store: Store, worker: EmbeddedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = toys.search(
        candidates=3, objectives=["accuracy", "latency_ms"], seed=3, runtime="onnx", winners=0
    )
    first = toys.succeeded(store, store.jobs.submit(JobKind.SEARCH, search).id)
    asked: list[tuple[str, Any]] = []
    measured = JobContext.call

    def call(self: JobContext, name: str, args: Any, *rest: Any, **named: Any) -> Any:
        asked.append((name, args.get("runtime")))
        return measured(self, name, args, *rest, **named)

    monkeypatch.setattr(JobContext, "call", call)
    request = parse_request(
        JobKind.FRONTS, {"device": worker_device(store), "jobs": [first.id], "repeats": 5}
    ).model_dump(mode="json")
    done = toys.succeeded(store, store.jobs.submit(JobKind.FRONTS, request).id)
    found: Any = done.result["fronts"][0]  # type: ignore[index,call-overload]
    assert asked == [("measure", "onnx")] * found["considered"]
    assert done.result["measured"] == found["considered"] > 0  # type: ignore[index,call-overload]
    assert found["median_error"] is None
    assert found["front"]
    for row in found["front"]:
        assert row["sum_ms"] is None
        assert row["metrics"]["latency_ms"] > 0


def worker_device(store: Store) -> str:
    return store.devices.devices()[0].id


def test_operations_are_taken_from_tables_of_every_page(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/zoo.db")
    device = Device(name="cpu", kind="cpu", info={})
    for number in range(105):
        job = store.jobs.submit(JobKind.COST_TABLE, {})
        claimed = store.jobs.claim("w", lease_s=60, job_id=job.id)
        assert claimed is not None
        table = {"precision": PRECISION, "entries": {f"op {number}": number, "op": number}}
        result: dict[str, Any] = {"device": device.id, "table": table}
        store.jobs.finish(job.id, claimed.token, JobState.SUCCEEDED, result=result)
    context: Any = SimpleNamespace(store=store, job=job)
    expected = {f"op {number}": number for number in range(105)} | {"op": 104}
    assert _tabled(context, device) == expected
    store.close()


def test_fronts_of_a_job_that_has_none_are_refused(store: Store, worker: EmbeddedWorker) -> None:
    table = submit(store, networks=0)
    request = {"device": worker_device(store), "jobs": [table.id]}
    spec = parse_request(JobKind.FRONTS, request).model_dump(mode="json")
    failed = toys.finished(store, store.jobs.submit(JobKind.FRONTS, spec).id)
    assert failed.state is JobState.FAILED
    assert "no finished search" in (failed.reason or "")


def test_a_proxyless_table_is_imported_from_the_command_line(tmp_path: Path) -> None:
    source = tmp_path / "mobile.yaml"
    source.write_text("Logits-input:7x7x1280-output:1000: {count: 5, mean: 0.75, var: 0.01}\n")
    arguments = ["cost", "table", "import", str(source), "--device", "pixel1", "--json"]
    done = CliRunner().invoke(cli, arguments, obj=Terminal())
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "mobile.json").read_text())
    assert written == json.loads(done.stdout)
    assert LatencyTable.load(tmp_path / "mobile.json").total_ms(
        ["Logits-input:7x7x1280-output:1000"]
    ) == pytest.approx(0.75)
