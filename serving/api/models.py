"""Models as the server knows them: names of chains in the zoo, loaded on first use."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool
from torch import Tensor, nn

from serving.api.ports import Interface, interface
from serving.engine import Engine, EngineBlock
from serving.router import Router
from zoo.errors import NotFoundError
from zoo.spec import Chain
from zoo.store.protocols import Store
from zoo.weights import load_block

REMEMBERED = 4096


@dataclass(frozen=True, kw_only=True)
class Model:
    """A chain with its interface as served."""

    chain: Chain
    ports: Interface

    @property
    def id(self) -> str:
        return self.chain.id


class Models:
    """Resolves names and keeps at most ``capacity`` chains in the engine, the least used
    leaving first.

    All methods run on the event loop's thread; reading the store and loading weights
    happen in worker threads. Weights are verified against their digests when they are
    read, so a corrupt file keeps its model from loading.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        *,
        capacity: int,
        name_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._engine = engine
        self._capacity = capacity
        self._ttl_s = name_ttl_s
        self._clock = clock
        self._router = Router(())
        self._routes_expire = -math.inf
        self._known: dict[str, tuple[Model, float]] = {}
        self._loaded: OrderedDict[str, Model] = OrderedDict()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._modules: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()

    @property
    def loaded(self) -> tuple[Model, ...]:
        """The models in the engine, the least recently used first."""
        return tuple(self._loaded.values())

    async def find(self, name: str, version: str | None = None) -> Model:
        """Return the model that a name (alias, chain id or its prefix) stands for now.

        Raises:
            NotFoundError: No chain has the name, or it has another version; a model's
                one version is the id of its chain.
        """
        ref = await self._route(name)
        model, expires = self._known.get(ref, (None, -math.inf))
        if model is None or self._clock() >= expires:
            chain = await run_in_threadpool(self._store.blocks.chain, ref)
            model = Model(chain=chain, ports=interface(chain.inputs, chain.outputs, chain.card))
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[ref] = (model, self._clock() + self._ttl_s)
        if version is not None and version != model.id:
            raise NotFoundError(f"model {name} has no version {version}; it is now {model.id}")
        return model

    def ready(self, model: Model) -> bool:
        """Say whether the model is in the engine now."""
        return model.id in self._loaded

    async def load(self, model: Model) -> None:
        """Bring the model into the engine, unless it is there; several callers load once.

        Raises:
            CorruptArtifactError: A weights file does not match its digest.
            UnknownNameError: No plug-in here builds one of its blocks.
        """
        if model.id in self._loaded:
            self._loaded.move_to_end(model.id)
            return
        task = self._loading.get(model.id)
        if task is None:
            task = asyncio.create_task(self._load(model))
            self._loading[model.id] = task
            task.add_done_callback(lambda done: self._forget(model.id, done))
        await asyncio.shield(task)

    async def unload(self, model: Model) -> None:
        """Take the model out of the engine once its requests are done."""
        if self._loaded.pop(model.id, None) is not None:
            await run_in_threadpool(self._engine.unload, model.id)

    async def submit(
        self, model: Model, inputs: tuple[Tensor, ...], *, deadline: float, tenant: str
    ) -> Future[tuple[Tensor, ...]]:
        """Queue a batch, loading the model first if need be.

        Raises:
            OverloadedError: The engine's queue is full.
        """
        for _ in range(2):
            await self.load(model)
            try:
                return self._engine.submit(model.id, inputs, deadline=deadline, tenant=tenant)
            except NotFoundError:
                self._loaded.pop(model.id, None)  # it left between loading and queueing
        raise NotFoundError(f"model {model.id} was unloaded while this request waited; send again")

    async def _route(self, name: str) -> str:
        """Return the chain id behind an alias; other names are left to the store."""
        if self._clock() >= self._routes_expire:
            aliases = await run_in_threadpool(self._store.blocks.aliases)
            self._router = Router(set(aliases.values()), aliases)
            self._routes_expire = self._clock() + self._ttl_s
        try:
            return self._router.route(name)
        except NotFoundError:
            return name

    async def _load(self, model: Model) -> None:
        blocks = await run_in_threadpool(self._blocks, model.chain)
        await run_in_threadpool(self._engine.load, model.id, blocks)
        self._loaded[model.id] = model
        while len(self._loaded) > self._capacity:
            oldest, _ = self._loaded.popitem(last=False)
            await run_in_threadpool(self._engine.unload, oldest)

    def _blocks(self, chain: Chain) -> list[EngineBlock]:
        blocks = []
        for block in chain.blocks:
            module = self._modules.get(block.id)
            if module is None:
                module = load_block(block, self._store.files)
                self._modules[block.id] = module
            blocks.append(
                EngineBlock(
                    id=block.id,
                    module=module,
                    inputs=block.spec.inputs,
                    outputs=block.spec.outputs,
                )
            )
        return blocks

    def _forget(self, chain_id: str, task: asyncio.Task[None]) -> None:
        del self._loading[chain_id]
        if not task.cancelled():
            task.exception()  # read, so that a failure nobody waited for is not logged
