"""Search spaces cut into blocks that are trained and ranked one after another.

A *path* is one choice a layer of a block. What a layer computes may depend on the choices
up to it, never on later ones: paths that begin alike share work, as a trie.

``Blockwise`` is what a space offers to block-wise methods. A space of one's own has a
method ``blockwise`` that returns one (``BlockwiseSpace``).
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from nas.protocols import SearchSpace
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, BlockSpec, TensorSpec

Path: TypeAlias = tuple[int, ...]
"""One choice for each layer of a block."""

MOST_PATHS = 200_000
"""Paths of a block at most: each is run, and scored with statistics of its own."""


class SearchBlock(nn.Module, abc.ABC):
    """One searched block: all operations of its layers, sharing weights between paths."""

    @abc.abstractmethod
    def layer(self, x: Tensor, path: Path, depth: int) -> Tensor:
        """Run layer ``depth`` of ``path`` on images; depends on ``path[: depth + 1]`` alone."""

    @abc.abstractmethod
    def part(self, path: Path, depth: int) -> nn.Module:
        """Return a module that holds all that ``layer`` runs; it may hold more."""

    def forward(self, x: Tensor, path: Path) -> Tensor:
        """Run a whole path: ``(batch, channels, height, width)`` to the block's output."""
        for depth in range(len(path)):
            x = self.layer(x, path, depth)
        return x


class Blockwise(abc.ABC):
    """One way to cut a space into blocks.

    An *interface* is an integer that says all that the next block must know of the one
    before it: which paths are legal, the shape of its input, and so what its paths cost.
    The first block's is ``start``.
    """

    start: int = 0

    @property
    @abc.abstractmethod
    def num_blocks(self) -> int: ...

    @abc.abstractmethod
    def paths(self, block: int, interface: int) -> tuple[Path, ...]:
        """Return every legal path of ``block`` after ``interface``, in a fixed order."""

    @abc.abstractmethod
    def interface(self, block: int, path: Path) -> int:
        """Return the interface that ``path`` leaves to the next block."""

    def computed(self, block: int, path: Path) -> Path:
        """Return what ``path`` says of the operations that it runs.

        Paths that differ only in what they tell the next block run the same, and so have one
        score; a space that has such paths overrides this.
        """
        return path

    @abc.abstractmethod
    def join(self, paths: Sequence[Path]) -> Architecture:
        """Return the architecture of one path a block."""

    @abc.abstractmethod
    def split(self, architecture: Architecture) -> tuple[Path, ...]:
        """Return the paths of an architecture, one a block."""

    @abc.abstractmethod
    def stem(self, inputs: TensorSpec) -> nn.Module:
        """Build what is before the first block, or an identity, on images ``inputs``."""

    @abc.abstractmethod
    def block(self, block: int, interface: int, inputs: TensorSpec) -> SearchBlock:
        """Build the shared weights of all paths of ``block`` after ``interface``.

        ``inputs`` are the images that the whole network takes.
        """

    @abc.abstractmethod
    def output(self, block: int, interface: int) -> tuple[int, int]:
        """Return channels and shrinkage of what a path that leaves ``interface`` returns.

        Shrinkage is the factor by which images may still shrink to be as small as the
        network's smallest, 1 where a method need not shrink them.
        """

    @abc.abstractmethod
    def specs(
        self, block: int, interface: int, path: Path, inputs: TensorSpec
    ) -> tuple[BlockSpec, ...]:
        """Describe a path as derived, on ``inputs``; the first block's begins with the stem."""

    @abc.abstractmethod
    def tail(self, inputs: TensorSpec, *, num_classes: int) -> tuple[BlockSpec, ...]:
        """Describe what is after the last block."""


@runtime_checkable
class BlockwiseSpace(SearchSpace, Protocol):
    """A search space that says how it is cut into blocks."""

    def blockwise(self) -> Blockwise: ...


def states(cut: Blockwise) -> Iterator[tuple[int, int]]:
    """Yield every block with every interface that legal paths may leave before it."""
    interfaces = {cut.start}
    for block in range(cut.num_blocks):
        yield from ((block, interface) for interface in sorted(interfaces))
        interfaces = {
            cut.interface(block, path)
            for interface in interfaces
            for path in cut.paths(block, interface)
        }


def rankable(count: int) -> None:
    """Refuse a block of so many paths, before they are listed, if they are too many to be ranked.

    Raises:
        InvalidInputError: They are more than ``MOST_PATHS``.
    """
    if count > MOST_PATHS:
        raise InvalidInputError(
            f"a block has {count:,} paths, all of which are ranked; give it fewer layers or "
            f"options (at most {MOST_PATHS:,} paths)"
        )


def all_paths(options: Sequence[int]) -> tuple[Path, ...]:
    """Return every path of a block whose layers choose independently, in lexical order."""
    return tuple(product(*(range(count) for count in options)))


def cut(choices: Sequence[int], layers: Sequence[int]) -> tuple[Path, ...]:
    """Cut the choices of consecutive layers into paths of so many layers a block."""
    paths, at = [], 0
    for count in layers:
        paths.append(tuple(choices[at : at + count]))
        at += count
    return tuple(paths)
