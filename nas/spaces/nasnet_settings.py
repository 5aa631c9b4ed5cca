"""The sizes of a NASNet: what is fixed while its cells are searched, and published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from nas.spaces.categorical import count
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.nasnet import COMBINES
from zoo.families.nasnet_operations import OPERATIONS

STEMS = ("cifar", "imagenet")
OUTPUTS = ("unused", "free")

STEM_CELLS = 2
"""Reduction cells between the stem and the first normal cell of networks for large images."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "cells": 3,
        "channels": 8,
        "num_blocks": 3,
        "ops": (
            "identity",
            "avg_pool_3x3",
            "max_pool_3x3",
            "conv_1x1",
            "sep_conv_3x3",
            "sep_conv_5x5",
        ),
        "combines": ("add",),
        "stem_channels": 24,
    },
    "cifar": {"cells": 18, "channels": 32, "stem_channels": 96},
    "mobile": {
        "cells": 12,
        "channels": 44,
        "stem": "imagenet",
        "stem_channels": 32,
        "dropout": 0.5,
        "eps": 1e-3,
    },
    "large": {
        "cells": 18,
        "channels": 168,
        "stem": "imagenet",
        "stem_channels": 96,
        "skip": True,
        "dropout": 0.5,
        "eps": 1e-3,
    },
}
"""``cifar`` is the published 6@768, ``mobile`` 4@1056, ``large`` 6@4032; ``small`` is made to
be searched on two cores."""


@dataclass(frozen=True)
class Site:
    """One cell's place in the stack.

    After a cell with ``skip`` the next one reads one cell further back; an auxiliary head
    reads the new state of the cell that ``feeds_auxiliary``.
    """

    reduction: bool
    channels: int
    skip: bool = False
    feeds_auxiliary: bool = False


@dataclass(frozen=True, kw_only=True)
class NasnetSettings:
    """All that is fixed; the fields are the parameters of ``NasnetSpace``.

    Raises:
        UnknownNameError: A name is not on offer.
        InvalidInputError: A number is out of range, or a name repeated.
    """

    cells: int
    channels: int
    num_blocks: int = 5
    ops: tuple[str, ...] = OPERATIONS
    combines: tuple[str, ...] = COMBINES
    reductions: int = 2
    stem: str = "cifar"
    stem_channels: int
    skip: bool = False
    outputs: str = "unused"
    dropout: float = 0.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("cells", "channels", "num_blocks", "stem_channels"):
            count(name, getattr(self, name))
        count("reductions", self.reductions, most=self.cells)
        for name, choices in (("stem", STEMS), ("outputs", OUTPUTS)):
            if getattr(self, name) not in choices:
                raise UnknownNameError(name, str(getattr(self, name)), choices)
        object.__setattr__(self, "ops", _names("ops", self.ops, OPERATIONS))
        object.__setattr__(self, "combines", _names("combines", self.combines, COMBINES))
        if not isinstance(self.skip, bool):
            raise InvalidInputError(f"skip is {self.skip!r}; it must be true or false")
        if isinstance(self.dropout, bool) or not 0 <= self.dropout < 1:
            raise InvalidInputError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if isinstance(self.eps, bool) or not self.eps > 0:
            raise InvalidInputError(f"eps is {self.eps}; it must be above 0")
        if self.skip and reduction_places(self.cells, self.reductions)[0] == 0:
            raise InvalidInputError(
                f"skip needs a normal cell before every reduction: cells is {self.cells}, but "
                f"must be at least {self.reductions + 1}"
            )
        if self.sites[0].channels < 2:
            raise InvalidInputError(
                f"channels is {self.channels}; the first cell of this stem would be narrower than 2"
            )

    @classmethod
    def of(cls, preset: str, given: Mapping[str, Any]) -> NasnetSettings:
        """Return a preset's settings with those replaced that are given and not None.

        Raises:
            UnknownNameError: There is no such preset, or as for the class.
        """
        if preset not in PRESETS:
            raise UnknownNameError("NASNet preset", str(preset), PRESETS)
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{**PRESETS[preset], **chosen})

    def to_json(self) -> dict[str, Json]:
        return asdict(self) | {"ops": list(self.ops), "combines": list(self.combines)}

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All cells in order, those of the stem first."""
        found = []
        if self.stem == "imagenet":
            found = [Site(True, self.channels // 2**left) for left in range(STEM_CELLS, 0, -1)]
        reductions = reduction_places(self.cells, self.reductions)
        second = reductions[1] if len(reductions) > 1 else None
        channels = self.channels
        for cell in range(self.cells):
            if cell in reductions:
                channels *= 2
                found.append(Site(True, channels, skip=self.skip))
            found.append(Site(False, channels, feeds_auxiliary=cell + 1 == second))
        return tuple(found)


def reduction_places(cells: int, reductions: int) -> tuple[int, ...]:
    """Return before which normal cells the reductions stand: N and 2N of 3N for two."""
    return tuple(cells * number // (reductions + 1) for number in range(1, reductions + 1))


def _names(name: str, given: object, choices: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, list | tuple):
        raise InvalidInputError(f"{name} is {given!r}; give a list of names")
    for item in given:
        if item not in choices:
            raise UnknownNameError(name, str(item), choices)
    if not given or len(set(given)) < len(given):
        raise InvalidInputError(
            f"{name} are {', '.join(given) or 'empty'}; name at least one, each once"
        )
    return tuple(given)
