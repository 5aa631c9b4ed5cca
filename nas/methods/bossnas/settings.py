"""The settings of a BossNAS search, checked; and what follows from them for one space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nas.blockwise import Path
from nas.methods.bossnas.heads import HeadSizes
from nas.methods.bossnas.paths import fair_options
from nas.methods.bossnas.views import KINDS, Kind
from nas.protocols import Limit
from zoo.errors import InvalidInputError, UnknownNameError

SMALL_IMAGE = 64
"""Images up to so many pixels are cropped and mirrored only."""

LIMITS = ("flops", "num_params")
"""Costs that a limit may bound: those that are sums over a network's blocks."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See ``BossNAS`` for what each one means.

    Raises:
        InvalidInputError: A number is out of range.
        UnknownNameError: A choice is not one of those on offer.
    """

    epochs: int
    warmup_epochs: int
    batch_size: int
    accumulate: int
    lr: float
    momentum: float
    weight_decay: float
    eta: float
    ema: float
    sampling: str
    num_paths: int
    views: str
    pairs: str
    calibration_images: int
    ranking_images: int | None
    sizes: HeadSizes
    precision: str
    num_devices: int

    def __post_init__(self) -> None:
        _choose("sampling", self.sampling, ("auto", "fair", "random"))
        _choose("views", self.views, ("auto", *KINDS))
        _choose("pairs", self.pairs, ("auto", "path", "shared"))
        _choose("precision", self.precision, ("auto", "float32", "bfloat16"))
        for name, least in (
            ("epochs", 1), ("warmup_epochs", 0), ("batch_size", 2), ("accumulate", 1),
            ("num_paths", 1), ("calibration_images", 2), ("num_devices", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InvalidInputError(
                    f"{name} is {value!r}; it must be an integer of at least {least}"
                )
        images = self.ranking_images
        if images is not None and (type(images) is not int or images < 1):
            raise InvalidInputError(
                f"ranking_images is {images!r}; it must be an integer of at least 1, or none"
            )
        if self.warmup_epochs > self.epochs:
            raise InvalidInputError(
                f"warmup_epochs is {self.warmup_epochs}, more than the {self.epochs} epochs; "
                "give fewer"
            )
        if self.batch_size < 2 * self.num_devices:
            raise InvalidInputError(
                f"batch_size is {self.batch_size}; {self.num_devices} devices need at least "
                f"{2 * self.num_devices}"
            )
        for name in ("lr", "eta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InvalidInputError(f"weight_decay is {self.weight_decay}; it must be at least 0")

    def kind_of_views(self, side: int) -> Kind:
        """Return the augmentation of images of ``side`` pixels."""
        if self.views == "auto":
            return "crop" if side <= SMALL_IMAGE else "byol"
        return "byol" if self.views == "byol" else "crop"

    def shares_pairs(self, kind: Kind) -> bool:
        """Say whether all paths see one pair of views."""
        return kind == "crop" if self.pairs == "auto" else self.pairs == "shared"

    def fair(self, blocks: Iterable[Sequence[Path]]) -> bool:
        """Say whether sampled sets are to be fair; ``blocks`` are the legal paths of each.

        Raises:
            InvalidInputError: They cannot be, as some combinations are not legal.
        """
        if self.sampling == "random":
            return False
        free = all(fair_options(paths) is not None for paths in blocks)
        if not free and self.sampling == "fair":
            raise InvalidInputError(
                "sampling is 'fair', but the layers of a block do not choose freely among "
                "equally many operations; use 'random'"
            )
        return free


def bounds(limits: Sequence[Limit]) -> dict[str, float]:
    """Return the upper bounds by cost, the tightest of each.

    Raises:
        InvalidInputError: A limit is a lower bound, or on something else.
    """
    found: dict[str, float] = {}
    for limit in limits:
        if limit.metric not in LIMITS or limit.max is None or limit.min is not None:
            raise InvalidInputError(
                f"BossNAS cannot keep the limit on {limit.metric!r}; it takes upper bounds on "
                f"{' and '.join(LIMITS)}"
            )
        found[limit.metric] = min(limit.max, found.get(limit.metric, math.inf))
    return found


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UnknownNameError(name, str(value), choices)
