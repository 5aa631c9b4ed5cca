"""Learning rates as functions of the epoch.

Source:
    Hundt et al. (2019), "sharpDARTS", arXiv:1903.09900, section 3.2 (cosine power
    annealing). Differs: the last and the highest rate are exact, not to rounding; an
    annealing of one epoch is the highest rate, where the original divides by zero.
"""

from __future__ import annotations

import math

from zoo.errors import InvalidInputError


def cosine_power(
    epoch: int,
    *,
    epochs: int,
    lr_max: float,
    lr_min: float,
    power: float,
    warmup_epochs: int = 0,
) -> float:
    """Return the rate of one epoch under cosine power annealing: faster early, slower late.

    With E epochs, W of them warm-up, and e = epoch + 1 - W: c = (1 + cos(π e / (E - W))) / 2
    and q = power ** (c + 1), or q = c if ``power`` is 1. The rate is q, scaled such that its
    smallest value over all epochs is ``lr_min`` and its largest ``lr_max``. With warm-up the
    first W + 1 epochs rise instead, in equal steps, to ``lr_max`` in epoch W.

    Args:
        epoch: Counted from 0, below ``epochs``.
        epochs: All epochs.
        lr_max: Where the rate starts, or the warm-up ends.
        lr_min: The rate of the last epoch.
        power: At least 1, which gives a cosine; the larger, the earlier the rate falls.
        warmup_epochs: Below ``epochs``; 0 starts at ``lr_max``.

    Raises:
        InvalidInputError: A number is out of its range.
    """
    rules = (
        ("warmup_epochs", warmup_epochs, 0 <= warmup_epochs < epochs, f"0 to {epochs - 1}"),
        ("epoch", epoch, 0 <= epoch < epochs, f"0 to {epochs - 1}"),
        ("power", power, power >= 1, "at least 1"),
    )
    for name, value, holds, wanted in rules:
        if not holds:
            raise InvalidInputError(f"{name} is {value}; it must be {wanted}")
    if warmup_epochs and epoch <= warmup_epochs:
        share = (epoch + 1) / (warmup_epochs + 1)
    else:
        # The highest point: the first epoch, or with warm-up the one before it ends.
        last = epochs - warmup_epochs
        highest = _powered(0 if warmup_epochs else 1, last, power)
        lowest = _powered(last, last, power)
        value = _powered(epoch + 1 - warmup_epochs, last, power)
        share = (value - lowest) / (highest - lowest) if highest > lowest else 1.0
    return (1 - share) * lr_min + share * lr_max


def _powered(epoch: int, epochs: int, power: float) -> float:
    cosine = (1 + math.cos(math.pi * epoch / epochs)) / 2
    return cosine if power == 1 else power ** (cosine + 1)
