"""What stands for an operation with weights in the drawing of a cell.

What such an operation computes is known by its name and by the widths and sizes that it
has in the network: they seed its weights. How it is made inside (depthwise and pointwise, in
how many rounds) tells no two cells apart, so one convolution stands for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-5


class ReluConvNorm(nn.Module):
    """ReLU, convolution, batch norm without affine part."""

    def __init__(
        self, in_chans: int, out_chans: int, *, kernel: int = 3, stride: int = 1, eps: float = EPS
    ) -> None:
        super().__init__()
        self._eps = eps
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return normalised(self.conv(x.relu()), self._eps)


def normalised(x: Tensor, eps: float = EPS) -> Tensor:
    """Return ``x`` less its mean and divided by its deviation over batch and pixels."""
    return torch.batch_norm(x, None, None, None, None, True, 0.0, eps, False)
