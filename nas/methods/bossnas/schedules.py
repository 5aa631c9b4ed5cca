"""Schedules of a block: learning rate and the target network's momentum. Both restart with it.

A step is a batch; an update that accumulates several is at the last of them.
"""

from __future__ import annotations

import math

WARMUP_RATIO = 1e-4
"""Share of the learning rate at which the warm-up begins."""


def ema_momentum(step: int, total: int, base: float = 0.99) -> float:
    """Return 1 - (1 - base) (cos(π step / total) + 1) / 2: from ``base`` at step 0 up to 1."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total) + 1) / 2


def learning_rate(
    step: int, steps_per_epoch: int, epochs: int, peak: float, warmup_epochs: int = 0
) -> float:
    """Return the rate of ``step`` (from 0): a cosine to 0 by epochs, under a linear warm-up.

    Within an epoch the cosine is constant, peak (1 + cos(π epoch / epochs)) / 2. In the
    warm-up it is multiplied by a factor that rises step by step from ``WARMUP_RATIO`` to 1.
    """
    epoch = step // steps_per_epoch
    rate = 0.5 * peak * (1 + math.cos(math.pi * epoch / epochs))
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - WARMUP_RATIO)
    return rate
