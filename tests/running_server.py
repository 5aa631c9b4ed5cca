"""A real server on a free port for tests, and blocks small enough to reason about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from torch import Tensor, nn

from serving.api import ApiSettings, create_app
from serving.api.app import Announcer
from serving.api.server import Server, bind, url_of
from serving.engine import Engine, EngineLimits
from zoo.builders import build, register
from zoo.spec import Block, BlockSpec, Chain, TensorSpec
from zoo.store.protocols import Store
from zoo.weights import block_of

PATIENCE_S = 20.0

gate = threading.Event()
"""While it is clear, blocks of the operation ``test.gate`` hold the engine."""

held = threading.Event()
"""Set once a ``test.gate`` block waits."""


@register("test.linear")
def build_linear(spec: BlockSpec) -> nn.Module:
    (width_in,), (width_out,) = spec.inputs[0].shape, spec.outputs[0].shape
    assert width_in is not None
    assert width_out is not None
    return nn.Linear(width_in, width_out, dtype=getattr(torch, spec.inputs[0].dtype))


class Gate(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        if not gate.is_set():
            held.set()
            assert gate.wait(PATIENCE_S)
        return rows.clone()


@register("test.gate")
def build_gate(_: BlockSpec) -> nn.Module:
    return Gate()


class Flatten(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@register("test.flatten")
def build_flatten(_: BlockSpec) -> nn.Module:
    return Flatten()


class Swap(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return second.clone(), first.clone()


@register("test.swap")
def build_swap(_: BlockSpec) -> nn.Module:
    return Swap()


def tensors(*shape: int | None, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec(shape=shape, dtype=dtype),)


def linear(width_in: int, width_out: int, dtype: str = "float32") -> BlockSpec:
    return BlockSpec(
        op="test.linear",
        inputs=tensors(width_in, dtype=dtype),
        outputs=tensors(width_out, dtype=dtype),
    )


def passing(op: str, width: int) -> BlockSpec:
    return BlockSpec(op=op, inputs=tensors(width), outputs=tensors(width))


def put_block(store: Store, spec: BlockSpec, *, seed: int = 0) -> Block:
    """Add a block whose weights are a function of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(spec)
    block = block_of(spec, module, store.files)
    store.blocks.put_block(block)
    return block


def put_chain(
    store: Store, *blocks: Block, card: Mapping[str, Any] | None = None, alias: str | None = None
) -> Chain:
    chain = Chain(blocks=blocks, card=dict(card or {}))
    store.blocks.put_chain(chain)
    if alias is not None:
        store.blocks.set_alias(alias, chain.id)
    return chain


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers at ``url``."""

    url: str
    app: FastAPI
    engine: Engine
    store: Store
    server: Server

    def client(self, secret: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=PATIENCE_S,
            trust_env=False,
            verify=False,  # plain HTTP: loading CAs would take 0.2 s
            **options,
        )

    def key(self, *scopes: str, owner: str = "alice") -> str:
        return self.store.keys.create("test", owner=owner, scopes=scopes)[1]


@contextmanager
def running(
    store: Store,
    *,
    queue: Announcer | None = None,
    limits: EngineLimits | None = None,
    precision: str = "float32",
    **settings: Any,
) -> Iterator[Running]:
    """Serve ``store`` until the block ends; then drain."""
    gate.set()
    held.clear()
    chosen = ApiSettings(**{"port": 0, "name_cache_s": 0.0, "drain_s": 5.0, **settings})
    with Engine(device="cpu", limits=limits, precision=precision) as engine:
        app = create_app(chosen, store, queue=queue, engine=engine)
        listener = bind(chosen)
        url = url_of(listener).replace("0.0.0.0", "127.0.0.1")
        server = Server(app, chosen)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Running(url=url, app=app, engine=engine, store=store, server=server)
        finally:
            gate.set()
            server.stop()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition to hold, and fail if it does not in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
