"""Jobs, blocks, chains and files over HTTP, with the SDK's remote half as their client."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running_server import Running, linear, put_block, put_chain, running
from zoo.canonical import content_id
from zoo.canonical import digest as digest_of
from zoo.client import Zoo
from zoo.errors import (
    ConflictError,
    CorruptArtifactError,
    DeadlineExceededError,
    ForbiddenError,
    IllegalTransitionError,
    InvalidInputError,
    NotFoundError,
    NotReadyError,
    UnauthenticatedError,
    UnknownNameError,
)
from zoo.jobs import Arm, Candidate, JobKind, JobRequest, JobState
from zoo.remote import HttpStore
from zoo.spec import Device
from zoo.store.protocols import JobQuery, Store, WorkerInfo

SEARCH: dict[str, Any] = {
    "method": {"name": "nsga2"},
    "space": {"name": "darts", "params": {"cells": 3}},
    "data": "digits",
}
CPU = Device(name="cpu", kind="cpu", info={"model": "x"})
WORKER = WorkerInfo(
    id="w1",
    devices=(CPU,),
    catalogue={
        "spaces": [{"name": "darts", "summary": "cells", "params": {"cells": 3}}],
        "methods": [{"name": "nsga2", "summary": "", "params": {}}, {"name": "tpe"}],
        "data": [{"name": "digits"}],
        "evaluators": [],
    },
)


class Sent:
    """A queue that remembers what it was told."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def send(self, job_id: str) -> None:
        self.ids.append(job_id)


@pytest.fixture
def queue() -> Sent:
    return Sent()


@pytest.fixture
def server(store: Store, queue: Sent) -> Iterator[Running]:
    with running(store, queue=queue) as started:
        yield started


@pytest.fixture
def remote(server: Running) -> Iterator[HttpStore]:
    with HttpStore(server.url) as opened:
        yield opened


def test_a_submitted_job_is_written_and_announced(
    remote: HttpStore, store: Store, queue: Sent
) -> None:
    job = remote.jobs.submit(JobKind.SEARCH, SEARCH, name="first", idempotency_key="k")
    assert store.jobs.job(job.id) == job == remote.jobs.job(job.id)
    assert (job.name, job.owner, job.state) == ("first", "local", JobState.QUEUED)
    assert job.spec["winners"] == 1  # the defaults are written out
    assert queue.ids == [job.id]
    again = remote.jobs.submit(JobKind.SEARCH, SEARCH, name="first", idempotency_key="k")
    assert again.id == job.id
    for spec, name in ((SEARCH | {"seed": 1}, "first"), (SEARCH, "second")):
        with pytest.raises(ConflictError, match="'k'"):
            remote.jobs.submit(JobKind.SEARCH, spec, name=name, idempotency_key="k")


def test_a_job_is_paused_resumed_and_cancelled(remote: HttpStore, queue: Sent) -> None:
    job = remote.jobs.submit(JobKind.SEARCH, SEARCH)
    assert remote.jobs.request(job.id, JobRequest.PAUSE).state is JobState.PAUSED
    assert remote.jobs.resume(job.id).state is JobState.QUEUED
    assert queue.ids == [job.id] * 2
    assert remote.jobs.request(job.id, JobRequest.CANCEL).state is JobState.CANCELLED
    with pytest.raises(IllegalTransitionError, match="final"):
        remote.jobs.request(job.id, JobRequest.PAUSE)
    with pytest.raises(NotFoundError, match="job_x"):
        remote.jobs.job("job_x")


def test_what_a_job_writes_can_be_read(remote: HttpStore, store: Store) -> None:
    job = remote.jobs.submit(JobKind.SEARCH, SEARCH)
    claimed = store.jobs.claim("w", lease_s=60, job_id=job.id)
    assert claimed is not None
    for number in range(3):
        store.jobs.log(job.id, f"line {number}", data={"number": number})
    candidate = Candidate(
        job=job.id,
        number=0,
        architecture={"choices": [1]},
        architecture_id=content_id({"choices": [1]}),
        metrics={"accuracy": 0.5},
    )
    store.jobs.put_candidate(candidate, claimed.token)
    assert remote.jobs.events(job.id) == store.jobs.events(job.id)
    assert [event.message for event in remote.jobs.events(job.id, after=2)] == ["line 2"]
    assert len(remote.jobs.events(job.id, limit=2)) == 2
    assert remote.jobs.candidates(job.id) == (candidate,)
    assert remote.jobs.candidates(job.id, arm=Arm.WINNER) == ()
    assert remote.jobs.savings(job.id) == store.jobs.savings(job.id)
    assert remote.jobs.savings() == store.jobs.savings()
    reused = dataclasses.replace(candidate, number=1, reused_from=job.id, saved_s=2.0)
    store.jobs.put_candidate(reused, claimed.token)
    assert remote.jobs.origins(job.id) == store.jobs.origins() == remote.jobs.origins()
    assert [item.hits for item in remote.jobs.origins(owner="local")] == [1]


def test_jobs_are_paged_and_filtered(remote: HttpStore) -> None:
    made = [remote.jobs.submit(JobKind.SEARCH, SEARCH).id for _ in range(5)]
    remote.jobs.request(made[0], JobRequest.CANCEL)
    page, seen = remote.jobs.jobs(limit=2), []
    while True:
        seen += [job.id for job in page.items]
        if page.next is None:
            break
        page = remote.jobs.jobs(limit=2, cursor=page.next)
    assert sorted(seen) == sorted(made)
    cancelled = JobQuery(kind=JobKind.SEARCH, state=JobState.CANCELLED, owner="local")
    assert [job.id for job in remote.jobs.jobs(cancelled).items] == [made[0]]
    for cursor in ("garbage", "ü", "W10"):
        with pytest.raises(InvalidInputError, match="cursor"):
            remote.jobs.jobs(cursor=cursor)


@pytest.mark.parametrize(
    ("change", "choices"),
    [
        ({"method": {"name": "nas"}}, ("nsga2", "tpe")),
        ({"space": {"name": "nas"}}, ("darts",)),
        ({"data": "nas"}, ("digits",)),
        ({"device": "cuda:7"}, ("cpu",)),
    ],
)
def test_a_name_no_live_worker_knows_is_refused_with_the_choices(
    remote: HttpStore, store: Store, change: dict[str, Any], choices: tuple[str, ...]
) -> None:
    store.devices.announce(WORKER)
    for kind, spec in (
        (JobKind.SEARCH, SEARCH | change),
        (JobKind.PREVIEW, {"search": SEARCH | change}),
    ):
        with pytest.raises(UnknownNameError) as refused:
            remote.jobs.submit(kind, spec)
        assert refused.value.choices == choices
    remote.jobs.submit(JobKind.SEARCH, SEARCH | {"device": CPU.id})


def test_without_a_live_worker_only_what_is_installed_can_be_named(remote: HttpStore) -> None:
    for field in ("method", "space", "evaluator"):
        with pytest.raises(UnknownNameError, match="nas"):
            remote.jobs.submit(JobKind.SEARCH, SEARCH | {field: {"name": "nas"}})
    away = {"data": "flowers", "device": "cuda:7"}  # only a worker knows these
    assert remote.jobs.submit(JobKind.SEARCH, SEARCH | away).state is JobState.QUEUED


def test_a_measurement_is_for_the_device_that_it_names(remote: HttpStore, server: Running) -> None:
    spec = {"subjects": ["a" * 64], "device": "cpu"}
    assert remote.jobs.submit(JobKind.PROFILE, spec).device == "cpu"
    assert remote.jobs.submit(JobKind.PROFILE, spec | {"device": "auto"}).device is None
    with server.client() as client:
        answer = client.post("/v1/assemble", json={"task": "digits", "device": "cpu"})
        assert (answer.status_code, answer.json()["device"]) == (202, "cpu")
        assert answer.json()["kind"] == "assemble"


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (SEARCH | {"epochs": 3}, "epochs"),
        (SEARCH | {"winners": -1}, "winners"),
        (SEARCH | {"objectives": ["speed"]}, "speed"),
        ({}, "method"),
        (SEARCH | {"name\x00": 1}, "NUL"),
        (SEARCH | {"space": {"name": "darts", "params": {"x": "\ud800"}}}, "surrogate"),
        (SEARCH | {"space": {"name": "darts", "params": {"x": 2**80}}}, "integer"),
    ],
)
def test_a_wrong_request_names_its_field(server: Running, spec: dict[str, Any], named: str) -> None:
    with server.client() as client:
        body = json.dumps({"kind": "search", "spec": spec})
        headers = {"Content-Type": "application/json"}
        answer = client.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"data": "digits"}, "chain, architecture, or space"),
        ({"data": "digits", "chain": "a", "genotype": "b"}, "belong to a space"),
        ({"data": "digits", "space": {"name": "darts"}}, "neither"),
        ({"data": "digits", "architecture": "a", "from_scratch": True}, "from_scratch"),
        ({"data": "digits", "chain": "a", "alias": "no good"}, "no good"),
        ({"data": "digits", "chain": "a", "recipe": {"preset": "nobody"}}, "nasnet-cifar"),
    ],
)
def test_a_training_is_checked_before_it_is_queued(
    server: Running, spec: dict[str, Any], named: str
) -> None:
    with server.client() as client:
        answer = client.post("/v1/jobs", json={"kind": "train", "spec": spec})
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]
        right = {"data": "digits", "chain": "a", "recipe": {"preset": "pc-darts-cifar"}}
        queued = client.post("/v1/jobs", json={"kind": "train", "spec": right})
    assert queued.status_code == 202
    assert queued.json()["spec"]["recipe"]["cutout"] == 16


@pytest.mark.parametrize(
    "path", ["/etc", "../secrets", "a/../../b", "a\\..\\b", "%2e%2e/b", "~root", "a//b", "", "."]
)
def test_a_key_reaches_no_data_outside_the_workers_folder(store: Store, path: str) -> None:
    with running(store, anonymous=False) as server, server.client(server.key("submit")) as client:
        for kind in ("folder", "npz"):
            data = f"{kind}:{path}"
            for job, spec in (("search", SEARCH), ("train", {"chain": "a"})):
                body = {"kind": job, "spec": spec | {"data": data}}
                answer = client.post("/v1/jobs", json=body)
                assert answer.status_code == 400
                assert "data folder" in answer.json()["error"]["message"]
        body = {"kind": "search", "spec": SEARCH | {"data": "folder:flowers/small"}}
        assert client.post("/v1/jobs", json=body).status_code == 202


def test_workers_devices_and_catalogue_are_shown(remote: HttpStore, store: Store) -> None:
    store.devices.announce(WORKER)
    assert remote.devices.workers() == store.devices.workers()
    assert remote.devices.devices() == (CPU,)
    assert remote.devices.device("cpu") == remote.devices.device(CPU.id) == CPU
    with pytest.raises(NotFoundError, match="cuda:7"):
        remote.devices.device("cuda:7")


def test_the_sdk_works_on_a_server_as_on_a_database(server: Running, store: Store) -> None:
    chain = put_chain(store, put_block(store, linear(4, 2)), alias="flowers")
    with Zoo(server.url) as zoo:
        assert zoo.chain("flowers") == chain
        assert list(zoo.blocks()) == [chain.blocks[0]]
        module = zoo.load("flowers")
        again = zoo.put_block(chain.blocks[0].spec, module[0])
        assert again.id == chain.blocks[0].id
        job = zoo.search(method="nsga2", space="darts", data="digits")
        assert [found.id for found in zoo.jobs()] == [job.id]
        assert zoo.cancel(job.id).state is JobState.CANCELLED
        assert zoo.verify() == []
        key, secret = zoo.create_key("ci", owner="alice", scopes=["read"])
        assert zoo.keys() == (key,)
    with Zoo(server.url, api_key=secret) as reader:
        assert reader.chain("flowers") == chain
        with pytest.raises(ForbiddenError, match="submit"):
            reader.search(method="nsga2", space="darts", data="digits")
    with Zoo(server.url, api_key="nonsense") as nobody, pytest.raises(UnauthenticatedError):
        nobody.chain("flowers")


def test_weights_that_are_no_safetensors_make_no_block(remote: HttpStore, store: Store) -> None:
    block = put_block(store, linear(4, 2))
    digest = remote.files.put(b"\x80\x04\x95 pickled")
    body = {key: value for key, value in block.to_json().items() if key != "id"}
    connection = remote.blocks._connection
    with pytest.raises(InvalidInputError, match="no safetensors"):
        connection.send("POST", "/v1/blocks", json=body | {"weights": digest})


def test_an_upload_under_another_name_is_refused_and_not_kept(server: Running) -> None:
    digest = digest_of(b"what was meant")
    with server.client() as client:
        answer = client.put(f"/v1/files/{digest}", content=b"what came")
        assert answer.status_code == 400
        assert digest_of(b"what came") in answer.json()["error"]["message"]
        assert client.get("/v1/files").json() == []
        assert client.head(f"/v1/files/{digest}").status_code == 404


def test_bodies_have_limits(store: Store) -> None:
    with (
        running(store, max_file_bytes=100, max_json_bytes=200) as server,
        server.client() as client,
    ):
        data = b"x" * 101
        answer = client.put(f"/v1/files/{digest_of(data)}", content=data)
        assert answer.status_code == 413
        assert "100" in answer.json()["error"]["message"]
        parts = iter([b"x" * 60, b"x" * 60])
        assert client.put(f"/v1/files/{digest_of(b'x' * 120)}", content=parts).status_code == 413
        body = {"kind": "search", "spec": SEARCH, "name": "n" * 200}
        assert client.post("/v1/jobs", json=body).status_code == 413
        chunked = client.post("/v1/jobs", content=iter([b"{}"]))
        assert chunked.status_code == 400
        assert "Content-Length" in chunked.json()["error"]["message"]
        assert client.get("/v1/files").json() == []


def test_an_onnx_file_comes_with_its_digest(
    remote: HttpStore, store: Store, server: Running
) -> None:
    chain = put_chain(store, put_block(store, linear(4, 2)), alias="flowers")
    assert remote.blocks.onnx(chain.id) is None
    digest = store.files.put(b"exported")
    store.blocks.put_chain(chain, onnx=digest)
    assert remote.blocks.onnx("flowers") == digest
    with server.client() as client:
        answer = client.get("/v1/chains/flowers/onnx")
        assert (answer.content, answer.headers["X-Digest"]) == (b"exported", digest)
    with pytest.raises(InvalidInputError, match="ONNX"):
        remote.blocks.put_chain(chain, onnx=digest)


def test_garbage_is_shown_before_it_is_collected(tmp_path: Path) -> None:
    from zoo.store import open_store

    opened = open_store(f"sqlite:///{tmp_path}/old.db", grace_s=-1)
    with running(opened) as server, HttpStore(server.url) as remote:
        block = put_block(opened, linear(4, 2))
        opened.blocks.put_block(block)
        orphan = remote.files.put(b"orphan")
        assert remote.blocks.garbage() == ([], [orphan])
        assert remote.files.has(orphan)
        assert remote.blocks.collect() == (0, 1)
        assert not remote.files.has(orphan)
    opened.close()


def test_bytes_damaged_on_their_way_are_refused() -> None:
    answer = httpx.Response(200, content=b"changed")
    with HttpStore("http://127.0.0.1:1") as remote:
        remote.files._connection._client = httpx.Client(
            base_url="http://127.0.0.1:1", transport=httpx.MockTransport(lambda _: answer)
        )
        with pytest.raises(CorruptArtifactError, match="on its way"):
            remote.files.get(digest_of(b"original"))


def test_reading_is_tried_again_and_writing_is_not() -> None:
    tried: list[str] = []

    def lose(request: httpx.Request) -> httpx.Response:
        tried.append(request.method)
        if request.method == "GET" and len(tried) == 3:
            return httpx.Response(200, json={})
        raise httpx.ConnectError("refused")

    naps: list[float] = []
    with HttpStore("http://127.0.0.1:1", sleep=naps.append) as remote:
        remote.files._connection._client = httpx.Client(
            base_url="http://127.0.0.1:1", transport=httpx.MockTransport(lose)
        )
        assert remote.blocks.aliases() == {}
        assert naps == [0.1, 0.2]
        tried.clear()
        with pytest.raises(NotReadyError, match=r"127\.0\.0\.1:1.*blockyard serve"):
            remote.jobs.submit(JobKind.SEARCH, SEARCH)
        assert tried == ["POST"]


def test_a_silent_server_is_not_waited_for_forever() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            HttpStore(url, timeout_s=0.1) as remote,
            pytest.raises(DeadlineExceededError, match="aliases"),
        ):
            remote.blocks.aliases()


def test_a_key_that_no_header_can_hold_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="API key"):
        HttpStore("http://127.0.0.1:1", "by_1_secret\r\nX-Admin: 1")


@pytest.mark.parametrize("url", ["http://", "http://host:port", "http://[::"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises((InvalidInputError, NotReadyError), match="host:port|no server"):
        HttpStore(url, sleep=lambda _: None).blocks.aliases()


def test_the_schema_describes_every_route(server: Running) -> None:
    with server.client() as client:
        schema = client.get("/openapi.json").json()
        assert client.get("/docs").status_code == 200
    infer = schema["paths"]["/v2/models/{name}/infer"]["post"]
    assert "application/octet-stream" in infer["requestBody"]["content"]
    assert infer["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "InferAnswer"
    )
    names = set(schema["components"]["schemas"])
    references = set()
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if isinstance(item.get("$ref"), str):
                references.add(item["$ref"].removeprefix("#/components/schemas/"))
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    assert references <= names
    assert schema["paths"]["/v1/jobs"]["post"]["responses"]["202"]
