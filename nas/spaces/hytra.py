"""The HyTra search space: hybrids of convolution and attention at falling resolution.

``Architecture.choices`` holds one operation a layer:

    code   operation       scale   index of the scale
    0      attention       1/32    0
    1      convolution     1/32    0
    2      attention       1/16    1
    3      convolution     1/16    1
    4      convolution     1/8     2
    5      convolution     1/4     3

The index of the scale never rises from layer to layer and falls by at most one; the first
layer may have any scale. The string form is the codes, blocks apart by bars:
``5433|3230|0010|0000`` (BossNet-T0).

A block is searched over ``legal_paths(k)``, where k - 1 is the index of the scale before it
(k is 4 for the first block): its first layer keeps that scale or goes down by one. The first
block's paths so begin at 1/4 or 1/8, as those of the official search; the space has also the
networks that begin at 1/16 or 1/32.

Source:
    Li et al. (2021), "BossNAS", arXiv:2103.12424.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from nas.blockwise import Path, cut
from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace, count
from nas.spaces.chain_graph import chain_graph
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.hytra import BOTTLENECK, head_spec, layer_spec, stem_spec
from zoo.spec import Architecture, BlockSpec, TensorSpec

SCALES = (0, 0, 1, 1, 2, 3)
"""The index of each operation's scale; 0 is the coarsest (1/32)."""

KINDS = (*("attention", "convolution"), *("attention", "convolution"), "convolution", "convolution")
"""What each operation computes."""

NUM_OPS = len(SCALES)
NUM_SCALES = max(SCALES) + 1

BOSSNET_T0 = "5433|3230|0010|0000"

PUBLISHED = {"bossnet_t0": 2, "bossnet_t1": 1}
"""The published networks: both have the layers of T0; the ``last_stride`` of their spaces."""


def legal_paths(k: int, layers: int = 4) -> tuple[Path, ...]:
    """Return every path of a block whose first layer has scale k - 1 or k - 2.

    The scale never rises within the path and falls by at most one a layer. Paths are in
    lexical order. Of four layers there are 16, 80, 99 and 51 for k = 1, 2, 3, 4.

    Raises:
        InvalidInputError: ``k`` is not from 1 to 4, or ``layers`` is below 1.
    """
    count("k", k, most=NUM_SCALES)
    count("layers", layers)
    paths: list[Path] = [()]
    for _ in range(layers):
        paths = [
            (*path, op)
            for path in paths
            for op in range(NUM_OPS)
            if follows(SCALES[path[-1]] if path else k - 1, SCALES[op])
        ]
    return tuple(paths)


def follows(before: int, scale: int) -> bool:
    """Say whether a layer of ``scale`` may come after one of the scale ``before``."""
    return scale in (before, before - 1)


def completions(layers: int) -> tuple[tuple[int, ...], ...]:
    """Return how many ways there are to go on; ``[left][scale]``, for ``left`` more layers."""
    table = [(1,) * NUM_SCALES]
    for _ in range(layers):
        table.append(
            tuple(
                sum(table[-1][SCALES[op]] for op in range(NUM_OPS) if follows(scale, SCALES[op]))
                for scale in range(NUM_SCALES)
            )
        )
    return tuple(table)


@final
@dataclass(frozen=True)
class HytraSpace(CategoricalSpace):
    """Residual layers of convolution or attention, each with its scale: 2,818,103 networks.

    Args:
        widths: Channels at 1/32, 1/16, 1/8 and 1/4.
        layers: Layers of each block.
        stem: Channels after the stem.
        head_dim: Channels of an attention head.
        last_stride: 1 runs the 1/32 layers at 1/16 (BossNet-T1).

    Raises:
        InvalidInputError: A number is out of range, or a width no multiple of 4 head_dim.
    """

    widths: tuple[int, ...] = (2048, 1024, 512, 256)
    layers: tuple[int, ...] = (4, 4, 4, 4)
    stem: int = 64
    head_dim: int = 64
    last_stride: int = 2

    def __post_init__(self) -> None:
        for name in ("widths", "layers"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence) or not given:
                raise InvalidInputError(f"{name} is {given!r}; give a list of integers")
            values = tuple(count(f"{name}[{at}]", item) for at, item in enumerate(given))
            object.__setattr__(self, name, values)
        count("stem", self.stem)
        count("head_dim", self.head_dim)
        count("last_stride", self.last_stride, most=2)
        if len(self.widths) != NUM_SCALES:
            raise InvalidInputError(f"widths are {self.widths}; give one for each of 4 scales")
        for channels in self.widths:
            if channels % (BOTTLENECK * self.head_dim):
                raise InvalidInputError(
                    f"a width is {channels}; it must be a multiple of {BOTTLENECK} times "
                    f"head_dim ({self.head_dim})"
                )

    def describe(self) -> dict[str, Json]:
        return {
            "name": "hytra",
            "params": {
                "widths": list(self.widths),
                "layers": list(self.layers),
                "stem": self.stem,
                "head_dim": self.head_dim,
                "last_stride": self.last_stride,
            },
        }

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(self.layers)

    def cardinalities(self) -> tuple[int, ...]:
        return (NUM_OPS,) * self.depth

    @cached_property
    def _ways(self) -> tuple[tuple[int, ...], ...]:
        return completions(self.depth)

    def size(self) -> int:
        return sum(self._ways[self.depth - 1][scale] for scale in SCALES)

    def sample(self, rng: random.Random) -> Architecture:
        """Return an architecture drawn uniformly."""
        choices: list[int] = []
        for left in range(self.depth - 1, -1, -1):
            legal = [op for op in range(NUM_OPS) if self._goes_on(choices, op)]
            weights = [self._ways[left][SCALES[op]] for op in legal]
            choices.append(rng.choices(legal, weights)[0])
        return self.architecture(choices)

    def summary(self, architecture: Architecture) -> str:
        self.check(architecture)
        return "|".join("".join(map(str, path)) for path in cut(architecture.choices, self.layers))

    def parse(self, text: str) -> Architecture:
        digits = text.replace("|", "").strip()
        codes = [str(op) for op in range(NUM_OPS)]
        if len(digits) != self.depth or not all(digit in codes for digit in digits):
            raise InvalidInputError(
                f"{text!r} is not {self.depth} digits from 0 to {NUM_OPS - 1}, with or without bars"
            )
        architecture = self.architecture([int(digit) for digit in digits])
        self.check(architecture)
        return architecture

    def stride(self, before: int, scale: int) -> int:
        """Return by how much a layer of ``scale`` shrinks images that have scale ``before``."""
        finest = 0 if self.last_stride == 2 else 1
        return int(2 ** (max(before, finest) - max(scale, finest)))

    def layer(self, inputs: TensorSpec, op: int, before: int | None) -> BlockSpec:
        """Describe a layer after one of the scale ``before``, or after the stem (None)."""
        last = NUM_SCALES - 1
        return layer_spec(
            inputs,
            channels=self.widths[SCALES[op]],
            kind=KINDS[op],
            shrink=self.stride(last if before is None else before, SCALES[op]),
            patch=before is None,
            head_dim=self.head_dim,
        )

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        self.check(architecture)
        specs = [stem_spec(inputs, channels=self.stem)]
        before: int | None = None
        for op in architecture.choices:
            specs.append(self.layer(specs[-1].outputs[0], op, before))
            before = SCALES[op]
        return (*specs, head_spec(specs[-1].outputs[0], num_classes=num_classes))

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: every block one vertex."""
        return chain_graph(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def _goes_on(self, choices: Sequence[int], op: int) -> bool:
        return not choices or follows(SCALES[choices[-1]], SCALES[op])

    def _fault(self, choices: tuple[int, ...]) -> str | None:
        for at in range(1, len(choices)):
            before, scale = SCALES[choices[at - 1]], SCALES[choices[at]]
            if not follows(before, scale):
                return (
                    f"layer {at} has operation {choices[at]} after {choices[at - 1]}: the index of "
                    f"the scale goes from {before} to {scale}; it may keep or fall by one"
                )
        return None

    def _turned(self, architecture: Architecture, at: int) -> Iterator[tuple[int, ...]]:
        choices = architecture.choices
        for shift in range(1, NUM_OPS):
            op = (choices[at] + shift) % NUM_OPS
            left = at == 0 or follows(SCALES[choices[at - 1]], SCALES[op])
            right = at + 1 == len(choices) or follows(SCALES[op], SCALES[choices[at + 1]])
            if left and right:
                yield (*choices[:at], op, *choices[at + 1 :])


def published(name: str) -> tuple[HytraSpace, Architecture]:
    """Return a published network and its space; ``name`` is one of ``PUBLISHED``.

    Raises:
        UnknownNameError: There is no such network.
    """
    if name not in PUBLISHED:
        raise UnknownNameError("published network", name, PUBLISHED)
    space = HytraSpace(last_stride=PUBLISHED[name])
    return space, space.parse(BOSSNET_T0)
