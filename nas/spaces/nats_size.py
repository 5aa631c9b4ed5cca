"""The NATS-Bench size space: one cell, five layers, the width of each chosen.

``Architecture.choices`` holds for each layer the index of its width in ``widths``. Layers
1 and 3 (from 0) are the reductions. The string form is ``8:16:64:32:8``.

Source:
    Dong et al. (2021), "NATS-Bench: Benchmarking NAS Algorithms for Architecture Topology
    and Size", arXiv:2009.00437.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace, count
from nas.spaces.chain_graph import chain_graph
from nas.spaces.nasbench201 import parse_cell
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.families.nasbench201 import cell_spec, head_spec, reduction_spec, stem_spec
from zoo.spec import Architecture, BlockSpec, TensorSpec

CELL = parse_cell(
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)
"""The operations of every cell."""

WIDTHS = (8, 16, 24, 32, 40, 48, 56, 64)

LAYERS = 5
REDUCTIONS = (1, 3)


@final
@dataclass(frozen=True)
class NatsSizeSpace(CategoricalSpace):
    """Five layers of a fixed cell, each of a chosen width: 32,768 networks as published.

    Args:
        widths: Widths to choose from, ascending.

    Raises:
        InvalidInputError: ``widths`` is empty, not ascending, or not of positive integers.
    """

    widths: tuple[int, ...] = WIDTHS

    def __post_init__(self) -> None:
        if isinstance(self.widths, str) or not isinstance(self.widths, Sequence):
            raise InvalidInputError(f"widths is {self.widths!r}; give a list of integers")
        object.__setattr__(self, "widths", tuple(count("a width", item) for item in self.widths))
        if not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise InvalidInputError(f"widths are {list(self.widths)}; give ascending integers")

    def describe(self) -> dict[str, Json]:
        return {"name": "nats-bench-size", "params": {"widths": list(self.widths)}}

    def cardinalities(self) -> tuple[int, ...]:
        return (len(self.widths),) * LAYERS

    def channels(self, architecture: Architecture) -> tuple[int, ...]:
        """Return the width of every layer.

        Raises:
            InvalidInputError: The architecture is not of this space.
        """
        self.check(architecture)
        return tuple(self.widths[choice] for choice in architecture.choices)

    def summary(self, architecture: Architecture) -> str:
        return ":".join(str(channels) for channels in self.channels(architecture))

    def parse(self, text: str) -> Architecture:
        known = {str(channels): at for at, channels in enumerate(self.widths)}
        parts = text.strip().split(":")
        if len(parts) != LAYERS or not all(part in known for part in parts):
            raise InvalidInputError(
                f"{text!r} is not {LAYERS} of the widths {', '.join(known)} with colons between"
            )
        return self.architecture([known[part] for part in parts])

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        widths = self.channels(architecture)
        specs = [stem_spec(inputs, channels=widths[0])]
        for layer, channels in enumerate(widths):
            given = specs[-1].outputs[0]
            if layer in REDUCTIONS:
                specs.append(reduction_spec(given, channels=channels))
            else:
                specs.append(cell_spec(given, channels=channels, operations=CELL))
        specs.append(head_spec(specs[-1].outputs[0], num_classes=num_classes))
        return tuple(specs)

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: every block one vertex."""
        specs = self.blocks(architecture, inputs=inputs, num_classes=num_classes)
        return chain_graph(specs)
