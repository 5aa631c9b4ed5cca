"""One suite a seam, run over every implementation.

A contract is a test class that names its ``implementations`` and takes ``make_store``.
An implementation is one entry of ``OPENERS``: it gets the test's request and the
options of ``zoo.store.open_store``, and returns a store and how to close it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info
from safetensors.numpy import save

from zoo.canonical import Json
from zoo.remote import HttpStore
from zoo.spec import Block, BlockSpec, Chain, TensorSpec
from zoo.store import open_store
from zoo.store.protocols import Store

MakeStore = Callable[..., Any]
Opened = tuple[Any, Callable[[], None]]


def open_sqlite(request: pytest.FixtureRequest, options: Mapping[str, Any]) -> Opened:
    folder: Path = request.getfixturevalue("tmp_path")
    opened = open_store(f"sqlite:///{folder}/zoo.db", **options)
    return opened, opened.close


def open_postgres(request: pytest.FixtureRequest, options: Mapping[str, Any]) -> Opened:
    url = request.getfixturevalue("new_database")()
    opened = open_store(url, files=request.getfixturevalue("tmp_path") / "files", **options)
    return opened, opened.close


def open_http(request: pytest.FixtureRequest, options: Mapping[str, Any]) -> Opened:
    """A real server over SQLite; who announces workers does so at the database, as ever."""
    from tests.running_server import running

    database, close = open_sqlite(request, options)
    stack = ExitStack()
    stack.callback(close)
    server = stack.enter_context(running(database))
    remote = stack.enter_context(HttpStore(server.url))
    parts = {name: getattr(remote, name) for name in ("files", "blocks", "jobs", "keys")}
    return SimpleNamespace(**parts, devices=database.devices), stack.close


OPENERS: dict[str, Callable[[pytest.FixtureRequest, Mapping[str, Any]], Opened]] = {
    "sqlite": open_sqlite,
    "postgres": open_postgres,
    "http": open_http,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "make_store" in metafunc.fixturenames:
        implementations = getattr(metafunc.cls, "implementations", tuple(OPENERS))
        metafunc.parametrize("make_store", implementations, indirect=True)


@pytest.fixture
def make_store(request: pytest.FixtureRequest) -> Iterator[MakeStore]:
    """Open a store of the implementation under test; options as of ``open_store``."""
    closers = []

    def make(**options: Any) -> Store:
        opened, close = OPENERS[request.param](request, options)
        closers.append(close)
        return opened

    yield make
    for close in reversed(closers):
        close()


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_block() -> Callable[..., Block]:
    """Make a block with stored weights; ``value`` makes it differ from others."""

    def make(store: Any, value: int = 0, **changes: Any) -> Block:
        interface = (TensorSpec(shape=(4,)),)
        spec = BlockSpec(op="test.op", params={"v": value}, inputs=interface, outputs=interface)
        values: dict[str, Any] = {
            "spec": spec,
            "weights": store.files.put(save({"w": np.full(4, value, np.float32)})),
            "num_params": 10 + value,
            "size_bytes": 40 + value,
        }
        return Block(**(values | changes))

    return make


@pytest.fixture
def onnx_file() -> bytes:
    """The smallest ONNX model: it passes a row of four numbers on."""
    ports = [make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = make_graph([make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:])
    data: bytes = make_model(graph).SerializeToString()
    return data


@pytest.fixture
def put_chain(make_block: Callable[..., Block]) -> Callable[..., Chain]:
    """Put a chain of blocks made from ``values``."""

    def put(store: Any, *values: int, card: Mapping[str, Json] | None = None, **how: Any) -> Chain:
        blocks = [make_block(store, value) for value in values]
        for block in blocks:
            store.blocks.put_block(block, job=how.get("job"))
        chain = Chain(blocks=tuple(blocks), card=card or {})
        store.blocks.put_chain(chain, **how)
        return chain

    return put
