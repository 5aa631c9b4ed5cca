"""The functional hashes of many architectures at once, on several cores."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
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
        self._memo: dict[str, str] | None = {} if memo and isinstance(space, GraphSpace) else None
        self._known: set[str] = set()
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
        """Yield one hash a line, in order.

        Raises:
            InvalidInputError: A line is no architecture; the message says which.
        """
        numbered = enumerate(texts, start=1)
        while block := list(islice(numbered, _BLOCK)):
            yield from self.hashes([self._read(number, text) for number, text in block])

    def hashes(self, architectures: Sequence[Architecture]) -> list[str]:
        """Return the hash of each; a hash that rounding may have moved is that of its kin."""
        known: dict[str, str] = {}
        keys = list(map(str, range(len(architectures))))
        if self._memo is not None:
            known = self._memo
            keys = [self._drawing(item) for item in architectures]
        fresh = {
            key: item.choices
            for key, item in zip(keys, architectures, strict=True)
            if key not in known
        }
        for key, signature in zip(fresh, self._run(list(fresh.values())), strict=True):
            known[key] = signature.among(self._known)
            self._known.add(known[key])
        return [known[key] for key in keys]

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
            yield from _hash_all(self._space, self._task, choices)
            return
        chunks = [choices[at : at + _CHUNK] for at in range(0, len(choices), _CHUNK)]
        for found in self._pool.map(_hash_chunk, chunks):
            yield from found


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
