"""What the pages compute before they draw."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ui.connection import Connection
from ui.following import progress_text
from ui.parts import chain_graph
from ui.views.candidate import curve_of
from ui.views.job import curves_of
from ui.views.system import busy_shares
from zoo.errors import InvalidInputError
from zoo.jobs import Job, JobKind, JobState
from zoo.spec import BlockSpec, TensorSpec
from zoo.store.protocols import Event

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def event(line: int, **data: Any) -> Event:
    return Event(job="job_1", number=line, at=NOW, level="info", message="", data=data)


def job(worker: str, started_min: float, finished_min: float | None) -> Job:
    """A job that ran from so many minutes ago until so many minutes ago."""
    finished = None if finished_min is None else NOW - timedelta(minutes=finished_min)
    return Job(
        id=f"job_{started_min}",
        kind=JobKind.SEARCH,
        state=JobState.SUCCEEDED if finished else JobState.RUNNING,
        spec={},
        worker=worker,
        started_at=NOW - timedelta(minutes=started_min),
        finished_at=finished,
    )


def test_the_curve_of_a_candidate_is_the_newest_of_its_arm() -> None:
    events = [
        event(1, kind="curve", arm="search", number=0, epoch=[1], loss=[9.0]),
        event(2, kind="curve", arm="search", number=0, epoch=[1, 2], loss=[2.0, 1.0]),
        event(3, kind="curve", arm="winner", number=0, epoch=[1], loss=[5.0]),
        event(4, kind="metrics", phase="search", step=1, metrics={"hypervolume": 0.5}),
    ]
    assert curve_of(events, "search", 0) == {"epoch": [1, 2], "loss": [2.0, 1.0]}
    assert curve_of(events, "search", 1) is None


def test_the_curves_of_a_training_are_what_it_said_so_far_and_in_the_end_every_epoch() -> None:
    running = [
        event(1, kind="metrics", phase="train", step=1, metrics={"loss": 2.0}),
        event(2, kind="metrics", phase="train", step=9, metrics={"loss": 1.0}),
    ]
    points = [{"step": 1, "loss": 2.0}, {"step": 9, "loss": 1.0}]
    assert curves_of(running, "train") == {"loss": points}
    assert curves_of(running, "search") == {
        "loss, train": [{"step": it["step"], "loss, train": it["loss"]} for it in points]
    }
    ended = [*running, event(3, kind="curve", arm="winner", number=0, epoch=[1, 2], loss=[2.0, 1])]
    assert curves_of(ended, "train") == {"loss": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1}]}


def test_a_job_that_succeeded_is_no_longer_said_to_be_at_a_step() -> None:
    progress: dict[str, Any] = {"step": 0, "total": 100, "message": "measuring its blocks"}
    states = (JobState.RUNNING, JobState.FAILED, JobState.SUCCEEDED)
    jobs = [replace(job("w", 5, None), state=state, progress=progress) for state in states]
    assert [progress_text(item) for item in jobs] == [
        "running · 0/100 · measuring its blocks",
        "failed · 0/100 · measuring its blocks",
        "succeeded",
    ]


def test_a_worker_is_busy_while_it_runs_any_job_of_the_last_hour() -> None:
    jobs = [
        job("a", 90, 45),  # 15 minutes of it in the last hour
        job("a", 30, None),  # and 30, within which
        job("a", 20, 10),  # it ran another one
        job("b", 120, 61),
        job("c", 6, 0),
    ]
    assert busy_shares(jobs, NOW) == {"a": pytest.approx(0.75), "c": pytest.approx(0.1)}


def test_a_network_is_drawn_in_order_with_its_shapes() -> None:
    image, features = (TensorSpec(shape=(1, 8, 8)),), (TensorSpec(shape=(4, 8, 8)),)
    specs = [
        BlockSpec(op="darts.stem", inputs=image, outputs=features),
        BlockSpec(op="darts.cell", params={"reduction": True}, inputs=features, outputs=features),
    ]
    graph = chain_graph(specs)
    assert 'b0 [label="darts.stem"]' in graph
    assert 'b1 [label="darts.cell, reduction"]' in graph
    assert 'b0 -> b1 [label="4×8×8"]' in graph


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com"])
def test_pages_on_a_database_stay_on_this_machine(host: str) -> None:
    with pytest.raises(InvalidInputError, match="asks for an API key"):
        Connection().check_pages(host)
    Connection(url="http://127.0.0.1:8000").check_pages(host)
    Connection().check_pages("127.0.0.1")
