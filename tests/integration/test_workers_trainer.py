"""The spawned trainer: what it survives, what it reports, and that it never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toys
from workers.supervisor import Limits, Trainer, resident_bytes
from zoo.errors import (
    ConflictError,
    InvalidInputError,
    TrainerCrashError,
    TrainerError,
    TrainerTimeoutError,
)

LIGHT = "light_duties"


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    toys.install()
    trainer = Trainer(data_root=tmp_path, duties=LIGHT)
    yield trainer
    trainer.kill()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_same_process_serves_one_request_after_another(
    trainer: Trainer, tmp_path: Path
) -> None:
    answer = trainer.call("echo", {"a": [1, None]}, (b"\x00weights", b""))
    assert answer.head["args"] == {"a": [1, None]}
    assert answer.head["root"] == str(tmp_path)
    assert answer.blobs == (b"\x00weights", b"")
    pid = trainer.pid
    trainer.call("echo", {})
    assert trainer.pid == pid
    assert trainer.generation == 1


def test_no_password_is_in_the_environment_of_the_trainer(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOCKYARD_URL", "postgresql+psycopg://blockyard:xyzzy@127.0.0.1/zoo")
    monkeypatch.setenv("BLOCKYARD_BROKER", "redis://:xyzzy@127.0.0.1:6379/0")
    trainer.call("echo", {})
    assert "xyzzy" not in Path(f"/proc/{trainer.pid}/environ").read_text()


@pytest.mark.parametrize(
    ("call", "named"),
    [("segfault", "ended by SIGSEGV"), ("exit", "exited with code 3"), ("full", "out of memory")],
)
def test_a_crash_costs_one_process_and_is_named(trainer: Trainer, call: str, named: str) -> None:
    with pytest.raises(TrainerCrashError, match=named):
        trainer.call(call, {})
    assert trainer.call("echo", {}).head["kind"] == "echo"
    assert trainer.generation == 2


def test_a_trainer_killed_from_outside_is_most_likely_out_of_memory(trainer: Trainer) -> None:
    trainer.call("echo", {})
    assert trainer.pid is not None
    threading.Timer(0.3, os.kill, (trainer.pid, signal.SIGKILL)).start()
    with pytest.raises(TrainerCrashError, match="SIGKILL, most likely because memory ran out"):
        trainer.call("hang", {})


def test_a_hang_is_ended_by_the_time_limit(trainer: Trainer) -> None:
    trainer.call("echo", {})
    pid = trainer.pid
    assert pid is not None
    with pytest.raises(TrainerTimeoutError, match=r"hang took longer than 0.5 s"):
        trainer.call("hang", {}, limits=Limits(timeout_s=0.5))
    assert not alive(pid)


def test_memory_beyond_the_limit_is_told_from_other_crashes(trainer: Trainer) -> None:
    trainer.call("echo", {})
    assert trainer.pid is not None
    limit = resident_bytes(trainer.pid) + 200_000_000
    with pytest.raises(TrainerCrashError, match=f"the limit is {limit:,}"):
        trainer.call("memory", {}, limits=Limits(memory_bytes=limit))


def test_an_exception_of_the_candidate_says_where_it_was_raised(trainer: Trainer) -> None:
    with pytest.raises(TrainerError, match=r"ValueError at light_duties\.py:\d+: this") as caught:
        trainer.call("raise", {})
    assert type(caught.value) is TrainerError
    assert trainer.pid is None  # its process is not trusted further


def test_deliberate_errors_keep_their_class_and_the_process(trainer: Trainer) -> None:
    with pytest.raises(ConflictError, match="no method is open"):
        trainer.call("conflict", {})
    with pytest.raises(InvalidInputError, match="unknown duty 'juggle'; choose one of: sit, stay"):
        trainer.call("unknown", {})
    assert trainer.generation == 1


def test_a_check_that_raises_kills_the_trainer_at_once(trainer: Trainer) -> None:
    trainer.call("echo", {})
    pid = trainer.pid
    assert pid is not None
    asked = threading.Event()
    threading.Timer(0.3, asked.set).start()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.call("hang", {}, check=check)
    assert not alive(pid)


def test_progress_comes_up_thinned_out_while_the_request_runs(trainer: Trainer) -> None:
    seen: list[int] = []
    trainer.call("echo", {"reports": 10}, progress=lambda news: seen.append(news["done"]))
    assert seen[0] == 0
    assert 2 <= len(seen) < 10


@pytest.mark.parametrize("call", ["echo", "hang"], ids=["idle", "busy"])
def test_a_trainer_whose_worker_is_killed_ends_by_itself(call: str) -> None:
    program = textwrap.dedent(
        f"""
        import threading
        from workers.supervisor import Trainer
        trainer = Trainer(duties="{LIGHT}")
        trainer.call("echo", {{}})
        print(trainer.pid, flush=True)
        trainer.call("{call}", {{}})
        threading.Event().wait()
        """
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=toys.environment(), text=True
    )
    assert worker.stdout is not None
    with worker.stdout:
        pid = int(worker.stdout.readline())
        assert alive(pid)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        toys.wait_for(lambda: not alive(pid), timeout_s=10, what="the end of the orphan")
