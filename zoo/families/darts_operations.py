"""The operations of the DARTS family: what stands on the edges of a cell, and before them.

Source:
    Liu et al. (2019), "DARTS: Differentiable Architecture Search", arXiv:1806.09055.
    Differs: odd heights and widths are halved upwards in every operation (the original
    crashes on them); on even ones the two agree.

    Hundt et al. (2019), "sharpDARTS: Faster and More Accurate Differentiable Architecture
    Search", arXiv:1903.09900; official code github.com/ahundt/sharpDARTS: the operations
    ``sharp_…``. Differs: ``choke`` narrows to 32 channels in derived networks too, where the
    original loses that number on the way; ``dil_flood_conv_5x5`` is padded so that it keeps
    the size; average pooling leaves the padding out, as in DARTS, where theirs counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InvalidInputError, UnknownNameError


class ReluConvBn(nn.Sequential):
    """ReLU, 1x1 convolution, batch norm: brings a cell's input to the cell's width."""

    def __init__(self, in_chans: int, out_chans: int, *, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_chans, out_chans, 1, bias=False),
            nn.BatchNorm2d(out_chans, affine=affine),
        )


class FactorizedReduce(nn.Module):
    """Halves height and width by two 1x1 convolutions, one on even pixels, one on odd ones.

    Raises:
        InvalidInputError: ``out_chans`` is odd.
    """

    def __init__(self, in_chans: int, out_chans: int, *, affine: bool) -> None:
        super().__init__()
        if out_chans % 2:
            raise InvalidInputError(
                f"a factorized reduction to {out_chans} channels needs an even number; "
                "choose an even width"
            )
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(in_chans, out_chans // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(in_chans, out_chans // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chans, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        # Sliced, not strided: oneDNN 3.12's strided 1x1 convolution, run by several threads
        # on few channels-last channels and an odd batch, writes outside its memory.
        x = self.relu(x)
        odd_height, odd_width = x.shape[2] % 2, x.shape[3] % 2
        shifted = x[:, :, 1::2, 1::2]
        if odd_height or odd_width:
            shifted = F.pad(shifted, (0, odd_width, 0, odd_height))
        return self.bn(torch.cat([self.conv_1(x[:, :, ::2, ::2]), self.conv_2(shifted)], dim=1))


class DilConv(nn.Sequential):
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, *, stride: int, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(
                channels,
                channels,
                kernel,
                stride=stride,
                padding=kernel - 1,
                dilation=2,
                groups=channels,
                bias=False,
            ),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )


class SepConv(nn.Sequential):
    """Two rounds of ReLU, depthwise and pointwise convolution, batch norm; the first strides."""

    def __init__(self, channels: int, kernel: int, *, stride: int, affine: bool) -> None:
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                nn.Conv2d(
                    channels,
                    channels,
                    kernel,
                    stride=step,
                    padding=kernel // 2,
                    groups=channels,
                    bias=False,
                ),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels, affine=affine),
            ]
        super().__init__(*layers)


class SharpSepConv(nn.Sequential):
    """Two rounds of ReLU, depthwise and pointwise convolution, batch norm, of a width between.

    Maps ``(batch, in_chans, h, w)`` to ``(batch, out_chans, ceil(h / stride),
    ceil(w / stride))``. The first round strides and dilates, and leads to ``mid_chans``
    channels (``out_chans`` unless given); the second one does neither.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int,
        *,
        stride: int,
        affine: bool,
        dilation: int = 1,
        mid_chans: int | None = None,
    ) -> None:
        mid = out_chans if mid_chans is None else mid_chans
        layers: list[nn.Module] = []
        for before, after, step, spread in (
            (in_chans, mid, stride, dilation),
            (mid, out_chans, 1, 1),
        ):
            layers += [
                nn.ReLU(),
                nn.Conv2d(
                    before,
                    before,
                    kernel,
                    stride=step,
                    padding=spread * (kernel // 2),
                    dilation=spread,
                    groups=before,
                    bias=False,
                ),
                nn.Conv2d(before, after, 1, bias=False),
                nn.BatchNorm2d(after, affine=affine),
            ]
        super().__init__(*layers)


class Zero(nn.Module):
    """The operation ``none``: no connection, zeros of the strided shape."""

    def __init__(self, *, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return FactorizedReduce(channels, channels, affine=affine)


_OPERATIONS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda channels, stride, affine: Zero(stride=stride),
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride=stride, padding=1),
    "avg_pool_3x3": lambda channels, stride, affine: nn.AvgPool2d(
        3, stride=stride, padding=1, count_include_pad=False
    ),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda channels, stride, affine: SepConv(
        channels, 3, stride=stride, affine=affine
    ),
    "sep_conv_5x5": lambda channels, stride, affine: SepConv(
        channels, 5, stride=stride, affine=affine
    ),
    "dil_conv_3x3": lambda channels, stride, affine: DilConv(
        channels, 3, stride=stride, affine=affine
    ),
    "dil_conv_5x5": lambda channels, stride, affine: DilConv(
        channels, 5, stride=stride, affine=affine
    ),
}

OPERATIONS = tuple(_OPERATIONS)
"""The operations of an edge in the original's order, on which ties depend; ``none`` is first."""

FLOOD = 4
"""A flood convolution is so many times as wide between its two rounds as at its ends."""

CHOKE_CHANNELS = 32
"""The width of a choke convolution between its two rounds, whatever that at its ends."""


@dataclass(frozen=True)
class Sharp:
    """The kernel, dilation and width between the rounds of one SharpSepConv operation."""

    kernel: int
    dilation: int = 1
    flood: int = 1
    choke: int | None = None

    def mid_chans(self, channels: int) -> int:
        """Return the width between the rounds of an operation that keeps ``channels``."""
        return self.choke or self.flood * channels


SHARP_OPERATIONS: dict[str, Sharp] = {
    "sharp_sep_conv_3x3": Sharp(3),
    "sharp_sep_conv_5x5": Sharp(5),
    "sharp_sep_conv_7x7": Sharp(7),
    "sharp_dil_conv_3x3": Sharp(3, dilation=2),
    "sharp_dil_conv_5x5": Sharp(5, dilation=2),
    "sharp_flood_conv_3x3": Sharp(3, flood=FLOOD),
    "sharp_flood_conv_5x5": Sharp(5, flood=FLOOD),
    "sharp_dil_flood_conv_3x3": Sharp(3, dilation=2, flood=FLOOD),
    "sharp_dil_flood_conv_5x5": Sharp(5, dilation=2, flood=FLOOD),
    "sharp_choke_conv_3x3": Sharp(3, choke=CHOKE_CHANNELS),
    "sharp_dil_choke_conv_3x3": Sharp(3, dilation=2, choke=CHOKE_CHANNELS),
}

ALL_OPERATIONS = (*OPERATIONS, *SHARP_OPERATIONS)
"""Every operation that an edge of this family may have."""

_POOLS_AND_SKIP = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")

PRIMITIVE_SETS: dict[str, tuple[str, ...]] = {
    "darts": OPERATIONS,
    "sharp-darts": (
        *_POOLS_AND_SKIP,
        "sharp_sep_conv_3x3",
        "sharp_sep_conv_5x5",
        "sharp_dil_conv_3x3",
        "sharp_dil_conv_5x5",
    ),
    "sharp": (
        "none",
        "max_pool_3x3",
        "skip_connect",
        "sharp_sep_conv_3x3",
        "sharp_dil_conv_3x3",
        "sharp_flood_conv_3x3",
        "sharp_dil_flood_conv_3x3",
        "sharp_choke_conv_3x3",
        "sharp_dil_choke_conv_3x3",
    ),
    "sharper": (
        *_POOLS_AND_SKIP,
        "sharp_sep_conv_3x3",
        "sharp_sep_conv_5x5",
        "sharp_sep_conv_7x7",
        "sharp_dil_conv_3x3",
        "sharp_dil_conv_5x5",
        "sharp_flood_conv_3x3",
        "sharp_flood_conv_5x5",
        "sharp_dil_flood_conv_3x3",
    ),
}
"""Named sets of operations in the originals' order: DARTS's eight, the same eight with
SharpSepConv for the separable and dilated ones, and sharpDARTS's ``PRIMITIVES`` (nine) and
``SHARPER_PRIMITIVES`` (twelve)."""


def operation(name: str, channels: int, *, stride: int, affine: bool) -> nn.Module:
    """Build one operation that keeps the number of channels.

    Maps ``(batch, channels, h, w)`` to ``(batch, channels, ceil(h / stride),
    ceil(w / stride))``.

    Raises:
        UnknownNameError: ``name`` is not one of ``ALL_OPERATIONS``.
    """
    if name in _OPERATIONS:
        return _OPERATIONS[name](channels, stride, affine)
    if name not in SHARP_OPERATIONS:
        raise UnknownNameError("DARTS operation", name, ALL_OPERATIONS)
    shape = SHARP_OPERATIONS[name]
    return SharpSepConv(
        channels,
        channels,
        shape.kernel,
        stride=stride,
        affine=affine,
        dilation=shape.dilation,
        mid_chans=shape.mid_chans(channels),
    )


def preprocess(in_chans: int, out_chans: int, *, halve: bool, affine: bool) -> nn.Module:
    """Build what brings a cell's input to its width and, if ``halve``, to half its size."""
    return (FactorizedReduce if halve else ReluConvBn)(in_chans, out_chans, affine=affine)
