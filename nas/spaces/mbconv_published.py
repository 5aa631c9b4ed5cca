"""The networks that ProxylessNAS published, as architectures of their own MBConv spaces.

They are wider than the space that was searched, each in its own way.

Source:
    The configurations of Cai et al. (2019), "ProxylessNAS", arXiv:1812.00332. Parameters:
    mobile 4,080,512, cpu 4,361,648, gpu 7,119,848, mobile_14 6,857,568.
"""

from __future__ import annotations

from typing import Any

from nas.spaces.mbconv import MBConvSpace
from zoo.errors import UnknownNameError
from zoo.spec import Architecture

_MOBILE = (
    "5x5_MB3 3x3_MB3 zero zero | 7x7_MB3 3x3_MB3 5x5_MB3 5x5_MB3 | "
    "7x7_MB6 5x5_MB3 5x5_MB3 5x5_MB3 | 5x5_MB6 5x5_MB3 5x5_MB3 5x5_MB3 | "
    "7x7_MB6 7x7_MB6 7x7_MB3 7x7_MB3 | 7x7_MB6"
)

_PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "mobile": (
        {"stem": 32, "first": 16, "widths": (32, 40, 80, 96, 192, 320), "last": 1280},
        _MOBILE,
    ),
    "mobile_14": (
        {"stem": 48, "first": 24, "widths": (40, 56, 112, 136, 256, 448), "last": 1792},
        _MOBILE,
    ),
    "cpu": (
        {"stem": 40, "first": 24, "widths": (32, 48, 88, 104, 216, 360), "last": 1432},
        "3x3_MB6 3x3_MB3 3x3_MB3 3x3_MB3 | 3x3_MB6 3x3_MB3 3x3_MB3 5x5_MB3 | "
        "3x3_MB6 zero zero 3x3_MB3 | 5x5_MB6 3x3_MB3 3x3_MB3 3x3_MB3 | "
        "5x5_MB6 5x5_MB3 5x5_MB3 3x3_MB3 | 5x5_MB6",
    ),
    "gpu": (
        {"stem": 40, "first": 24, "widths": (32, 56, 112, 128, 256, 432), "last": 1728},
        "5x5_MB3 zero zero zero | 7x7_MB3 zero zero 3x3_MB3 | "
        "7x7_MB6 zero zero 5x5_MB3 | 5x5_MB6 zero 3x3_MB3 5x5_MB3 | "
        "7x7_MB6 7x7_MB6 7x7_MB6 5x5_MB6 | 7x7_MB6",
    ),
}

PUBLISHED = tuple(_PUBLISHED)


def published(name: str) -> tuple[MBConvSpace, Architecture]:
    """Return a published network and its space; ``name`` is one of ``PUBLISHED``.

    Raises:
        UnknownNameError: There is no such network.
    """
    if name not in _PUBLISHED:
        raise UnknownNameError("published network", name, _PUBLISHED)
    settings, text = _PUBLISHED[name]
    space = MBConvSpace(**settings)
    return space, space.parse(text)
