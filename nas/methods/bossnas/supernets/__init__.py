"""Published spaces cut into blocks, with the weights that the paths of a block share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from nas.blockwise import Blockwise, BlockwiseSpace
from nas.methods.bossnas.supernets.fixed import (
    macro_blockwise,
    mbconv_blockwise,
    mbconv_se_blockwise,
)
from nas.methods.bossnas.supernets.hybrid import HybridBlockwise
from nas.methods.bossnas.supernets.hytra import HytraBlockwise
from nas.methods.bossnas.supernets.nats import NatsBlockwise
from nas.protocols import SearchSpace
from nas.spaces.hybrid import HybridSpace
from nas.spaces.hytra import HytraSpace
from nas.spaces.mbconv import MBConvSpace
from nas.spaces.mbconv_se import MBConvSESpace
from nas.spaces.nasbench_macro import NasBenchMacroSpace
from nas.spaces.nats_size import NatsSizeSpace
from zoo.errors import InvalidInputError

_OWN: dict[type, Callable[..., Blockwise]] = {
    HybridSpace: HybridBlockwise,
    HytraSpace: HytraBlockwise,
}
"""Spaces that are cut in one way only."""

_CUTS: dict[type, Callable[..., Blockwise]] = {
    MBConvSpace: mbconv_blockwise,
    MBConvSESpace: mbconv_se_blockwise,
    NasBenchMacroSpace: macro_blockwise,
    NatsSizeSpace: NatsBlockwise,
}


def blockwise(space: SearchSpace, layers: Sequence[int] | None = None) -> Blockwise:
    """Cut a space into blocks.

    Args:
        space: One of those above, or one that says itself how it is cut.
        layers: Number of layers of each block; None for the published cut.

    Raises:
        InvalidInputError: Nobody says how the space is cut, or ``layers`` do not fit it.
    """
    if layers is not None and any(type(item) is not int or item < 1 for item in layers):
        raise InvalidInputError(f"layers is {list(layers)}; give integers of at least 1")
    own = _OWN.get(type(space))
    if own is not None or isinstance(space, BlockwiseSpace):
        if layers is not None:
            raise InvalidInputError(
                f"the space {space.describe()['name']!r} is cut only as it says itself, not into "
                f"{list(layers)} layers; leave layers out"
            )
        return own(space) if own is not None else cast(BlockwiseSpace, space).blockwise()
    for kind, make in _CUTS.items():
        if isinstance(space, kind):
            return make(space) if layers is None else make(space, layers)
    raise InvalidInputError(
        f"the space {space.describe()['name']!r} is not cut into blocks; give it a method "
        "blockwise() (nas.blockwise), or search another one"
    )
