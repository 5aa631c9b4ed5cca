"""The MBConv space of ProxylessNAS: a chain of inverted residual blocks, each searched.

``Architecture.choices`` holds one integer a searched edge: an index into ``Edge.ops``.
``zero`` (the last operation, only where the block keeps its shape) leaves the block out,
so that its shortcut alone remains; a derived network has no block there. Every tuple
within ``cardinalities()`` is legal.

Source:
    Cai et al. (2019), "ProxylessNAS", arXiv:1812.00332; the order of operations is that
    of the official search code (3x3_MB3, 3x3_MB6, 5x5_MB3, …, zero). The official
    CIFAR-10 search space is a pyramid of another kind and was not released; ``cifar``
    is the ImageNet space with the strides of its first stages taken out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import nn

from nas.graph import Graph
from nas.spaces.chain_graph import chain_graph
from zoo.builders import build_chain
from zoo.canonical import Json, plain
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.mbconv import block_spec, classifier_spec, conv_spec
from zoo.spec import Architecture, BlockSpec, TensorSpec

ZERO = "zero"

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {"strides": (2, 2, 2, 1, 2, 1), "stem_stride": 2},
    "cifar": {"strides": (1, 2, 2, 1, 2, 1), "stem_stride": 1},
}
"""Strides for images of 224 and of 32 pixels; both end at a seventh and an eighth of them."""


@dataclass(frozen=True)
class Op:
    """An inverted bottleneck of this kernel and expansion."""

    kernel: int
    expand: int

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel}_MB{self.expand}"


@dataclass(frozen=True)
class Edge:
    """One searched block: its width, its stride, and what it may be (None is ``zero``)."""

    in_chans: int
    out_chans: int
    stride: int
    ops: tuple[Op | None, ...]

    @property
    def skip(self) -> bool:
        """Whether a shortcut is added, outside the searched operation."""
        return self.stride == 1 and self.in_chans == self.out_chans

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(ZERO if op is None else str(op) for op in self.ops)


@dataclass(frozen=True, kw_only=True)
class MBConvSpace:
    """The MobileNetV2-like chain in which every block's kernel, expansion or absence is searched.

    Args:
        preset: ``imagenet`` (224 pixels) or ``cifar`` (32 pixels); gives the strides.
        widths: Output channels of each stage.
        depths: Searched blocks of each stage; the first one changes width and size.
        strides: Stride of each stage's first block, 1 or 2; None takes the preset's.
        stem_stride: Stride of the stem; None takes the preset's.
        stem: Channels of the stem.
        first: Channels of the fixed block after the stem, which does not expand.
        last: Channels of the 1x1 convolution before the classifier.
        kernels: Kernel sizes on offer, odd.
        expands: Expansions on offer.
        dropout: Before the classifier of a derived network (0.1 to 0.3 on ImageNet).

    Raises:
        UnknownNameError: There is no such preset.
        InvalidInputError: The stages disagree in number, or a number is out of range.
    """

    preset: str = "imagenet"
    widths: tuple[int, ...] = (24, 40, 80, 96, 192, 320)
    depths: tuple[int, ...] = (4, 4, 4, 4, 4, 1)
    strides: tuple[int, ...] | None = None
    stem_stride: int | None = None
    stem: int = 32
    first: int = 16
    last: int = 1280
    kernels: tuple[int, ...] = (3, 5, 7)
    expands: tuple[int, ...] = (3, 6)
    dropout: float = 0.0
    edges: tuple[Edge, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UnknownNameError("MBConv preset", str(self.preset), PRESETS)
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("widths", "depths", "strides", "kernels", "expands"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        for name in ("stem_stride", "stem", "first", "last"):
            _numbers(name, (getattr(self, name),))
        if not len(self.widths) == len(self.depths) == len(self._strides):
            raise InvalidInputError(
                f"there are {len(self.widths)} widths, {len(self.depths)} depths and "
                f"{len(self._strides)} strides; give one of each for every stage"
            )
        if any(stride not in (1, 2) for stride in (*self._strides, self.stem_stride)):
            raise InvalidInputError(f"strides are {self._strides}; each must be 1 or 2")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise InvalidInputError(f"kernels are {self.kernels}; each must be odd")
        for name in ("kernels", "expands"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InvalidInputError(f"{name} are {getattr(self, name)}; name each once")
        if isinstance(self.dropout, bool) or not 0 <= self.dropout < 1:
            raise InvalidInputError(f"dropout is {self.dropout}; it must be in [0, 1)")
        object.__setattr__(self, "edges", tuple(self._edges()))

    @property
    def _strides(self) -> tuple[int, ...]:
        return self.strides or ()

    def _edges(self) -> Iterator[Edge]:
        ops = tuple(Op(kernel, expand) for kernel in self.kernels for expand in self.expands)
        in_chans = self.first
        for width, depth, stride in zip(self.widths, self.depths, self._strides, strict=True):
            for position in range(depth):
                edge = Edge(in_chans, width, stride if position == 0 else 1, ops)
                yield Edge(in_chans, width, edge.stride, (*ops, None)) if edge.skip else edge
                in_chans = width

    def describe(self) -> dict[str, Json]:
        return {
            "name": "mbconv",
            "params": {
                "preset": self.preset,
                "widths": list(self.widths),
                "depths": list(self.depths),
                "strides": list(self._strides),
                "stem_stride": self.stem_stride,
                "stem": self.stem,
                "first": self.first,
                "last": self.last,
                "kernels": list(self.kernels),
                "expands": list(self.expands),
                "dropout": float(self.dropout),
            },
        }

    def cardinalities(self) -> tuple[int, ...]:
        return tuple(len(edge.ops) for edge in self.edges)

    def size(self) -> int:
        """Count choices; ``zero`` on different blocks of a stage may give one network."""
        return prod(self.cardinalities())

    def sample(self, rng: random.Random) -> Architecture:
        return self.architecture([rng.randrange(options) for options in self.cardinalities()])

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Return a copy with one block changed; every neighbour of a block is as likely.

        Raises:
            InvalidInputError: The space has only one architecture.
        """
        self.check(architecture)
        free = [at for at, options in enumerate(self.cardinalities()) if options > 1]
        if not free:
            raise InvalidInputError("this space has one architecture; nothing can be mutated")
        at = rng.choice(free)
        return self._shifted(architecture, at, rng.randrange(1, self.cardinalities()[at]))

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        self.check(architecture)
        for at, options in enumerate(self.cardinalities()):
            for shift in range(1, options):
                yield self._shifted(architecture, at, shift)

    def check(self, architecture: Architecture) -> None:
        if plain(architecture.space) != self.describe():
            raise InvalidInputError(
                f"the architecture belongs to {plain(architecture.space)}, not to {self.describe()}"
            )
        limits = self.cardinalities()
        if len(architecture.choices) != len(limits):
            raise InvalidInputError(
                f"the architecture has {len(architecture.choices)} choices; "
                f"this space has {len(limits)} searched blocks"
            )
        for at, (choice, options) in enumerate(zip(architecture.choices, limits, strict=True)):
            if type(choice) is not int or not 0 <= choice < options:
                raise InvalidInputError(
                    f"choice {at} is {choice!r}; block {at} takes an integer "
                    f"from 0 to {options - 1}"
                )

    def architecture(self, choices: Sequence[int]) -> Architecture:
        """Return the architecture of these choices, unchecked."""
        return Architecture(space=self.describe(), choices=tuple(choices))

    def encode(self, names: Sequence[str]) -> Architecture:
        """Return the architecture whose blocks have these names, e.g. ``5x5_MB6`` or ``zero``.

        Raises:
            InvalidInputError: There are too many or too few names.
            UnknownNameError: A block cannot have such an operation.
        """
        if len(names) != len(self.edges):
            raise InvalidInputError(f"{len(names)} names; this space has {len(self.edges)} blocks")
        for name, edge in zip(names, self.edges, strict=True):
            if name not in edge.names:
                raise UnknownNameError("operation of this block", name, edge.names)
        return self.architecture(
            [edge.names.index(name) for name, edge in zip(names, self.edges, strict=True)]
        )

    def summary(self, architecture: Architecture) -> str:
        """Return the operations' names, stages apart by bars."""
        self.check(architecture)
        names = iter(
            edge.names[choice]
            for edge, choice in zip(self.edges, architecture.choices, strict=True)
        )
        return " | ".join(" ".join(next(names) for _ in range(depth)) for depth in self.depths)

    def parse(self, text: str) -> Architecture:
        """Return the architecture whose ``summary`` is ``text``.

        Raises:
            InvalidInputError: ``text`` names too many or too few operations, or unknown ones.
        """
        return self.encode(text.replace("|", " ").split())

    def stem_specs(self, inputs: TensorSpec) -> tuple[BlockSpec, BlockSpec]:
        """Return the two fixed blocks before the searched ones."""
        stem = conv_spec(inputs, channels=self.stem, kernel=3, stride=self.stem_stride or 1)
        first = block_spec(
            stem.outputs[0], channels=self.first, expand=1, kernel=3, stride=1, skip=False
        )
        return stem, first

    def head_specs(self, inputs: TensorSpec, *, num_classes: int) -> tuple[BlockSpec, BlockSpec]:
        """Return the two fixed blocks after the searched ones."""
        conv = conv_spec(inputs, channels=self.last, kernel=1, stride=1)
        classifier = classifier_spec(conv.outputs[0], num_classes=num_classes, dropout=self.dropout)
        return conv, classifier

    def edge_spec(self, edge: Edge, op: Op, inputs: TensorSpec) -> BlockSpec:
        """Describe a searched block that was given ``op``."""
        return block_spec(
            inputs,
            channels=edge.out_chans,
            expand=op.expand,
            kernel=op.kernel,
            stride=edge.stride,
            skip=edge.skip,
        )

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        self.check(architecture)
        specs = list(self.stem_specs(inputs))
        for edge, choice in zip(self.edges, architecture.choices, strict=True):
            op = edge.ops[choice]
            if op is not None:
                specs.append(self.edge_spec(edge, op, specs[-1].outputs[0]))
        return (*specs, *self.head_specs(specs[-1].outputs[0], num_classes=num_classes))

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        return build_chain(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: every block one vertex."""
        return chain_graph(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def _shifted(self, architecture: Architecture, at: int, shift: int) -> Architecture:
        choices = list(architecture.choices)
        choices[at] = (choices[at] + shift) % self.cardinalities()[at]
        return self.architecture(choices)


def _numbers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise InvalidInputError(f"{name} is {values!r}; give a list of integers")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidInputError(f"{name} has {value!r}; it must be an integer of at least 1")
    return tuple(values)
