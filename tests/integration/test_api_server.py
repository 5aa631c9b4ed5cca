"""The server as a process: its address, its end, and a port that is taken."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from serving.api import ApiSettings, serve
from serving.api.server import bind, url_of
from tests.running_server import until
from zoo.errors import EnvironmentUnfitError, PortInUseError

PROGRAM = """
import sys, time
from pathlib import Path

import torch
from torch import nn

from serving.api import ApiSettings, create_app, serve
from serving.engine import Engine
from zoo.builders import register
from zoo.spec import Block, BlockSpec, Chain, TensorSpec
from zoo.store import open_store
from zoo.weights import block_of

folder, nap_s, drain_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])


class Slow(nn.Module):
    def forward(self, rows):
        if (folder / "slow").exists():
            (folder / "running").touch()
            time.sleep(nap_s)
        return rows.clone()


@register("slow")
def build_slow(spec):
    return Slow()


store = open_store(f"sqlite:///{folder}/zoo.db")
ports = (TensorSpec(shape=(1,)),)
spec = BlockSpec(op="slow", inputs=ports, outputs=ports)
block = block_of(spec, Slow(), store.files)
store.blocks.put_block(block)
chain = Chain(blocks=(block,))
store.blocks.put_chain(chain)
store.blocks.set_alias("slow", chain.id)
settings = ApiSettings(port=0, drain_s=drain_s)
with Engine(device="cpu") as engine:
    serve(create_app(settings, store, queue=None, engine=engine), settings)
store.close()
print("closed in order", flush=True)
"""

BODY = {"inputs": [{"name": "input_0", "shape": [1, 1], "datatype": "FP32", "data": [7.0]}]}


class Process:
    """A server process with one slow model, loaded."""

    def __init__(self, folder: Path, nap_s: float, drain_s: float) -> None:
        self.folder = folder
        arguments = [sys.executable, "-c", PROGRAM, str(folder), str(nap_s), str(drain_s)]
        self.handle = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.handle.stdout is not None
        line = self.handle.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + self.handle.stdout.read()
        self.url = found.group()

    def post(self) -> httpx.Response:
        return httpx.post(f"{self.url}/v2/models/slow/infer", json=BODY, timeout=30)

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=30).text

    def load(self) -> None:
        assert self.post().status_code == 200
        (self.folder / "slow").touch()

    def output(self) -> str:
        return self.handle.communicate(timeout=30)[0]


@contextmanager
def process(folder: Path, *, nap_s: float = 0.7, drain_s: float = 20) -> Iterator[Process]:
    started = Process(folder, nap_s, drain_s)
    try:
        yield started
    finally:
        started.handle.kill()
        started.handle.wait()
        assert started.handle.stdout is not None
        started.handle.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_then_ends_in_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    with process(tmp_path) as server, ThreadPoolExecutor(4) as pool:
        server.load()
        answers = [pool.submit(server.post) for _ in range(4)]
        until(lambda: "blockyard_active_requests 4.0" in server.metrics())
        server.handle.send_signal(number)
        assert [answer.result().status_code for answer in answers] == [200] * 4
        assert answers[0].result().json()["outputs"][0]["data"] == [7.0]
        output = server.output()
        assert server.handle.returncode == 0, output
        assert output.strip() == "closed in order"
        with pytest.raises(httpx.ConnectError):
            server.post()


def test_a_request_that_outlives_the_drain_is_given_up(tmp_path: Path) -> None:
    with process(tmp_path, nap_s=2.5, drain_s=1) as server, ThreadPoolExecutor(1) as pool:
        server.load()
        answer = pool.submit(server.post)
        until((tmp_path / "running").exists)
        server.handle.terminate()
        failed = answer.exception() or answer.result().status_code
        assert failed != 200
        server.output()
        assert server.handle.returncode == 0


def test_a_port_that_is_taken_is_named_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError) as refused:
            serve(FastAPI(), ApiSettings(port=port))
    message = str(refused.value)
    assert f"127.0.0.1:{port}" in message
    assert "another port" in message
    assert "\n" not in message


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(EnvironmentUnfitError, match=host):
        bind(ApiSettings(host=host, port=0))


def test_port_0_takes_a_free_port_each_time() -> None:
    with bind(ApiSettings(port=0)) as first, bind(ApiSettings(port=0)) as second:
        assert url_of(first) != url_of(second)
        assert url_of(first).startswith("http://127.0.0.1:")
