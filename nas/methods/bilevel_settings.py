"""What the bilevel searches can be told, and within which bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nas.schedules import cosine_power
from nas.supernet import WEIGHTINGS
from zoo.errors import InvalidInputError

PRECISIONS = ("auto", "float32", "bfloat16")
CROPS = ("padded", "resized")


@dataclass(frozen=True, kw_only=True)
class BilevelSettings:
    """Settings of a search by gradients; ``nas.methods.pc_darts.PCDarts`` explains them."""

    epochs: int
    warmup_epochs: int
    batch_size: int
    k: int
    edge_normalisation: bool
    order: int
    lr: float
    lr_min: float
    lr_warmup_epochs: int
    momentum: float
    weight_decay: float
    clip_norm: float
    arch_lr: float
    arch_weight_decay: float
    arch_clip_norm: float | None
    weight_share: float
    arch_share: float
    augment: bool
    fused: bool
    precision: str
    report_every: int
    lr_power: float | None = None
    weighting: str = "scalar"
    auto_augment: bool = False
    cutout: float = 0.0
    nesterov: bool = False
    crop: str = "padded"

    def __post_init__(self) -> None:
        shares = self.weight_share > 0 and self.arch_share > 0
        clip = self.arch_clip_norm is None or self.arch_clip_norm > 0
        rises = self.lr_power is None or self.lr_warmup_epochs < self.epochs
        rules = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("warmup_epochs", self.warmup_epochs >= 0, "at least 0"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("order", self.order in (1, 2), "1 or 2"),
            ("lr", self.lr > 0, "above 0"),
            ("lr_min", 0 <= self.lr_min <= self.lr, "between 0 and lr"),
            ("lr_warmup_epochs", self.lr_warmup_epochs >= 0, "at least 0"),
            ("lr_warmup_epochs", rises, f"below epochs ({self.epochs})"),
            ("lr_power", self.lr_power is None or self.lr_power >= 1, "at least 1"),
            ("weighting", self.weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}"),
            ("cutout", 0 <= self.cutout <= 1, "between 0 and 1"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip_norm", self.clip_norm > 0, "above 0"),
            ("arch_lr", self.arch_lr > 0, "above 0"),
            ("arch_weight_decay", self.arch_weight_decay >= 0, "at least 0"),
            ("arch_clip_norm", clip, "above 0, or none"),
            ("weight_share", shares and self.weight_share < 1, "above 0 and below 1"),
            ("arch_share", shares and self.covered <= 1, "above 0, at most 1 with weight_share"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            ("crop", self.crop in CROPS, f"one of {', '.join(CROPS)}"),
            ("report_every", self.report_every >= 0, "at least 0"),
        )
        for name in ("epochs", "warmup_epochs", "batch_size", "k", "lr_warmup_epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidInputError(f"{name} is {value!r}; it must be an integer")
        for name, holds, wanted in rules:
            if not holds:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be {wanted}")
        if self.order == 2 and self.precision == "bfloat16":
            raise InvalidInputError(
                "order is 2 with precision bfloat16; the finite difference of a second-order "
                "step vanishes in bfloat16, so choose float32"
            )

    @property
    def covered(self) -> float:
        """The share of the training set that is used at all."""
        return round(self.weight_share + self.arch_share, 9)

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of the weights in ``epoch``, counted from 0.

        A cosine to ``lr_min``, scaled up linearly in the first epochs; with ``lr_power``
        cosine power annealing.
        """
        if self.lr_power is not None:
            return cosine_power(
                epoch,
                epochs=self.epochs,
                lr_max=self.lr,
                lr_min=self.lr_min,
                power=self.lr_power,
                warmup_epochs=self.lr_warmup_epochs,
            )
        cosine = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        rate = self.lr_min + (self.lr - self.lr_min) * cosine
        return rate * min(1.0, (epoch + 1) / max(1, self.lr_warmup_epochs))
