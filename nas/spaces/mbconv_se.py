"""The MBConv space of BossNAS: five stages of inverted bottlenecks with squeeze and excitation.

``Architecture.choices`` holds for each layer an index into ``OPERATIONS``. Before the searched
stages are the stem and a block that does not expand, after them a fixed stage of one block
and the 1x1 convolution. The string form is the digits, stages apart by bars.

Source:
    Li et al. (2021), "BossNAS", arXiv:2103.12424; the widths are those of Tan and Le (2019),
    "EfficientNet", arXiv:1905.11946.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from nas.blockwise import cut
from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace, count
from nas.spaces.chain_graph import chain_graph
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.families.mbconv import classifier_spec
from zoo.families.mbconv_se import block_spec, conv_spec
from zoo.spec import Architecture, BlockSpec, TensorSpec

OPERATIONS = ((6, 3), (6, 5), (3, 3), (3, 5))
"""Expansion and kernel of each operation."""

SQUEEZE = 0.25


@final
@dataclass(frozen=True)
class MBConvSESpace(CategoricalSpace):
    """Inverted bottlenecks, each of expansion 6 or 3 and kernel 3 or 5: 4^18 networks.

    Args:
        widths: Channels of each searched stage.
        layers: Searched layers of each stage; the first one has the stage's stride.
        strides: Stride of each stage.
        stem: Channels of the stem.
        stem_stride: Its stride; 1 for small images.
        first: Channels of the block after the stem.
        last: Channels of the fixed block after the stages.
        features: Channels of the 1x1 convolution before the classifier.

    Raises:
        InvalidInputError: The stages disagree in number, or a number is out of range.
    """

    widths: tuple[int, ...] = (24, 40, 80, 112, 192)
    layers: tuple[int, ...] = (2, 4, 4, 4, 4)
    strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    stem: int = 32
    stem_stride: int = 2
    first: int = 16
    last: int = 320
    features: int = 1280

    def __post_init__(self) -> None:
        for name in ("widths", "layers", "strides"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence) or not given:
                raise InvalidInputError(f"{name} is {given!r}; give a list of integers")
            most = 2 if name == "strides" else None
            values = tuple(count(f"{name}[{at}]", item, most=most) for at, item in enumerate(given))
            object.__setattr__(self, name, values)
        for name in ("stem", "first", "last", "features"):
            count(name, getattr(self, name))
        count("stem_stride", self.stem_stride, most=2)
        if not len(self.widths) == len(self.layers) == len(self.strides):
            raise InvalidInputError(
                f"there are {len(self.widths)} widths, {len(self.layers)} numbers of layers and "
                f"{len(self.strides)} strides; give one of each for every stage"
            )

    def describe(self) -> dict[str, Json]:
        return {
            "name": "mbconv-se",
            "params": {
                "widths": list(self.widths),
                "layers": list(self.layers),
                "strides": list(self.strides),
                "stem": self.stem,
                "stem_stride": self.stem_stride,
                "first": self.first,
                "last": self.last,
                "features": self.features,
            },
        }

    def cardinalities(self) -> tuple[int, ...]:
        return (len(OPERATIONS),) * sum(self.layers)

    def summary(self, architecture: Architecture) -> str:
        self.check(architecture)
        return "|".join("".join(map(str, path)) for path in cut(architecture.choices, self.layers))

    def parse(self, text: str) -> Architecture:
        digits = text.replace("|", "").strip()
        legal = [str(at) for at in range(len(OPERATIONS))]
        if len(digits) != sum(self.layers) or not all(digit in legal for digit in digits):
            raise InvalidInputError(
                f"{text!r} is not {sum(self.layers)} digits, each one of {', '.join(legal)}"
            )
        return self.architecture([int(digit) for digit in digits])

    def before(self, inputs: TensorSpec) -> tuple[BlockSpec, ...]:
        """Return the two fixed blocks before the searched ones."""
        stem = conv_spec(inputs, channels=self.stem, kernel=3, stride=self.stem_stride)
        first = block_spec(
            stem.outputs[0], channels=self.first, expand=1, kernel=3, stride=1, squeeze=SQUEEZE
        )
        return stem, first

    def layer(self, position: int, choice: int, inputs: TensorSpec) -> BlockSpec:
        """Describe searched layer ``position`` as operation ``choice``."""
        at = 0
        for width, depth, stride in zip(self.widths, self.layers, self.strides, strict=True):
            if position < at + depth:
                expand, kernel = OPERATIONS[choice]
                return block_spec(
                    inputs,
                    channels=width,
                    expand=expand,
                    kernel=kernel,
                    stride=stride if position == at else 1,
                    squeeze=SQUEEZE,
                )
            at += depth
        raise InvalidInputError(f"there is no layer {position}; there are {at}")

    def after(self, inputs: TensorSpec, num_classes: int) -> tuple[BlockSpec, ...]:
        """Return the fixed blocks after the searched ones."""
        last = block_spec(inputs, channels=self.last, expand=6, kernel=3, stride=1, squeeze=SQUEEZE)
        conv = conv_spec(last.outputs[0], channels=self.features, kernel=1, stride=1)
        return last, conv, classifier_spec(conv.outputs[0], num_classes=num_classes)

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        self.check(architecture)
        specs = list(self.before(inputs))
        for position, choice in enumerate(architecture.choices):
            specs.append(self.layer(position, choice, specs[-1].outputs[0]))
        return (*specs, *self.after(specs[-1].outputs[0], num_classes))

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: every block one vertex."""
        return chain_graph(self.blocks(architecture, inputs=inputs, num_classes=num_classes))
