"""The functional hashes of many architectures at once, on several cores."""

from __future__ import annotations

import json
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any, Protocol, runtime_checkable

import torch

from nas.graph import drawing_key
from nas.identity import GraphSpace, network_signature
from nas.plugins import make_space
from nas.protocols import SearchSpace
from zoo.certificates import Signature
from zoo.errors import BlockyardError, InvalidInputError
from zoo.spec import Architecture, TensorSpec

_BLOCK = 2048
"""Lines read before the first is answered."""

_CHUNK = 32

Choices = tuple[int, ...]


@runtime_checkable
class ReadableSpace(Protocol):
    """A search space that reads what its ``summary`` writes."""

    def parse(self, text: str) -> Architecture: ...


def read_architecture(space: SearchSpace, text: str) -> Architecture:
    """Return the architecture that a line of text names.

    Args:
        space: Where it is from.
        text: What ``space.summary`` writes, or its choices as a JSON list.

    Raises:
        InvalidInputError: It is neither, or not of this space.
    """
    if text.lstrip().startswith("["):
        try:
            choices = tuple(json.loads(text))
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{text!r} is no JSON list of choices: {error}") from error
        architecture = Architecture(space=space.describe(), choices=choices)
    elif isinstance(space, ReadableSpace):
        architecture = space.parse(text)
    else:
        raise InvalidInputError(f"{text!r} is no JSON list, and this space reads nothing else")
    space.check(architecture)
    return architecture


@dataclass(frozen=True)
class _Batch:
    """Architectures under way: the keys of all, those that are new, and their signatures."""

    keys: list[str]
    fresh: list[str]
    signatures: Iterator[Signature]


class Hasher:
    """Hashes architectures of one space; knows those that it has seen.

    Args:
        space: Registered under its name, so that other processes can build it.
        inputs: Images of the networks.
        num_classes: Their logits.
        memo: Run networks of one canonical drawing once. The hashes are the same without.
        processes: How many to use; with 1 all is done in this one.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        inputs: TensorSpec,
        num_classes: int,
        memo: bool = True,
        processes: int = 1,
    ) -> None:
        self._space = space
        self._task = (inputs, num_classes)
        self._memo = memo and isinstance(space, GraphSpace)
        self._numbers = count()
        self._known: dict[str, str] = {}
        self._begun: set[str] = set()
        self._hashes: set[str] = set()
        self._open = ExitStack()
        self._pool: Executor | None = None
        if processes > 1:
            self._pool = self._open.enter_context(
                ProcessPoolExecutor(
                    processes,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_start,
                    initargs=(space.describe(), inputs.to_json(), num_classes),
                )
            )

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def lines(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield one hash a line, in order; a block is read while the one before is hashed.

        Raises:
            InvalidInputError: A line is no architecture; the message says which.
        """
        numbered = enumerate(texts, start=1)
        waiting: deque[_Batch] = deque()
        wrong: InvalidInputError | None = None
        while wrong is None and (block := list(islice(numbered, _BLOCK))):
            try:
                waiting.append(self._submit([self._read(number, text) for number, text in block]))
            except InvalidInputError as error:
                wrong = error
            if len(waiting) > 1:
                yield from self._collect(waiting.popleft())
        while waiting:
            yield from self._collect(waiting.popleft())
        if wrong is not None:
            raise wrong

    def hashes(self, architectures: Sequence[Architecture]) -> list[str]:
        """Return the hash of each; a hash that rounding may have moved is that of its kin."""
        return self._collect(self._submit(architectures))

    def _submit(self, architectures: Sequence[Architecture]) -> _Batch:
        """Start on what is new among ``architectures``."""
        if not self._memo:
            keys = [str(next(self._numbers)) for _ in architectures]
        else:
            keys = [self._drawing(item) for item in architectures]
        fresh = {
            key: item.choices
            for key, item in zip(keys, architectures, strict=True)
            if key not in self._known and key not in self._begun
        }
        self._begun.update(fresh)
        return _Batch(keys, list(fresh), self._run(list(fresh.values())))

    def _collect(self, batch: _Batch) -> list[str]:
        for key, signature in zip(batch.fresh, batch.signatures, strict=True):
            self._known[key] = signature.among(self._hashes)
            self._hashes.add(self._known[key])
        found = [self._known[key] for key in batch.keys]
        self._begun.difference_update(batch.fresh)
        if not self._memo:
            self._known.clear()
        return found

    def _read(self, number: int, text: str) -> Architecture:
        try:
            return read_architecture(self._space, text.strip())
        except BlockyardError as error:
            raise InvalidInputError(f"line {number}: {error}") from error

    def _drawing(self, architecture: Architecture) -> str:
        assert isinstance(self._space, GraphSpace)
        inputs, num_classes = self._task
        graph = self._space.graph(architecture, inputs=inputs, num_classes=num_classes)
        return drawing_key(graph)

    def _run(self, choices: Sequence[Choices]) -> Iterator[Signature]:
        if self._pool is None or len(choices) <= _CHUNK:  # too few to start processes for
            return _hash_all(self._space, self._task, choices)
        chunks = [choices[at : at + _CHUNK] for at in range(0, len(choices), _CHUNK)]
        return chain.from_iterable(self._pool.map(_hash_chunk, chunks))


def _hash_all(
    space: SearchSpace, task: tuple[TensorSpec, int], choices: Iterable[Choices]
) -> Iterator[Signature]:
    inputs, num_classes = task
    described = space.describe()
    for item in choices:
        architecture = Architecture(space=described, choices=item)
        yield network_signature(space, architecture, inputs=inputs, num_classes=num_classes)


_here: list[tuple[SearchSpace, tuple[TensorSpec, int]]] = []
"""What a process of the pool was started for."""


def _start(described: dict[str, Any], inputs: dict[str, Any], num_classes: int) -> None:
    torch.set_num_threads(1)
    space = make_space(described["name"], described["params"])
    _here.append((space, (TensorSpec.from_json(inputs), num_classes)))


def _hash_chunk(choices: Sequence[Choices]) -> list[Signature]:
    space, task = _here[0]
    return list(_hash_all(space, task, choices))
