"""What a served model takes and returns: named, typed ports, some of which take raw images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zoo.spec import TensorSpec

DATATYPES = {
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
"""The protocol's name of each type that a block interface may have."""

BINARY_ONLY = frozenset({"FP16", "BF16"})
"""Types without a JSON form."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How the images that a network was trained on were scaled: ``(x / 255 - mean) / std``.

    ``mean`` and ``std`` hold one number a channel. It is computed as ``x * scale + bias``
    in float32, the way the training data were, so that both give the same bits.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Turn uint8 images ``(batch, channels, height, width)`` into float32."""
        scale, bias = self._affine
        return torch.addcmul(bias, images.to(torch.float32), scale)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(-1, 1, 1)
        return (1 / (255 * std)).to(torch.float32), (-mean / std).to(torch.float32)


@dataclass(frozen=True, kw_only=True)
class Port:
    """One named input or output; an input with ``normalize`` also takes UINT8 images."""

    name: str
    spec: TensorSpec
    normalize: Normalization | None = None

    @property
    def datatype(self) -> str:
        return DATATYPES[self.spec.dtype]

    @property
    def datatypes(self) -> tuple[str, ...]:
        return (self.datatype, "UINT8") if self.normalize else (self.datatype,)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a model takes and returns, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def interface(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], card: Mapping[str, Any]
) -> Interface:
    """Name the inputs and outputs of a chain: ``input_0`` …, ``output_0`` …

    A card with ``normalization`` (``mean`` and ``std``, one number a channel) lets a
    float32 image input take UINT8 as well.
    """
    return Interface(
        inputs=tuple(
            Port(name=f"input_{index}", spec=spec, normalize=_normalization(spec, card))
            for index, spec in enumerate(inputs)
        ),
        outputs=tuple(
            Port(name=f"output_{index}", spec=spec) for index, spec in enumerate(outputs)
        ),
    )


def _normalization(spec: TensorSpec, card: Mapping[str, Any]) -> Normalization | None:
    given = card.get("normalization")
    if not isinstance(given, Mapping) or spec.dtype != "float32" or len(spec.shape) != 3:
        return None
    mean, std = (_numbers(given.get(name), count=spec.shape[0]) for name in ("mean", "std"))
    if mean is None or std is None or min(std) <= 0:
        return None
    return Normalization(mean=mean, std=std)


def _numbers(values: object, *, count: int | None) -> tuple[float, ...] | None:
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    if not all(isinstance(value, int | float) for value in values):
        return None
    return tuple(float(value) for value in values)
