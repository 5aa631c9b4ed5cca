"""``python -m workers``: what it prints, how it exits, and what a signal does to a job."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toys
from workers.__main__ import main
from zoo.jobs import Arm, CandidateState, JobKind, JobState
from zoo.store import open_store
from zoo.store.protocols import Store


@pytest.fixture
def url(tmp_path: Path, store: Store) -> str:
    """The URL of the database that ``store`` has open."""
    toys.install()
    return f"sqlite:///{tmp_path}/zoo.db"


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workers", *words],
        env=toys.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_run_does_one_job_to_its_end_with_progress(store: Store, url: str) -> None:
    job = store.jobs.submit(JobKind.SEARCH, toys.search(seed=1, space={"delay_s": 0.1}))
    other = store.jobs.submit(JobKind.SEARCH, toys.search(seed=2))
    process = start("run", job.id, "--db", url)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "search: candidate" in said
    assert said.rstrip().endswith(f"{job.id} succeeded")
    assert store.jobs.job(other.id).state is JobState.QUEUED
    assert not store.devices.workers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_hands_the_job_back_with_all_it_evaluated(
    store: Store, url: str, number: signal.Signals
) -> None:
    spec = toys.search(space={"widths": [4], "twins": 1, "delay_s": 0.3}, candidates=20)
    job = store.jobs.submit(JobKind.SEARCH, spec | {"reuse": False})
    process = start("run", job.id, "--db", url)
    toys.wait_for(
        lambda: len(store.jobs.candidates(job.id, arm=Arm.SEARCH)) > 1, what="two candidates"
    )
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    after = store.jobs.job(job.id)
    assert after.state is JobState.QUEUED
    assert after.attempt == 0
    states = [item.state for item in store.jobs.candidates(job.id, arm=Arm.SEARCH)]
    assert states[0] is CandidateState.EVALUATED


def test_a_job_that_cannot_be_run_says_why(
    store: Store, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = store.jobs.submit(JobKind.SEARCH, toys.search(), device="no-such-device")
    assert main(["run", job.id, "--db", url]) == 1
    assert "asks for the device no-such-device" in capsys.readouterr().err
    assert main(["run", "job_none", "--db", url]) == 1
    assert capsys.readouterr().err.startswith("error: there is no job job_none")


def test_a_command_without_a_database_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BLOCKYARD_URL", raising=False)
    assert main(["worker"]) == 1
    assert "give --db" in capsys.readouterr().err


def test_an_open_broker_elsewhere_is_refused_before_anything_starts(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", "--db", url, "--broker", "redis://queue.example:6379/0"]) == 1
    assert "without a password" in capsys.readouterr().err


def test_up_serves_and_works_in_one_process_and_stops_clean(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/up.db"
    open_store(url).close()
    process = start("up", "--db", url, "--port", "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.search(r"http://127\.0\.0\.1:\d+", line), process.stderr
    store = open_store(url)
    toys.install()
    job = store.jobs.submit(JobKind.PREVIEW, {"search": toys.search(), "samples": 4})
    toys.succeeded(store, job.id)
    store.close()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=40)
    assert process.returncode == 0, said
