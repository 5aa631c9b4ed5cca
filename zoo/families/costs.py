"""Closed forms of what layers cost, for the formulas of block families."""

from __future__ import annotations

from zoo.builders import BlockCost
from zoo.families.interfaces import sides
from zoo.spec import TensorSpec


def area(tensor: TensorSpec) -> int:
    """Return the number of pixels.

    Raises:
        IncompatibleShapeError: ``tensor`` is no image, or its size may vary.
    """
    height, breadth = sides(tensor)
    return height * breadth


def conv(
    in_chans: int, out_chans: int, kernel: int, pixels: int, *, groups: int = 1, bias: bool = False
) -> BlockCost:
    """Return the cost of a square convolution whose output has ``pixels``."""
    weights = out_chans * (in_chans // groups) * kernel * kernel
    return BlockCost(macs=weights * pixels, num_params=weights + out_chans * bias)


def linear(in_chans: int, out_chans: int, tokens: int, *, bias: bool = True) -> BlockCost:
    """Return the cost of a linear map of ``tokens`` vectors."""
    weights = in_chans * out_chans
    return BlockCost(macs=weights * tokens, num_params=weights + out_chans * bias)


def norm(channels: int) -> BlockCost:
    """Return the cost of a normalisation with scale and offset."""
    return BlockCost(num_params=2 * channels)


def total(*parts: BlockCost) -> BlockCost:
    """Return the sum."""
    return sum(parts, BlockCost())
