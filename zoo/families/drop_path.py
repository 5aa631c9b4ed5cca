"""Dropping whole paths of a network at random while it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Zero a sample's path with probability ``rate`` and scale the others by 1 / (1 - rate).

    Has no weights, passes everything through in evaluation mode and, by default, in
    training; whoever trains sets ``rate`` as the training goes on. Its place in the
    network is ``depth`` in (0, 1], for schedules that drop later layers more.

    Source:
        Larsson et al. (2017), "FractalNet", arXiv:1605.07648; ``depth`` as in Zoph et
        al. (2018), arXiv:1707.07012 (ScheduledDropPath).
    """

    def __init__(self, *, depth: float = 1.0) -> None:
        super().__init__()
        self.depth = depth
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, of shape ``(batch, ...)``, with the paths of some samples dropped."""
        if not self.training or self.rate == 0.0:
            return x
        shape = (x.shape[0], *(1,) * (x.ndim - 1))
        kept = torch.rand(shape, device=x.device, dtype=torch.float32) >= self.rate
        return x * (kept / (1.0 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, depth={self.depth}"
