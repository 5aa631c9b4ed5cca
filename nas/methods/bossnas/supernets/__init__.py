"""Published spaces cut into blocks, with the weights that the paths of a block share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nas.blockwise import Blockwise, BlockwiseSpace
from nas.methods.bossnas.supernets.fixed import macro_blockwise, mbconv_blockwise
from nas.methods.bossnas.supernets.hybrid import HybridBlockwise
from nas.methods.bossnas.supernets.hytra import HytraBlockwise
from nas.methods.bossnas.supernets.nats import NatsBlockwise
from nas.protocols import SearchSpace
from nas.spaces.hybrid import HybridSpace
from nas.spaces.hytra import HytraSpace
from nas.spaces.mbconv import MBConvSpace
from nas.spaces.nasbench_macro import NasBenchMacroSpace
from nas.spaces.nats_size import NatsSizeSpace
from zoo.errors import InvalidInputError

CUTS: dict[type, Callable[[Any], Blockwise]] = {
    HybridSpace: HybridBlockwise,
    HytraSpace: HytraBlockwise,
    MBConvSpace: mbconv_blockwise,
    NasBenchMacroSpace: macro_blockwise,
    NatsSizeSpace: NatsBlockwise,
}


def blockwise(space: SearchSpace) -> Blockwise:
    """Cut a space into blocks.

    Raises:
        InvalidInputError: Nobody says how.
    """
    if isinstance(space, BlockwiseSpace):
        return space.blockwise()
    for kind, make in CUTS.items():
        if isinstance(space, kind):
            return make(space)
    raise InvalidInputError(
        f"the space {space.describe()['name']!r} is not cut into blocks; give it a method "
        "blockwise() (nas.blockwise), or search another one"
    )
