"""The operations of the NASNet family: what a block applies, and what joins cells.

Convolutions are ReLU, convolution, batch norm; a separable one is that twice, the first
half strides. Where an operation changes the width, pooling is followed by a 1x1
convolution and batch norm, and the identity becomes a convolution of size 1. Padding is
TensorFlow's SAME: where an odd number of pixels is needed the surplus one goes below and
to the right. So on an even size a stride of 2 starts at the first pixel, unlike PyTorch's
symmetric padding; an average leaves the padding out.

Source:
    Zoph et al. (2018), "Learning Transferable Architectures for Scalable Image
    Recognition", arXiv:1707.07012; official code github.com/tensorflow/models,
    research/slim/nets/nasnet, which has five of the thirteen operations. Of the others the
    order inside a factorised convolution (batch norm and ReLU between the halves) and the
    dense 3x3 kernel of dilation 2 are read from the paper's text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InvalidInputError, UnknownNameError


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's SAME.

    Maps ``(batch, in_chans, h, w)`` to ``(batch, out_chans, ceil(h / stride), …)``.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(
            in_chans, out_chans, kernel, stride, dilation=dilation, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1):
            # Sliced, not strided: see ``FactorizedReduction``.
            if self.stride != (1, 1):
                x = x[:, :, :: self.stride[0], :: self.stride[1]]
            return F.conv2d(x, self.weight)
        (top, bottom), (left, right) = (
            same_padding(int(size), dilation * (kernel - 1) + 1, stride)
            for size, kernel, stride, dilation in zip(
                x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)


def same_padding(size: int, reach: int, stride: int) -> tuple[int, int]:
    """Return the pixels that SAME puts before and after a side of ``size`` pixels.

    Args:
        size: Height or width.
        reach: Pixels from the first to the last that the kernel reads, both included.
        stride: Step of the kernel.
    """
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


class SamePool2d(nn.Module):
    """A maximum or average over a square window, padded as SAME; padding is never counted."""

    def __init__(self, kind: str, kernel: int, *, stride: int) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride = kind, kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # Plain integers, also while an exporter traces the sizes: they are part of the block.
        padding = [same_padding(int(size), self.kernel, self.stride)[0] for size in x.shape[2:]]
        # What SAME pads behind is out of bounds here: ``ceil_mode`` counts such windows.
        ceil = self.stride > 1
        if self.kind == "max":
            return F.max_pool2d(x, self.kernel, self.stride, padding, ceil_mode=ceil)
        return F.avg_pool2d(
            x, self.kernel, self.stride, padding, ceil_mode=ceil, count_include_pad=False
        )

    def extra_repr(self) -> str:
        return f"{self.kind}, kernel={self.kernel}, stride={self.stride}"


class FactorizedReduction(nn.Module):
    """Halves height and width by two 1x1 convolutions, one on even pixels, one on odd ones.

    Behind the last row and column the odd pixels are zeros. An odd width gives the second
    convolution one channel more.

    Raises:
        InvalidInputError: ``out_chans`` is below 2.
    """

    def __init__(self, in_chans: int, out_chans: int, *, eps: float, relu: bool) -> None:
        super().__init__()
        if out_chans < 2:
            raise InvalidInputError(
                f"a factorized reduction to {out_chans} channels needs at least 2"
            )
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.conv_1 = nn.Conv2d(in_chans, out_chans // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(in_chans, out_chans - out_chans // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chans, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        # Sliced, not strided: oneDNN 3.12's strided 1x1 convolution, run by several threads
        # on few channels-last channels and an odd batch, writes outside its memory.
        even, odd = even_and_odd(self.relu(x))
        return self.bn(torch.cat([self.conv_1(even), self.conv_2(odd)], dim=1))


def even_and_odd(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return every second pixel from the first on, and from the second on in both directions.

    Both are ``(batch, channels, ceil(h / 2), ceil(w / 2))``; what is missing is zero.
    """
    shifted = x[:, :, 1::2, 1::2]
    odd_height, odd_width = x.shape[2] % 2, x.shape[3] % 2
    if odd_height or odd_width:
        shifted = F.pad(shifted, (0, odd_width, 0, odd_height))
    return x[:, :, ::2, ::2], shifted


def conv_norm(
    in_chans: int,
    out_chans: int,
    kernel: int | tuple[int, int],
    *,
    eps: float,
    stride: int | tuple[int, int] = 1,
    dilation: int = 1,
    relu: bool = True,
) -> list[nn.Module]:
    """Build ReLU (unless it is left out), convolution and batch norm."""
    conv = SameConv2d(in_chans, out_chans, kernel, stride=stride, dilation=dilation)
    norm = nn.BatchNorm2d(out_chans, eps=eps)
    return [nn.ReLU(), conv, norm] if relu else [conv, norm]


def _identity(in_chans: int, out_chans: int, stride: int, eps: float) -> nn.Module:
    if stride == 1 and in_chans == out_chans:
        return nn.Identity()
    return nn.Sequential(*conv_norm(in_chans, out_chans, 1, stride=stride, eps=eps))


def _pool(
    in_chans: int, out_chans: int, stride: int, eps: float, *, kind: str, kernel: int
) -> nn.Module:
    pool = SamePool2d(kind, kernel, stride=stride)
    if in_chans == out_chans:
        return pool
    return nn.Sequential(pool, *conv_norm(in_chans, out_chans, 1, eps=eps, relu=False))


def _conv(
    in_chans: int, out_chans: int, stride: int, eps: float, *, kernel: int, dilation: int = 1
) -> nn.Module:
    return nn.Sequential(
        *conv_norm(in_chans, out_chans, kernel, stride=stride, dilation=dilation, eps=eps)
    )


def _factorized(
    in_chans: int, out_chans: int, stride: int, eps: float, *, kernel: int
) -> nn.Module:
    return nn.Sequential(
        *conv_norm(in_chans, out_chans, (1, kernel), stride=(1, stride), eps=eps),
        *conv_norm(out_chans, out_chans, (kernel, 1), stride=(stride, 1), eps=eps),
    )


def _separable(in_chans: int, out_chans: int, stride: int, eps: float, *, kernel: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width, step in ((in_chans, stride), (out_chans, 1)):
        layers += [
            nn.ReLU(),
            SameConv2d(width, width, kernel, stride=step, groups=width),
            SameConv2d(width, out_chans, 1),
            nn.BatchNorm2d(out_chans, eps=eps),
        ]
    return nn.Sequential(*layers)


_OPERATIONS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "identity": _identity,
    "conv_1x3_3x1": partial(_factorized, kernel=3),
    "conv_1x7_7x1": partial(_factorized, kernel=7),
    "dil_conv_3x3": partial(_conv, kernel=3, dilation=2),
    "avg_pool_3x3": partial(_pool, kind="avg", kernel=3),
    "max_pool_3x3": partial(_pool, kind="max", kernel=3),
    "max_pool_5x5": partial(_pool, kind="max", kernel=5),
    "max_pool_7x7": partial(_pool, kind="max", kernel=7),
    "conv_1x1": partial(_conv, kernel=1),
    "conv_3x3": partial(_conv, kernel=3),
    "sep_conv_3x3": partial(_separable, kernel=3),
    "sep_conv_5x5": partial(_separable, kernel=5),
    "sep_conv_7x7": partial(_separable, kernel=7),
}

OPERATIONS = tuple(_OPERATIONS)
"""The thirteen operations in the paper's order."""


def operation(
    name: str, in_chans: int, out_chans: int, *, stride: int = 1, eps: float = 1e-5
) -> nn.Module:
    """Build one operation; ``eps`` is that of its batch norms.

    Maps ``(batch, in_chans, h, w)`` to ``(batch, out_chans, ceil(h / stride),
    ceil(w / stride))``.

    Raises:
        UnknownNameError: ``name`` is not one of ``OPERATIONS``.
    """
    if name not in _OPERATIONS:
        raise UnknownNameError("NASNet operation", name, OPERATIONS)
    return _OPERATIONS[name](in_chans, out_chans, stride, eps)


def previous_input(in_chans: int, out_chans: int, *, halve: bool, eps: float) -> nn.Module:
    """Build what fits the output of the cell before the last to this cell.

    A factorised reduction where its size is another, a 1x1 convolution where only its width
    is, both after ReLU; nothing where neither is.
    """
    if halve:
        return FactorizedReduction(in_chans, out_chans, eps=eps, relu=True)
    if in_chans != out_chans:
        return nn.Sequential(*conv_norm(in_chans, out_chans, 1, eps=eps))
    return nn.Identity()


def output_fit(in_chans: int, out_chans: int, *, halve: bool, eps: float) -> nn.Module:
    """Build what fits one of a cell's inputs to its concatenated output: as above, no ReLU."""
    if halve:
        return FactorizedReduction(in_chans, out_chans, eps=eps, relu=False)
    if in_chans != out_chans:
        return nn.Sequential(*conv_norm(in_chans, out_chans, 1, eps=eps, relu=False))
    return nn.Identity()
