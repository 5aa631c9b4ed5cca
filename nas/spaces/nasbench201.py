"""The NAS-Bench-201 cell space: 15,625 cells, one repeated throughout the network.

``Architecture.choices`` holds one operation (an index into ``OPERATIONS``) for each of
``EDGES``, in the order of the usual string form:
``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|``.

Source:
    Dong and Yang (2020), "NAS-Bench-201: Extending the Scope of Reproducible Neural
    Architecture Search", arXiv:2001.00326.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace, count
from nas.spaces.nasbench201_graph import nasbench201_graph
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.nasbench201 import (
    EDGES,
    OPERATIONS,
    cell_spec,
    head_spec,
    reduction_spec,
    stem_spec,
)
from zoo.spec import Architecture, BlockSpec, TensorSpec

_EDGE = re.compile(r"(\w+)~(\d+)")


def cell_text(operations: Sequence[str]) -> str:
    """Write a cell in the usual string form; one operation for each of ``EDGES``."""
    nodes = []
    for node in (1, 2, 3):
        edges = [
            f"{name}~{source}"
            for name, (source, target) in zip(operations, EDGES, strict=True)
            if target == node
        ]
        nodes.append(f"|{'|'.join(edges)}|")
    return "+".join(nodes)


def parse_cell(text: str) -> tuple[str, ...]:
    """Return the operations of a cell in the order of ``EDGES``.

    Raises:
        InvalidInputError: ``text`` is not of the usual string form.
        UnknownNameError: It names another operation.
    """
    found: list[tuple[str, tuple[int, int]]] = []
    for node, part in enumerate(text.strip().split("+"), start=1):
        inside = part[1:-1] if len(part) > 1 and part[0] == part[-1] == "|" else ""
        for edge in inside.split("|"):
            match = _EDGE.fullmatch(edge)
            if match is not None:
                found.append((match[1], (int(match[2]), node)))
    if (
        tuple(where for _, where in found) != EDGES
        or cell_text([name for name, _ in found]) != text.strip()
    ):
        raise InvalidInputError(
            f"cell {text!r} is not of the form '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|'"
        )
    for name, _ in found:
        if name not in OPERATIONS:
            raise UnknownNameError("NAS-Bench-201 operation", name, OPERATIONS)
    return tuple(name for name, _ in found)


@final
@dataclass(frozen=True)
class NasBench201Space(CategoricalSpace):
    """The cells of NAS-Bench-201 in three stages, the size halved and the width doubled between.

    The published networks, and so the tables, are of 16 channels and 5 cells a stage.

    Args:
        channels: Width of the first stage.
        cells: Cells of a stage.

    Raises:
        InvalidInputError: A number is below 1.
    """

    channels: int = 16
    cells: int = 5

    def __post_init__(self) -> None:
        count("channels", self.channels)
        count("cells", self.cells)

    def describe(self) -> dict[str, Json]:
        params: dict[str, Json] = {"channels": self.channels, "cells": self.cells}
        return {"name": "nas-bench-201", "params": params}

    def cardinalities(self) -> tuple[int, ...]:
        return (len(OPERATIONS),) * len(EDGES)

    def operations(self, architecture: Architecture) -> tuple[str, ...]:
        """Return the operations in the order of ``EDGES``.

        Raises:
            InvalidInputError: The architecture is not of this space.
        """
        self.check(architecture)
        return tuple(OPERATIONS[choice] for choice in architecture.choices)

    def summary(self, architecture: Architecture) -> str:
        return cell_text(self.operations(architecture))

    def parse(self, text: str) -> Architecture:
        return self.architecture([OPERATIONS.index(name) for name in parse_cell(text)])

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        operations = self.operations(architecture)
        specs = [stem_spec(inputs, channels=self.channels)]
        for stage in range(3):
            channels = self.channels * 2**stage
            if stage:
                specs.append(reduction_spec(specs[-1].outputs[0], channels=channels))
            for _ in range(self.cells):
                cell = cell_spec(specs[-1].outputs[0], channels=channels, operations=operations)
                specs.append(cell)
        specs.append(head_spec(specs[-1].outputs[0], num_classes=num_classes))
        return tuple(specs)

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: one cell between stem and head."""
        return nasbench201_graph(
            self.operations(architecture),
            inputs=inputs,
            num_classes=num_classes,
            channels=self.channels,
            cells=self.cells,
        )
