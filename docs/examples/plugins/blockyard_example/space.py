"""A search space of one's own: a stack of convolutions of chosen widths and kernels."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from torch import nn

from zoo.builders import build_chain, register
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, BlockSpec, TensorSpec


class PlainConvSpace:
    """A stack of strided convolutions, each of a chosen width and kernel size.

    ``choices`` holds two integers a layer: the index of its width, then of its kernel.

    Args:
        layers: Number of convolutions; each halves the image.
        widths: Widths to choose from.
        kernels: Odd kernel sizes to choose from.

    Raises:
        InvalidInputError: There is nothing to choose from, or a kernel is even.
    """

    def __init__(
        self,
        layers: int = 2,
        widths: Sequence[int] = (4, 8, 16),
        kernels: Sequence[int] = (1, 3, 5),
    ) -> None:
        if layers < 1 or not widths or not kernels:
            raise InvalidInputError("a plain-conv space needs a layer, a width and a kernel")
        if any(kernel % 2 == 0 for kernel in kernels):
            raise InvalidInputError(f"kernels are {list(kernels)}; they must be odd")
        self.layers = layers
        self.widths = tuple(widths)
        self.kernels = tuple(kernels)

    def describe(self) -> dict[str, Json]:
        params: dict[str, Json] = {
            "layers": self.layers,
            "widths": list(self.widths),
            "kernels": list(self.kernels),
        }
        return {"name": "plain-conv", "params": params}

    def cardinalities(self) -> tuple[int, ...]:
        return (len(self.widths), len(self.kernels)) * self.layers

    def size(self) -> int:
        return math.prod(self.cardinalities())

    def sample(self, rng: random.Random) -> Architecture:
        return self._of([rng.randrange(options) for options in self.cardinalities()])

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        return rng.choice(list(self.neighbours(architecture)))

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        self.check(architecture)
        choices = architecture.choices
        for at, options in enumerate(self.cardinalities()):
            for option in range(options):
                if option != choices[at]:
                    yield self._of([*choices[:at], option, *choices[at + 1 :]])

    def check(self, architecture: Architecture) -> None:
        limits = self.cardinalities()
        fits = len(architecture.choices) == len(limits) and all(
            0 <= choice < limit for choice, limit in zip(architecture.choices, limits, strict=True)
        )
        if architecture.space != self.describe() or not fits:
            raise InvalidInputError(
                f"{architecture.to_json()} is not in {self.describe()}: choices are below {limits}"
            )

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        self.check(architecture)
        specs: list[BlockSpec] = []
        given = inputs
        for width, kernel in zip(
            architecture.choices[::2], architecture.choices[1::2], strict=True
        ):
            _, height, side = given.shape
            half = (((height or 1) + 1) // 2, ((side or 1) + 1) // 2)
            made = TensorSpec(shape=(self.widths[width], *half))
            params: dict[str, Json] = {"kernel": self.kernels[kernel]}
            specs.append(
                BlockSpec(op="example.conv", params=params, inputs=(given,), outputs=(made,))
            )
            given = made
        logits = TensorSpec(shape=(num_classes,))
        return (*specs, BlockSpec(op="example.head", inputs=(given,), outputs=(logits,)))

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        return build_chain(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def summary(self, architecture: Architecture) -> str:
        pairs = zip(architecture.choices[::2], architecture.choices[1::2], strict=True)
        return " - ".join(f"{self.widths[w]}x{self.kernels[k]}" for w, k in pairs)

    def _of(self, choices: Sequence[int]) -> Architecture:
        return Architecture(space=self.describe(), choices=tuple(choices))


@register("example.conv")
def conv(spec: BlockSpec) -> nn.Module:
    """Build convolution, normalisation and ReLU; the stride is 2."""
    (before, *_), (after, *_) = spec.inputs[0].shape, spec.outputs[0].shape
    kernel = int(str(spec.params["kernel"]))
    return nn.Sequential(
        nn.Conv2d(before or 1, after or 1, kernel, stride=2, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after or 1),
        nn.ReLU(),
    )


@register("example.head")
def head(spec: BlockSpec) -> nn.Module:
    """Build global average pooling and the classifier."""
    (before, *_), (classes, *_) = spec.inputs[0].shape, spec.outputs[0].shape
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before or 1, classes or 1)
    )
