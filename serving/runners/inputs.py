"""Seeded random inputs, for checking and for measuring."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.runners.checks import DTYPES
from zoo.spec import TensorSpec


def random_input(
    spec: TensorSpec, batch: int, generator: torch.Generator, *, variable: int = 4
) -> Tensor:
    """Return a random ``(batch, *shape)`` CPU tensor; ``None`` dimensions get ``variable``.

    Floating values are standard normal, integers and booleans are 0 or 1.
    """
    shape = (batch, *(variable if size is None else size for size in spec.shape))
    dtype = DTYPES[spec.dtype]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
