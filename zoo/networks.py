"""Published networks by name: what ``network`` in a training's request and ``--network`` stand for.

A name stands for a space at the published size and a genotype in it; ``recipe`` is the preset
(``zoo.recipes``) of how it was trained, an auxiliary head included, if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Network:
    """One published network: ``genotype`` as the space writes it, and ``num_params`` published.

    The parameters are counted without an auxiliary head, for ``classes`` classes of images of
    ``size`` pixels.
    """

    space: str
    params: Mapping[str, Json]
    genotype: str
    recipe: str | None
    source: str
    num_params: int
    size: int
    classes: int


_DARTS = (
    "normal: sep_conv_3x3(0) + sep_conv_3x3(1) | sep_conv_3x3(0) + sep_conv_3x3(1)"
    " | sep_conv_3x3(1) + skip_connect(0) | skip_connect(0) + dil_conv_3x3(2);"
    " reduce: max_pool_3x3(0) + max_pool_3x3(1) | skip_connect(2) + max_pool_3x3(1)"
    " | max_pool_3x3(0) + skip_connect(2) | skip_connect(2) + max_pool_3x3(1)"
)

_PC_DARTS_CIFAR = (
    "normal: sep_conv_3x3(1) + skip_connect(0) | sep_conv_3x3(0) + dil_conv_3x3(1)"
    " | sep_conv_5x5(0) + sep_conv_3x3(1) | avg_pool_3x3(0) + dil_conv_3x3(1);"
    " reduce: sep_conv_5x5(1) + max_pool_3x3(0) | sep_conv_5x5(1) + sep_conv_5x5(2)"
    " | sep_conv_3x3(0) + sep_conv_3x3(3) | sep_conv_3x3(1) + sep_conv_3x3(2)"
)

_PC_DARTS_IMAGENET = (
    "normal: skip_connect(1) + sep_conv_3x3(0) | sep_conv_3x3(0) + skip_connect(1)"
    " | sep_conv_3x3(1) + sep_conv_3x3(3) | sep_conv_3x3(1) + dil_conv_5x5(4);"
    " reduce: sep_conv_3x3(0) + skip_connect(1) | dil_conv_5x5(2) + max_pool_3x3(1)"
    " | sep_conv_3x3(2) + sep_conv_3x3(1) | sep_conv_5x5(0) + sep_conv_3x3(3)"
)

_SHARP_DARTS = (
    "normal: sharp_sep_conv_3x3(0) + sharp_sep_conv_3x3(1)"
    " | sharp_sep_conv_3x3(0) + sharp_sep_conv_3x3(2)"
    " | skip_connect(0) + sharp_sep_conv_3x3(1) | skip_connect(0) + sharp_sep_conv_3x3(1);"
    " reduce: max_pool_3x3(0) + skip_connect(1) | skip_connect(2) + avg_pool_3x3(0)"
    " | skip_connect(2) + avg_pool_3x3(0) | skip_connect(2) + skip_connect(3)"
)

_NASNET_A = (
    "normal: sep_conv_5x5(0) + sep_conv_3x3(1) "
    "| sep_conv_5x5(1) + sep_conv_3x3(1) "
    "| avg_pool_3x3(0) + identity(1) "
    "| avg_pool_3x3(1) + avg_pool_3x3(1) "
    "| sep_conv_3x3(0) + identity(0) "
    "-> 1 2 3 4 5 6; "
    "reduce: sep_conv_5x5(0) + sep_conv_7x7(1) "
    "| max_pool_3x3(0) + sep_conv_7x7(1) "
    "| avg_pool_3x3(0) + sep_conv_5x5(1) "
    "| identity(3) + avg_pool_3x3(2) "
    "| sep_conv_3x3(2) + max_pool_3x3(0) "
    "-> 3 4 5 6 "
)

_PROXYLESS_MOBILE = (
    "5x5_MB3 3x3_MB3 zero zero | 7x7_MB3 3x3_MB3 5x5_MB3 5x5_MB3 | "
    "7x7_MB6 5x5_MB3 5x5_MB3 5x5_MB3 | 5x5_MB6 5x5_MB3 5x5_MB3 5x5_MB3 | "
    "7x7_MB6 7x7_MB6 7x7_MB3 7x7_MB3 | 7x7_MB6"
)

_PROXYLESS_CPU = (
    "3x3_MB6 3x3_MB3 3x3_MB3 3x3_MB3 | 3x3_MB6 3x3_MB3 3x3_MB3 5x5_MB3 | "
    "3x3_MB6 zero zero 3x3_MB3 | 5x5_MB6 3x3_MB3 3x3_MB3 3x3_MB3 | "
    "5x5_MB6 5x5_MB3 5x5_MB3 3x3_MB3 | 5x5_MB6"
)

_PROXYLESS_GPU = (
    "5x5_MB3 zero zero zero | 7x7_MB3 zero zero 3x3_MB3 | "
    "7x7_MB6 zero zero 5x5_MB3 | 5x5_MB6 zero 3x3_MB3 5x5_MB3 | "
    "7x7_MB6 7x7_MB6 7x7_MB6 5x5_MB6 | 7x7_MB6"
)

_LIU = "Liu et al. 2019, arXiv:1806.09055 (second order)"
_XU = "Xu et al. 2020, arXiv:1907.05737"


def _darts(genotype: str, recipe: str, source: str, num_params: int, **params: Json) -> Network:
    """Return a cell network of the size that is trained on CIFAR, or on ImageNet."""
    small: dict[str, Json] = {"cells": 20, "channels": 36}
    large: dict[str, Json] = {"cells": 14, "channels": 48, "stem": "imagenet", "stem_multiplier": 1}
    imagenet = recipe.endswith("imagenet")
    return Network(
        space="darts",
        params={**(large if imagenet else small), **params},
        genotype=genotype,
        recipe=recipe,
        source=source,
        num_params=num_params,
        size=224 if imagenet else 32,
        classes=1000 if imagenet else 10,
    )


def _nasnet(preset: str, num_params: int, *, size: int) -> Network:
    """Return NASNet-A; its cells return states that are read, too."""
    return Network(
        space="nasnet",
        params={"preset": preset, "outputs": "free"},
        genotype=_NASNET_A,
        recipe="nasnet-cifar" if preset == "cifar" else None,
        source="Zoph et al. 2018, arXiv:1707.07012",
        num_params=num_params,
        size=size,
        classes=10 if preset == "cifar" else 1000,
    )


def _proxyless(
    genotype: str, widths: list[Json], num_params: int, *, stem: int, first: int, last: int
) -> Network:
    return Network(
        space="mbconv",
        params={"stem": stem, "first": first, "widths": widths, "last": last},
        genotype=genotype,
        recipe="proxyless-imagenet",
        source="Cai et al. 2019, arXiv:1812.00332",
        num_params=num_params,
        size=224,
        classes=1000,
    )


NETWORKS: Mapping[str, Network] = {
    "darts-cifar": _darts(_DARTS, "darts-cifar", _LIU, 3_349_342),
    "darts-imagenet": _darts(_DARTS, "darts-imagenet", _LIU, 4_718_752),
    "pc-darts-cifar": _darts(_PC_DARTS_CIFAR, "pc-darts-cifar", _XU, 3_634_678),
    "pc-darts-imagenet": _darts(_PC_DARTS_IMAGENET, "pc-darts-imagenet", _XU, 5_342_464),
    "sharpdarts-cifar": _darts(
        _SHARP_DARTS,
        "sharpdarts-cifar",
        "Hundt et al. 2019, arXiv:1903.09900",
        3_555_622,
        ops="sharp-darts",
    ),
    "nasnet-a-cifar": _nasnet("cifar", 3_346_538, size=32),
    "nasnet-a-mobile": _nasnet("mobile", 5_289_978, size=224),
    "nasnet-a-large": _nasnet("large", 88_753_150, size=331),
    "proxyless-mobile": _proxyless(
        _PROXYLESS_MOBILE, [32, 40, 80, 96, 192, 320], 4_080_512, stem=32, first=16, last=1280
    ),
    "proxyless-mobile-14": _proxyless(
        _PROXYLESS_MOBILE, [40, 56, 112, 136, 256, 448], 6_857_568, stem=48, first=24, last=1792
    ),
    "proxyless-cpu": _proxyless(
        _PROXYLESS_CPU, [32, 48, 88, 104, 216, 360], 4_361_648, stem=40, first=24, last=1432
    ),
    "proxyless-gpu": _proxyless(
        _PROXYLESS_GPU, [32, 56, 112, 128, 256, 432], 7_119_848, stem=40, first=24, last=1728
    ),
}


def network(name: str) -> Network:
    """Return the published network of this name.

    Raises:
        UnknownNameError: There is none; the message lists all.
    """
    if name not in NETWORKS:
        raise UnknownNameError("published network", name, NETWORKS)
    return NETWORKS[name]


def expand(fields: Mapping[str, object]) -> dict[str, object]:
    """Replace ``network`` in the fields of a request by the space and genotype that it stands for.

    Raises:
        UnknownNameError: There is no such network.
        InvalidInputError: The request names another network beside it.
    """
    given = dict(fields)
    name = given.pop("network", None)
    if name is None:
        return given
    others = ("chain", "architecture", "space", "genotype", "choices")
    beside = [other for other in others if given.get(other) is not None]
    if beside:
        raise InvalidInputError(f"network {name!r} is given beside {beside[0]}; name one of them")
    found = network(str(name))
    chosen = {"name": found.space, "params": dict(found.params)}
    return {**given, "space": chosen, "genotype": found.genotype}
