"""The SDK on a database: one object for blocks, chains and jobs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo import Zoo
from zoo.builders import register
from zoo.canonical import Json
from zoo.errors import (
    ConflictError,
    DeadlineExceededError,
    EnvironmentUnfitError,
    InvalidInputError,
    NotFoundError,
    UnknownNameError,
)
from zoo.jobs import JobKind, JobState
from zoo.spec import Block, BlockSpec, TensorSpec
from zoo.store import open_store
from zoo.store.protocols import Edge, Store, WorkerInfo
from zoo.waiting import local_worker, wait_for

SEARCH = {"method": "random", "space": "darts", "data": "digits"}


@register("test.sdk")
def build_linear(spec: BlockSpec) -> nn.Module:
    (width,) = spec.inputs[0].shape
    assert width is not None
    return nn.Linear(width, width)


def spec_of(width: int = 3) -> BlockSpec:
    interface = (TensorSpec(shape=(width,)),)
    return BlockSpec(op="test.sdk", params={"width": width}, inputs=interface, outputs=interface)


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[Zoo]:
    with Zoo(f"sqlite:///{tmp_path}/zoo.db") as opened:
        yield opened


@pytest.fixture
def behind(tmp_path: Path, zoo: Zoo) -> Iterator[Store]:
    """The same database as a worker sees it."""
    opened = open_store(zoo.url)
    yield opened
    opened.close()


def put(zoo: Zoo, width: int = 3) -> tuple[Block, nn.Module]:
    module = nn.Linear(width, width)
    return zoo.put_block(spec_of(width), module), module


def test_importing_it_loads_neither_torch_nor_sqlalchemy() -> None:
    code = (
        "import sys; from zoo import Zoo; import zoo.store.protocols, zoo.store;"
        "print(*sorted({'torch', 'sqlalchemy', 'pydantic', 'alembic', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_store_opens_and_lists_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from zoo import Zoo\n"
        "with Zoo(sys.argv[1]) as zoo:\n"
        "    zoo.search(method='random', space='darts', data='d')\n"
        "    print(len(list(zoo.jobs())), len(list(zoo.blocks())), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path}/zoo.db"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "0", "False"], done.stderr


def test_a_name_that_the_package_has_not_is_an_attribute_error() -> None:
    import zoo

    with pytest.raises(AttributeError, match="Zebra"):
        zoo.Zebra  # noqa: B018


def test_a_block_and_a_chain_come_back_as_modules(zoo: Zoo) -> None:
    first, second = put(zoo), put(zoo)
    chain = zoo.put_chain([first[0], second[0]], card={"task": "digits"})
    zoo.alias("best", chain.id[:12])
    probe = torch.randn(2, 3)
    assert zoo.load(first[0].id)(probe).equal(first[1](probe))
    for ref in (chain.id, chain.id[:8], "best"):
        loaded = zoo.load(ref)
        assert loaded(probe).equal(second[1](first[1](probe)))
        assert not loaded.training
        assert zoo.chain(ref).card == {"task": "digits"}
    assert zoo.block(first[0].id[:8]) == first[0]
    assert zoo.aliases() == {"best": chain.id}


def test_listings_page_through_everything(zoo: Zoo, behind: Store) -> None:
    digest = behind.files.put(b"shared")
    for number in range(230):
        spec = BlockSpec(
            op="test.sdk", params={"n": number}, inputs=spec_of().inputs, outputs=spec_of().outputs
        )
        behind.blocks.put_block(Block(spec=spec, weights=digest, num_params=number, size_bytes=1))
    assert [block.num_params for block in zoo.blocks(order="num_params")] == list(range(230))
    page = zoo.blocks_page(limit=200)
    assert len(page.items) == 200
    assert len(zoo.blocks_page(limit=200, cursor=page.next).items) == 30
    assert len(list(zoo.blocks(max_params=9))) == 10


def test_what_is_wrong_is_named_with_the_choices(zoo: Zoo) -> None:
    with pytest.raises(InvalidInputError, match=r"colour.*min_accuracy"):
        zoo.chains(colour="red")
    with pytest.raises(InvalidInputError, match=r"dance.*search"):
        zoo.submit("dance", {})
    with pytest.raises(InvalidInputError, match=r"objectives"):
        zoo.search(**SEARCH, objectives=["beauty"])
    with pytest.raises(InvalidInputError, match="data"):
        zoo.search(method="random", space="darts")
    for act in (zoo.load, zoo.chain, zoo.block, zoo.profiles, zoo.lineage, zoo.job, zoo.onnx):
        with pytest.raises(NotFoundError, match="nothing"):
            act("nothing")
    with pytest.raises(InvalidInputError, match="sqlite:///FILE"):
        Zoo("ftp://somewhere")


def test_a_chain_without_export_says_so(zoo: Zoo, behind: Store) -> None:
    chain = zoo.put_chain([put(zoo)[0]])
    with pytest.raises(NotFoundError, match="ONNX"):
        zoo.onnx(chain.id)
    behind.blocks.put_chain(chain, onnx=behind.files.put(b"onnx bytes"))
    assert zoo.onnx(chain.id) == b"onnx bytes"


def test_lineage_is_found_by_any_reference(zoo: Zoo, behind: Store) -> None:
    chain = zoo.put_chain([put(zoo)[0]])
    zoo.alias("best", chain.id)
    edge = Edge(child=chain.id, parent="job_1", relation="searched-by")
    behind.blocks.add_edges([edge])
    assert zoo.lineage("best") == zoo.lineage("job_1") == (edge,)


def test_verify_lists_what_is_damaged_or_missing(zoo: Zoo, tmp_path: Path) -> None:
    damaged, missing, _ = (put(zoo, width)[0] for width in (2, 3, 4))
    files = tmp_path / "zoo.db.files"
    next(files.rglob(damaged.weights)).write_bytes(b"rot")
    next(files.rglob(missing.weights)).unlink()
    assert zoo.verify() == sorted([damaged.weights, missing.weights])


def test_nothing_young_is_garbage(zoo: Zoo, behind: Store) -> None:
    behind.files.put(b"loose")
    assert zoo.gc() == (0, 0)
    assert zoo.gc(dry_run=False) == (0, 0)


def test_a_request_is_stored_complete(zoo: Zoo) -> None:
    job = zoo.search(**SEARCH, name="mine")
    assert job.name == "mine"
    assert job.spec["method"] == {"name": "random", "params": {}}
    assert job.spec["seed"] == 0
    training = zoo.train(chain="mine", data="digits", recipe={"preset": "darts-cifar"})
    assert training.kind is JobKind.TRAIN
    assert training.spec["recipe"]["epochs"] == 600  # type: ignore[index,call-overload]
    assert "preset" not in training.spec["recipe"]  # type: ignore[operator]
    preview = zoo.preview(**SEARCH, samples=8)
    assert preview.kind is JobKind.PREVIEW
    assert preview.spec["samples"] == 8
    clone = zoo.clone(job.id, seed=7, space="darts")
    assert clone.id != job.id
    assert clone.spec == {**job.spec, "seed": 7}


def test_only_jobs_that_run_on_their_device_wait_for_it(zoo: Zoo) -> None:
    assert zoo.search(**SEARCH, device="cuda:0").device is None
    assert zoo.assemble(device="cuda:0").device == "cuda:0"
    assert zoo.profile(subjects=["a"]).device is None


def test_an_idempotency_key_is_passed_on(zoo: Zoo) -> None:
    spec = {"method": {"name": "random"}, "space": {"name": "darts"}, "data": "digits"}
    made = {zoo.submit("search", spec, idempotency_key="k").id for _ in range(3)}
    assert len(made) == 1
    assert len(list(zoo.jobs(kind=JobKind.SEARCH))) == 1


def run_elsewhere(store: Store, state: JobState, reason: str | None = None) -> threading.Thread:
    def run() -> None:
        job = store.jobs.claim("w", lease_s=60)
        assert job is not None
        store.jobs.heartbeat(job.id, job.token, lease_s=60, progress={"step": 1})
        store.jobs.finish(job.id, job.token, state, result={"x": 1}, reason=reason)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_waiting_returns_the_finished_job(zoo: Zoo, behind: Store) -> None:
    behind.devices.announce(WorkerInfo(id="w", devices=(), catalogue={}))
    job = zoo.search(**SEARCH)
    thread = run_elsewhere(behind, JobState.SUCCEEDED)
    assert zoo.wait(job.id, timeout_s=30).result == {"x": 1}
    thread.join()
    states = [seen.state for seen in zoo.watch(job.id, poll_s=0.01)]
    assert states == [JobState.SUCCEEDED]


def test_waiting_for_a_job_that_fails_says_why(zoo: Zoo, behind: Store) -> None:
    behind.devices.announce(WorkerInfo(id="w", devices=(), catalogue={}))
    job = zoo.search(**SEARCH)
    thread = run_elsewhere(behind, JobState.FAILED, "out of memory")
    with pytest.raises(ConflictError, match="failed: out of memory"):
        zoo.wait(job.id, timeout_s=30)
    thread.join()


def test_waiting_has_a_limit_and_control(zoo: Zoo, behind: Store) -> None:
    behind.devices.announce(WorkerInfo(id="w", devices=(), catalogue={}))
    job = zoo.search(**SEARCH)
    with pytest.raises(DeadlineExceededError, match="queued after 0.01 s"):
        zoo.wait(job.id, timeout_s=0.01)
    assert zoo.pause(job.id).state is JobState.PAUSED
    assert zoo.resume(job.id).state is JobState.QUEUED
    assert zoo.cancel(job.id).state is JobState.CANCELLED
    with pytest.raises(ConflictError, match="cancelled"):
        zoo.wait(job.id)


def test_watching_yields_every_change_that_matters(zoo: Zoo, behind: Store) -> None:
    job = zoo.search(**SEARCH)
    seen = zoo.watch(job.id, poll_s=0.01)
    assert next(seen).state is JobState.QUEUED
    claimed = behind.jobs.claim("w", lease_s=60)
    assert claimed is not None
    assert next(seen).state is JobState.RUNNING
    behind.jobs.heartbeat(job.id, claimed.token, lease_s=99, progress={"step": 1})
    assert next(seen).progress == {"step": 1}
    behind.jobs.heartbeat(job.id, claimed.token, lease_s=999)  # only the lease: no change
    behind.jobs.finish(job.id, claimed.token, JobState.SUCCEEDED)
    assert [after.state for after in seen] == [JobState.SUCCEEDED]


@pytest.mark.parametrize(
    ("paused", "error", "said"),
    [(False, EnvironmentUnfitError, "no such table"), (True, ConflictError, "paused; resume")],
)
def test_a_worker_of_our_own_that_ends_early_ends_the_waiting(
    zoo: Zoo, paused: bool, error: type[Exception], said: str
) -> None:
    job = zoo.search(**SEARCH)
    if paused:
        zoo.pause(job.id)

    @contextmanager
    def local() -> Iterator[object]:
        yield lambda: "no such table"

    with pytest.raises(error, match=said):
        wait_for(zoo.job, job.id, timeout_s=30, alone=lambda: True, local=local, poll_s=0.01)


def test_a_worker_of_our_own_starts_when_the_last_other_one_is_gone(
    zoo: Zoo, behind: Store
) -> None:
    job = zoo.search(**SEARCH)
    answers = iter([False, False, True])
    started = []

    @contextmanager
    def local() -> Iterator[object]:
        started.append(True)
        thread = run_elsewhere(behind, JobState.SUCCEEDED)
        yield lambda: None
        thread.join()

    done = wait_for(
        zoo.job, job.id, timeout_s=30, alone=lambda: next(answers), local=local, poll_s=0.01
    )
    assert done.state is JobState.SUCCEEDED
    assert started == [True]


def test_names_that_nothing_has_are_refused_at_once(zoo: Zoo, behind: Store) -> None:
    for field in ("method", "space", "evaluator"):
        with pytest.raises(UnknownNameError, match="nope"):
            zoo.search(**SEARCH | {field: "nope"})
    catalogue: dict[str, Json] = {"methods": [{"name": "mine"}], "data": [{"name": "flowers"}]}
    behind.devices.announce(WorkerInfo(id="w", devices=(), catalogue=catalogue))
    with pytest.raises(UnknownNameError, match="choose one of: mine"):
        zoo.search(**SEARCH)
    with pytest.raises(UnknownNameError, match="flowers"):
        zoo.search(**SEARCH | {"method": "mine"})
    assert zoo.search(**SEARCH | {"method": "mine", "data": "flowers"}).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("request_", "said"),
    [({"objective": "foo"}, "latency_ms"), ({"name": "deadbeef00"}, "not only hex digits")],
)
def test_an_assembly_is_checked_when_it_is_asked_for(
    zoo: Zoo, request_: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        zoo.assemble(**request_)


def test_filters_of_jobs_are_words_that_exist(zoo: Zoo) -> None:
    job = zoo.search(**SEARCH)
    assert [found.id for found in zoo.jobs(kind="search", state="queued")] == [job.id]
    for name in ("kind", "state"):
        with pytest.raises(InvalidInputError, match=f"job {name} 'foo' is not one of: "):
            zoo.jobs(**{name: "foo"})


def test_the_whole_log_is_read(zoo: Zoo, behind: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.client.EVENTS_AT_ONCE", 2)
    job = zoo.search(**SEARCH)
    for number in range(5):
        behind.jobs.log(job.id, f"line {number}")
    assert [event.number for event in zoo.events(job.id)] == [1, 2, 3, 4, 5]
    assert [event.number for event in zoo.events(job.id, after=1)] == [2, 3, 4, 5]


def test_a_job_that_is_over_is_deleted(zoo: Zoo) -> None:
    job = zoo.search(**SEARCH)
    with pytest.raises(ConflictError, match="cancel it first"):
        zoo.delete_job(job.id)
    zoo.cancel(job.id)
    zoo.delete_job(job.id)
    assert list(zoo.jobs()) == []


def test_a_worker_of_our_own_says_its_last_words(tmp_path: Path) -> None:
    with local_worker("job_x", url="mysql://nowhere", files=tmp_path) as last_words:
        deadline = threading.Event()
        while (said := last_words()) is None:
            assert not deadline.wait(0.05)
    assert "mysql" in said
