"""The NAS-Bench-101 cell space: graphs of a few vertices and at most nine edges.

``Architecture.choices`` holds a bit for each possible edge, by target and then by source
((0, 1), (0, 2), (1, 2), (0, 3), …), and then an index into ``OPERATIONS`` for each
interior vertex. What lies on no path from the input to the output is pruned; an
architecture is legal if a path and at most nine edges remain. Many architectures are one
cell: ``model_hash`` says which.

The string form lists the vertices with what they read; 0 is the input:
``conv3x3-bn-relu(0) maxpool3x3(0,1) output(1,2)``.

Source:
    Ying et al. (2019), "NAS-Bench-101: Towards Reproducible Neural Architecture Search",
    arXiv:1902.09635. With five vertices it is the space of EC-NAS: Bakhtiarifard, Igel and
    Selvan (2022), arXiv:2210.06015.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import final

import numpy as np

from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace, count
from nas.spaces.nasbench101_graph import nasbench101_graph
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.nasbench101 import (
    OPERATIONS,
    Edges,
    cell_spec,
    head_spec,
    reduction_spec,
    stem_spec,
)
from zoo.spec import Architecture, BlockSpec, TensorSpec

MAX_VERTICES = 7
STACKS = 3

_VERTEX = re.compile(r"([\w-]+)\(([\d,]*)\)")


@dataclass(frozen=True)
class Cell:
    """Operations of the interior vertices, and edges; 0 is the input, the last the output."""

    operations: tuple[str, ...]
    edges: Edges

    def pruned(self) -> Cell | None:
        """Return the cell without what lies on no path; None if there is no path at all."""
        last = len(self.operations) + 1
        after, before = {0}, {last}
        for target, source in sorted((target, source) for source, target in self.edges):
            if source in after:
                after.add(target)
        for source, target in sorted(self.edges, reverse=True):
            if target in before:
                before.add(source)
        live = sorted(after & before)
        if live[:1] != [0] or live[-1] != last:
            return None
        number = {vertex: at for at, vertex in enumerate(live)}
        return Cell(
            operations=tuple(self.operations[vertex - 1] for vertex in live[1:-1]),
            edges=tuple(
                (number[source], number[target])
                for source, target in self.edges
                if source in number and target in number
            ),
        )

    def model_hash(self) -> str:
        """Return the published hash of a pruned cell: equal for isomorphic ones."""
        vertices = range(len(self.operations) + 2)
        labels = [-1, *(OPERATIONS.index(name) for name in self.operations), -2]
        sources = [[s for s, t in self.edges if t == vertex] for vertex in vertices]
        targets = [[t for s, t in self.edges if s == vertex] for vertex in vertices]
        hashes = [_md5(str((len(targets[v]), len(sources[v]), labels[v]))) for v in vertices]
        for _ in vertices:
            hashes = [
                _md5(
                    "|".join(
                        [
                            "".join(sorted(hashes[source] for source in sources[vertex])),
                            "".join(sorted(hashes[target] for target in targets[vertex])),
                            hashes[vertex],
                        ]
                    )
                )
                for vertex in vertices
            ]
        return _md5(str(sorted(hashes)))


@final
@dataclass(frozen=True)
class NasBench101Space(CategoricalSpace):
    """Cells of NAS-Bench-101 in three stacks, the size halved and the width doubled between.

    Args:
        vertices: Most vertices of a cell, input and output included: 3 to 7.
        edges: Most edges of a pruned cell.
        channels: Width of the first stack.
        cells: Cells of a stack.

    Raises:
        InvalidInputError: A number is out of range.
    """

    vertices: int = 5
    edges: int = 9
    channels: int = 128
    cells: int = 3

    def __post_init__(self) -> None:
        count("vertices", self.vertices, least=3, most=MAX_VERTICES)
        count("edges", self.edges)
        count("channels", self.channels, least=self.vertices - 2)
        count("cells", self.cells)

    @cached_property
    def pairs(self) -> Edges:
        """The possible edges, in the order of the choices."""
        return tuple(
            (source, target) for target in range(1, self.vertices) for source in range(target)
        )

    def describe(self) -> dict[str, Json]:
        names = ("vertices", "edges", "channels", "cells")
        return {"name": "nas-bench-101", "params": {name: getattr(self, name) for name in names}}

    def cardinalities(self) -> tuple[int, ...]:
        return (2,) * len(self.pairs) + (len(OPERATIONS),) * (self.vertices - 2)

    def size(self) -> int:
        return self._wirings * len(OPERATIONS) ** (self.vertices - 2)

    def cell(self, architecture: Architecture) -> Cell:
        """Return the pruned cell.

        Raises:
            InvalidInputError: The architecture is not of this space.
        """
        self.check(architecture)
        pruned = self._cell(architecture.choices).pruned()
        assert pruned is not None
        return pruned

    def model_hash(self, architecture: Architecture) -> str:
        """Return the published hash of the cell, equal for isomorphic ones."""
        return self.cell(architecture).model_hash()

    def encode(self, cell: Cell) -> Architecture:
        """Return an architecture of ``cell``; a smaller one gets vertices that nothing reads.

        Raises:
            InvalidInputError: The cell has too many vertices or edges, an edge that leads
                backwards, or no path from input to output.
            UnknownNameError: An operation is not one of ``OPERATIONS``.
        """
        for name in cell.operations:
            if name not in OPERATIONS:
                raise UnknownNameError("NAS-Bench-101 operation", name, OPERATIONS)
        missing = self.vertices - 2 - len(cell.operations)
        last = len(cell.operations) + 1
        moved = {
            (source, target + missing if target == last else target)
            for source, target in cell.edges
        }
        if missing < 0 or not moved <= set(self.pairs):
            raise InvalidInputError(
                f"a cell of {last + 1} vertices with edges {list(cell.edges)} does not fit "
                f"into {self.vertices} vertices, each reading earlier ones"
            )
        operations = [*(OPERATIONS.index(name) for name in cell.operations), *[0] * missing]
        found = self.architecture([*(int(pair in moved) for pair in self.pairs), *operations])
        self.check(found)
        return found

    def summary(self, architecture: Architecture) -> str:
        cell = self.cell(architecture)
        return " ".join(
            f"{name}({','.join(str(s) for s, t in sorted(cell.edges) if t == vertex)})"
            for vertex, name in enumerate([*cell.operations, "output"], start=1)
        )

    def parse(self, text: str) -> Architecture:
        matches = [_VERTEX.fullmatch(part) for part in text.split()]
        found = [match for match in matches if match is not None]
        if not found or len(found) < len(matches) or found[-1][1] != "output":
            raise InvalidInputError(
                f"cell {text!r} is not of the form 'maxpool3x3(0) conv3x3-bn-relu(0,1) output(2)'"
            )
        edges = tuple(
            (int(source), vertex)
            for vertex, match in enumerate(found, start=1)
            for source in match[2].split(",")
            if source
        )
        return self.encode(Cell(tuple(match[1] for match in found[:-1]), edges))

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        cell = self.cell(architecture)
        specs = [stem_spec(inputs, channels=self.channels)]
        for stack in range(STACKS):
            if stack:
                specs.append(reduction_spec(specs[-1].outputs[0]))
            for _ in range(self.cells):
                specs.append(
                    cell_spec(
                        specs[-1].outputs[0],
                        channels=self.channels * 2**stack,
                        operations=cell.operations,
                        edges=cell.edges,
                    )
                )
        specs.append(head_spec(specs[-1].outputs[0], num_classes=num_classes))
        return tuple(specs)

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: one cell between stem and head."""
        cell = self.cell(architecture)
        return nasbench101_graph(
            cell.operations,
            cell.edges,
            inputs=inputs,
            num_classes=num_classes,
            channels=self.channels,
            cells=self.cells,
        )

    def _cell(self, choices: tuple[int, ...]) -> Cell:
        bits, operations = choices[: len(self.pairs)], choices[len(self.pairs) :]
        return Cell(
            operations=tuple(OPERATIONS[choice] for choice in operations),
            edges=tuple(pair for pair, bit in zip(self.pairs, bits, strict=True) if bit),
        )

    def _fault(self, choices: tuple[int, ...]) -> str | None:
        pruned = self._cell(choices).pruned()
        if pruned is None:
            return "no path leads from the input of the cell to its output"
        if len(pruned.edges) > self.edges:
            return f"the cell has {len(pruned.edges)} edges; at most {self.edges} are allowed"
        return None

    @cached_property
    def _wirings(self) -> int:
        """The number of legal sets of edges, all of them tried at once."""
        masks = np.arange(2 ** len(self.pairs), dtype=np.int32)
        edge = {pair: (masks >> at & 1).astype(bool) for at, pair in enumerate(self.pairs)}
        last = self.vertices - 1
        after = [np.ones(len(masks), dtype=bool)]
        for target in range(1, self.vertices):
            after.append(np.any([after[s] & edge[s, target] for s in range(target)], axis=0))
        before = {last: np.ones(len(masks), dtype=bool)}
        for source in range(last - 1, -1, -1):
            later = range(source + 1, self.vertices)
            before[source] = np.any([before[t] & edge[source, t] for t in later], axis=0)
        kept = np.zeros(len(masks), dtype=np.int8)
        for source, target in combinations(range(self.vertices), 2):
            kept += edge[source, target] & after[source] & before[target]
        return int(np.count_nonzero(after[last] & (kept <= self.edges)))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
