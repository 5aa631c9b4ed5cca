"""Inference over HTTP against a real server: right answers, and every way to be refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from serving.engine import EngineLimits
from tests.running_server import (
    Running,
    gate,
    held,
    linear,
    passing,
    put_block,
    put_chain,
    running,
    tensors,
    until,
)
from zoo.spec import BlockSpec, Chain
from zoo.store.protocols import Store
from zoo.weights import load_chain

WIDTH = 6


def body_of(data: Any, **rest: Any) -> dict[str, Any]:
    rows = torch.as_tensor(data)
    datatype = {torch.float32: "FP32", torch.float64: "FP64", torch.uint8: "UINT8"}[rows.dtype]
    item = {
        "name": "input_0",
        "shape": list(rows.shape),
        "datatype": datatype,
        "data": rows.flatten().tolist(),
    }
    return {"inputs": [item], **rest}


def answer_of(response: httpx.Response) -> torch.Tensor:
    assert response.status_code == 200, response.text
    output = response.json()["outputs"][0]
    dtype = {"FP32": torch.float32, "FP64": torch.float64}[output["datatype"]]
    return torch.tensor(output["data"], dtype=dtype).view(output["shape"])


def expected(store: Store, chain: Chain, rows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return load_chain(chain, store.files)(rows)


def rows_of(count: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator, dtype=dtype)


@contextmanager
def busy(server: Running, client: httpx.Client) -> Iterator[Future[httpx.Response]]:
    """Hold the engine with one request to the model ``gated`` until the block ends."""
    client.post("/v2/repository/models/gated/load").raise_for_status()
    with ThreadPoolExecutor(1) as pool:
        gate.clear()
        try:
            first = pool.submit(client.post, "/v2/models/gated/infer", json=body_of(rows_of(1, 0)))
            assert held.wait(20)
            yield first
        finally:
            gate.set()
        assert first.result().status_code == 200


@pytest.fixture
def gated(store: Store) -> Chain:
    return put_chain(store, put_block(store, passing("test.gate", WIDTH)), alias="gated")


def test_a_model_answers_as_its_network_does(store: Store) -> None:
    chain = put_chain(store, put_block(store, linear(WIDTH, 3)), alias="flowers")
    rows = rows_of(4, 1)
    with running(store) as server, server.client() as client:
        for name in ("flowers", chain.id, chain.id[:12], f"flowers/versions/{chain.id}"):
            response = client.post(f"/v2/models/{name}/infer", json=body_of(rows, id="a-17"))
            torch.testing.assert_close(answer_of(response), expected(store, chain, rows))
            assert response.json()["model_version"] == chain.id
            assert response.json()["id"] == "a-17"


def test_binary_tensors_are_the_same_numbers(store: Store) -> None:
    chain = put_chain(store, put_block(store, linear(WIDTH, 3)), alias="flowers")
    rows = rows_of(4, 2)
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "input_0",
                    "shape": [4, WIDTH],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": rows.nbytes},
                }
            ],
            "outputs": [{"name": "output_0", "parameters": {"binary_data": True}}],
        }
    ).encode()
    with running(store) as server, server.client() as client:
        response = client.post(
            "/v2/models/flowers/infer",
            content=header + rows.numpy().tobytes(),
            headers={"Inference-Header-Content-Length": str(len(header))},
        )
    assert response.status_code == 200, response.text
    length = int(response.headers["Inference-Header-Content-Length"])
    output = json.loads(response.content[:length])["outputs"][0]
    assert output["parameters"] == {"binary_data_size": 4 * 3 * 4}
    received = np.frombuffer(response.content[length:], np.float32).reshape(output["shape"])
    torch.testing.assert_close(torch.tensor(received), expected(store, chain, rows))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_requests_to_chains_that_share_a_block_meet_there_and_answer_the_same(
    store: Store, dtype: str, tolerance: float
) -> None:
    kind = getattr(torch, dtype)
    pause = BlockSpec(
        op="test.gate", inputs=tensors(WIDTH, dtype=dtype), outputs=tensors(WIDTH, dtype=dtype)
    )
    trunk = [put_block(store, pause), put_block(store, linear(WIDTH, 16, dtype))]
    chains = [
        put_chain(
            store, *trunk, put_block(store, linear(16, 3, dtype), seed=seed), alias=f"m{seed}"
        )
        for seed in range(4)
    ]
    sent = [(index % 4, rows_of(1 + index % 3, index, kind)) for index in range(40)]
    with (
        running(store, precision=dtype) as server,
        server.client() as client,
        ThreadPoolExecutor(40) as pool,
    ):
        for index in range(4):
            client.post(f"/v2/repository/models/m{index}/load").raise_for_status()
        before = {segment.blocks: segment for segment in server.engine.stats().segments}
        gate.clear()
        answers = [
            pool.submit(client.post, f"/v2/models/m{index}/infer", json=body_of(rows))
            for index, rows in sent
        ]
        until(lambda: server.engine.stats().active_requests == len(sent))
        gate.set()
        received = [answer_of(answer.result()) for answer in answers]
        after = {segment.blocks: segment for segment in server.engine.stats().segments}
    for (index, rows), answer in zip(sent, received, strict=True):
        wanted = expected(store, chains[index], rows)
        torch.testing.assert_close(answer, wanted, rtol=tolerance, atol=tolerance)
    shared = tuple(block.id for block in trunk)
    assert set(after[shared].chains) == {chain.id for chain in chains}
    batches = after[shared].batches - before[shared].batches
    assert after[shared].rows - before[shared].rows == sum(len(rows) for _, rows in sent)
    assert batches <= 4, "40 requests should have met in a few batches"


def test_a_client_that_leaves_takes_its_work_along(store: Store, gated: Chain) -> None:
    with running(store) as server, server.client() as client, busy(server, client):
        message = json.dumps(body_of(rows_of(2, 1))).encode()
        head = "POST /v2/models/gated/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Content-Length: {len(message)}\r\n\r\n"
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as leaving:
            leaving.sendall(head.encode() + message)
            until(lambda: server.engine.stats().waiting_rows == 2)
        until(lambda: server.engine.stats().cancelled == 1)
        assert server.engine.stats().waiting_rows == 0
        until(lambda: "blockyard_disconnects_total 1.0" in client.get("/metrics").text)


def test_a_full_queue_says_when_to_come_back(store: Store, gated: Chain) -> None:
    limits = EngineLimits(max_queue=2)
    with (
        running(store, limits=limits) as server,
        server.client() as client,
        busy(server, client),
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [
            pool.submit(client.post, "/v2/models/gated/infer", json=body_of(rows_of(1, seed)))
            for seed in range(2)
        ]
        until(lambda: server.engine.stats().waiting_rows == 2)
        refused = client.post("/v2/models/gated/infer", json=body_of(rows_of(1, 9)))
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert isinstance(refused.json()["error"], str)
        gate.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]


def test_a_deadline_ends_the_wait_and_the_work(store: Store, gated: Chain) -> None:
    with running(store) as server, server.client() as client, busy(server, client):
        url = "/v2/models/gated/infer"
        late = [
            client.post(url, json=body_of(rows_of(1, 1)), headers={"X-Request-Deadline-Ms": "40"}),
            client.post(url, json=body_of(rows_of(1, 2), parameters={"timeout": 40_000})),
        ]
        assert [answer.status_code for answer in late] == [504, 504]
        assert "deadline" in late[0].json()["error"]
        until(lambda: server.engine.stats().waiting_rows == 0)


def test_a_deadline_also_ends_the_wait_for_a_model_to_load(store: Store) -> None:
    """Loading runs a block once on a sample, so a gated block that is new loads for long."""
    put_chain(store, put_block(store, passing("test.gate", WIDTH)), alias="gated")
    with running(store) as server, server.client() as client:
        gate.clear()
        headers = {"X-Request-Deadline-Ms": "40"}
        answer = client.post("/v2/models/gated/infer", json=body_of(rows_of(1, 1)), headers=headers)
        assert answer.status_code == 504
        assert held.is_set()
        gate.set()
        until(lambda: client.get("/v2/models/gated/ready").status_code == 200)
        answer_of(client.post("/v2/models/gated/infer", json=body_of(rows_of(1, 1))))


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused(store: Store, gated: Chain, value: str) -> None:
    with running(store) as server, server.client() as client:
        headers = {"X-Request-Deadline-Ms": value}
        answer = client.post("/v2/models/gated/infer", json=body_of(rows_of(1, 0)), headers=headers)
    assert answer.status_code == 400
    assert repr(value) in answer.json()["error"]


def test_the_answer_to_nonsense_names_it(store: Store, gated: Chain) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"shape": [1, 7]}, "[1, 7]"),
        ({"datatype": "FP64"}, "FP64"),
        ({"name": "image"}, "image"),
        ({"data": [1.0]}, "1 values"),
    ]
    with running(store, max_infer_bytes=4096) as server, server.client() as client:
        for change, named in wrong:
            body = body_of(rows_of(1, 0))
            body["inputs"][0] |= change
            answer = client.post("/v2/models/gated/infer", json=body)
            assert answer.status_code == 400
            assert named in answer.json()["error"]
        missing = client.post("/v2/models/nobody/infer", json=body_of(rows_of(1, 0)))
        assert missing.status_code == 404
        assert "nobody" in missing.json()["error"]
        other = client.post(f"/v2/models/gated/versions/{'0' * 64}/infer", json={})
        assert other.status_code == 404
        assert "0000" in other.json()["error"]
        huge = client.post("/v2/models/gated/infer", content=b"x" * 5000)
        assert huge.status_code == 413
        chunked = client.post("/v2/models/gated/infer", content=iter([b"x" * 3000] * 2))
        assert chunked.status_code == 413
        header = {"Inference-Header-Content-Length": "12x"}
        assert client.post("/v2/models/gated/infer", headers=header).status_code == 400


def test_raw_images_are_normalised_by_the_server(store: Store) -> None:
    flatten = BlockSpec(op="test.flatten", inputs=tensors(1, 2, 3), outputs=tensors(WIDTH))
    card = {"normalization": {"mean": [0.5], "std": [0.25]}}
    chain = put_chain(
        store, put_block(store, flatten), put_block(store, linear(WIDTH, 3)), card=card, alias="img"
    )
    images = torch.randint(0, 256, (5, 1, 2, 3), dtype=torch.uint8)
    with running(store) as server, server.client() as client:
        raw = answer_of(client.post("/v2/models/img/infer", json=body_of(images)))
        ready = answer_of(
            client.post("/v2/models/img/infer", json=body_of((images / 255 - 0.5) / 0.25))
        )
        described = client.get("/v2/models/img").json()["inputs"][0]
    torch.testing.assert_close(raw, ready)
    torch.testing.assert_close(raw, expected(store, chain, (images / 255 - 0.5) / 0.25))
    assert described["datatype"] == "FP32"
    assert described["shape"] == [-1, 1, 2, 3]
    assert described["parameters"]["accepts"] == "UINT8"
    assert (described["parameters"]["mean"], described["parameters"]["std"]) == ([0.5], [0.25])


def test_a_batch_above_the_engines_cap_is_answered_whole(store: Store) -> None:
    chain = put_chain(store, put_block(store, linear(WIDTH, 3)), alias="flowers")
    rows = rows_of(200, 3)
    with running(store, limits=EngineLimits(max_batch=16)) as server, server.client() as client:
        answer = answer_of(client.post("/v2/models/flowers/infer", json=body_of(rows)))
    torch.testing.assert_close(answer, expected(store, chain, rows))


def test_several_inputs_and_outputs_keep_their_names(store: Store) -> None:
    pair = (*tensors(1), *tensors(2))
    swap = BlockSpec(op="test.swap", inputs=pair, outputs=pair[::-1])
    put_chain(store, put_block(store, swap), alias="swap")
    one = {"name": "input_0", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    two = {"name": "input_1", "shape": [1, 2], "datatype": "FP32", "data": [2.0, 3.0]}
    with running(store) as server, server.client() as client:
        both = client.post("/v2/models/swap/infer", json={"inputs": [two, one]}).json()["outputs"]
        body = {"inputs": [one, two], "outputs": [{"name": "output_1"}]}
        last = client.post("/v2/models/swap/infer", json=body).json()["outputs"]
    assert [(item["name"], item["data"]) for item in both] == [
        ("output_0", [2.0, 3.0]),
        ("output_1", [1.0]),
    ]
    assert last == [both[1]]


def test_a_flipped_byte_is_never_served(store: Store, tmp_path: Path) -> None:
    block = put_block(store, linear(WIDTH, 3))
    put_chain(store, block, alias="flowers")
    (file,) = tmp_path.rglob(block.weights)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with running(store) as server, server.client() as client:
        for _ in range(2):
            answer = client.post("/v2/models/flowers/infer", json=body_of(rows_of(1, 0)))
            assert answer.status_code == 500
            assert block.weights in answer.json()["error"]
            assert "damaged" in answer.json()["error"]
        assert server.engine.stats().chains == ()
        assert client.get("/v2/models/flowers/ready").status_code == 503
        direct = client.get(f"/v1/files/{block.weights}")
        assert direct.status_code == 500
        assert direct.json()["error"]["type"] == "CorruptArtifactError"
        assert client.get("/v1/verify").json() == [block.weights]


def test_models_are_loaded_listed_unloaded_and_loaded_again(store: Store) -> None:
    chain = put_chain(store, put_block(store, linear(WIDTH, 3)), alias="flowers")
    with running(store) as server, server.client() as client:
        metadata = client.get("/v2/models/flowers").json()
        assert metadata["versions"] == [chain.id]
        assert metadata["outputs"] == [{"name": "output_0", "datatype": "FP32", "shape": [-1, 3]}]
        assert client.get("/v2/models/flowers/ready").status_code == 503
        (entry,) = client.post("/v2/repository/index").json()
        assert (entry["name"], entry["state"]) == ("flowers", "UNAVAILABLE")
        assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        assert client.post("/v2/repository/models/flowers/load").json()["ready"]
        assert client.get(f"/v2/models/flowers/versions/{chain.id}/ready").status_code == 200
        (entry,) = client.post("/v2/repository/index", json={"ready": True}).json()
        assert entry == {"name": "flowers", "version": chain.id, "state": "READY", "reason": ""}
        client.post("/v2/repository/models/flowers/unload").raise_for_status()
        assert server.engine.stats().resident_blocks == 0
        answer_of(client.post("/v2/models/flowers/infer", json=body_of(rows_of(1, 0))))
        assert server.engine.stats().chains == (chain.id,)
        assert client.post("/v2/repository/models/nobody/load").status_code == 404


def test_the_least_used_model_makes_room(store: Store) -> None:
    chains = [
        put_chain(store, put_block(store, linear(WIDTH, 3), seed=seed), alias=f"m{seed}")
        for seed in range(3)
    ]
    with running(store, max_models=2) as server, server.client() as client:
        for index in (0, 1, 0, 2):
            answer_of(client.post(f"/v2/models/m{index}/infer", json=body_of(rows_of(1, 0))))
        assert set(server.engine.stats().chains) == {chains[0].id, chains[2].id}


def test_a_moved_alias_serves_the_new_chain(store: Store) -> None:
    first = put_chain(store, put_block(store, linear(WIDTH, 3), seed=1), alias="best")
    second = put_chain(store, put_block(store, linear(WIDTH, 3), seed=2))
    with running(store) as server, server.client() as client:
        for chain in (first, second):
            client.put("/v1/aliases/best", json={"chain": chain.id}).raise_for_status()
            answer = client.post("/v2/models/best/infer", json=body_of(rows_of(1, 0)))
            assert answer.json()["model_version"] == chain.id


def test_many_first_requests_load_a_model_once(store: Store) -> None:
    chain = put_chain(store, put_block(store, linear(WIDTH, 3)), alias="flowers")
    with running(store) as server, server.client() as client, ThreadPoolExecutor(16) as pool:
        url = "/v2/models/flowers/infer"
        sent = [pool.submit(client.post, url, json=body_of(rows_of(1, seed))) for seed in range(16)]
        for seed, answer in enumerate(item.result() for item in sent):
            torch.testing.assert_close(answer_of(answer), expected(store, chain, rows_of(1, seed)))
        assert server.engine.stats().resident_blocks == 1


def test_metrics_tell_what_happened(store: Store) -> None:
    chain = put_chain(store, put_block(store, linear(WIDTH, 3)), alias="flowers")
    with running(store) as server, server.client() as client:
        client.post("/v2/models/flowers/infer", json=body_of(rows_of(5, 0)))
        client.get("/v1/jobs/job_unknown")
        client.get("/nowhere")
        text = client.get("/metrics").text
    route = 'route="/v2/models/{name}/infer"'
    assert f'blockyard_requests_total{{method="POST",{route},status="200"}} 1.0' in text
    assert 'route="/v1/jobs/{job_id}",status="404"} 1.0' in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert f'blockyard_model_rows_total{{model="{chain.id}"}} 5.0' in text
    assert 'blockyard_engine_requests_total{ending="completed"} 1.0' in text
    assert "blockyard_loaded_blocks 1.0" in text
    assert "blockyard_queue_rows 0.0" in text
    assert f'blockyard_segment_rows_total{{segment="{chain.blocks[0].id[:12]}"}}' in text
