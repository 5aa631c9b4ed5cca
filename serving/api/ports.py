"""What a served model takes and returns: named, typed ports, some of which take raw images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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

    ``mean`` and ``std`` are float32 tensors ``(channels, 1, 1)``.
    """

    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Turn uint8 images ``(batch, channels, height, width)`` into float32."""
        return images.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


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
    mean, std = (np.asarray(given.get(name), dtype=np.float32) for name in ("mean", "std"))
    fits = mean.shape == std.shape == (spec.shape[0],) and bool((std > 0).all())
    if not fits:
        return None
    return Normalization(
        mean=torch.from_numpy(mean.reshape(-1, 1, 1)), std=torch.from_numpy(std.reshape(-1, 1, 1))
    )
