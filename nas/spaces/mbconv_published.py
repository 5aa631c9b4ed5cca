"""The networks that ProxylessNAS published, as architectures of their own MBConv spaces.

They are wider than the space that was searched, each in its own way; ``zoo.networks`` has them.

Source:
    The configurations of Cai et al. (2019), "ProxylessNAS", arXiv:1812.00332. Parameters:
    mobile 4,080,512, cpu 4,361,648, gpu 7,119,848, mobile_14 6,857,568.
"""

from __future__ import annotations

from nas.spaces.mbconv import MBConvSpace
from zoo.errors import UnknownNameError
from zoo.networks import NETWORKS
from zoo.spec import Architecture

_NAMES = {
    "mobile": "proxyless-mobile",
    "mobile_14": "proxyless-mobile-14",
    "cpu": "proxyless-cpu",
    "gpu": "proxyless-gpu",
}

PUBLISHED = tuple(_NAMES)


def published(name: str) -> tuple[MBConvSpace, Architecture]:
    """Return a published network and its space; ``name`` is one of ``PUBLISHED``.

    Raises:
        UnknownNameError: There is no such network.
    """
    if name not in _NAMES:
        raise UnknownNameError("published network", name, _NAMES)
    found = NETWORKS[_NAMES[name]]
    space = MBConvSpace(**found.params)  # type: ignore[arg-type]
    return space, space.parse(found.genotype)
