"""The NAS-Bench-Macro space: eight layers, for each one of three operations.

``Architecture.choices`` holds for each layer an index into ``OPERATIONS``. The first layers
of the three stages halve the size and double the width. The string form is the eight
digits, ``01200212`` say, as in the published table.

Source:
    Su et al. (2021), "Prioritized Architecture Sampling with Monto-Carlo Tree Search",
    arXiv:2103.11922.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace, count
from nas.spaces.chain_graph import chain_graph
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.families import nasbench_macro as family
from zoo.spec import Architecture, BlockSpec, TensorSpec

OPERATIONS = tuple(family.OPERATIONS)

STAGES = (2, 3, 3)
"""Layers of each stage."""


@final
@dataclass(frozen=True)
class NasBenchMacroSpace(CategoricalSpace):
    """Eight layers of identity or one of two inverted bottlenecks: 6,561 networks.

    The published networks, and so the table, are of 32 channels.

    Args:
        channels: Width of the stem.

    Raises:
        InvalidInputError: ``channels`` is below 1.
    """

    channels: int = 32

    def __post_init__(self) -> None:
        count("channels", self.channels)

    def describe(self) -> dict[str, Json]:
        return {"name": "nas-bench-macro", "params": {"channels": self.channels}}

    def cardinalities(self) -> tuple[int, ...]:
        return (len(OPERATIONS),) * sum(STAGES)

    def summary(self, architecture: Architecture) -> str:
        self.check(architecture)
        return "".join(str(choice) for choice in architecture.choices)

    def parse(self, text: str) -> Architecture:
        digits = text.strip()
        legal = [str(at) for at in range(len(OPERATIONS))]
        if len(digits) != sum(STAGES) or not all(digit in legal for digit in digits):
            raise InvalidInputError(
                f"{text!r} is not {sum(STAGES)} digits, each one of {', '.join(legal)}"
            )
        return self.architecture([int(digit) for digit in digits])

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        self.check(architecture)
        operations = iter(architecture.choices)
        channels = self.channels
        specs = [family.stem_spec(inputs, channels=channels)]
        for layers in STAGES:
            channels *= 2
            for layer in range(layers):
                specs.append(
                    family.layer_spec(
                        specs[-1].outputs[0],
                        channels=channels,
                        stride=1 if layer else 2,
                        operation=OPERATIONS[next(operations)],
                    )
                )
        specs.append(family.head_spec(specs[-1].outputs[0], num_classes=num_classes))
        return tuple(specs)

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: every block one vertex."""
        specs = self.blocks(architecture, inputs=inputs, num_classes=num_classes)
        return chain_graph(specs, is_identity=_is_identity)


def _is_identity(spec: BlockSpec) -> bool:
    return spec.params.get("operation") == "identity" and spec.inputs == spec.outputs
