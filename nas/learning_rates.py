"""Learning rates of trainings: schedules as pure functions, and their selection by name.

========  ==========================================================================
e, E      epoch, counted from 0, and number of epochs
t, T      step, counted from 0, and number of steps of the whole training
peak      the recipe's ``lr``; ``floor`` is its ``lr_min``
W         ``warmup_epochs``
========  ==========================================================================

Sources:
    ``cosine``: Loshchilov and Hutter (2017), arXiv:1608.03983, step by step.
    ``cosine_epoch``: the same, constant within an epoch, as DARTS and PC-DARTS train.
    ``linear_epoch``: the ImageNet training of PC-DARTS, arXiv:1907.05737.
    ``exponential_epoch``: the ImageNet training of DARTS, arXiv:1806.09055.
    ``cosine_power``: sharpDARTS; see ``nas.schedules``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from nas.schedules import cosine_power
from zoo.errors import UnknownNameError

WARMUP_SHARE = 0.1
"""Share of all steps over which ``learning_rate`` rises linearly to its peak."""

LINEAR_TAIL = 5
"""Last epochs of ``linear_epoch``, which fall more slowly."""


class Plan(Protocol):
    """What of a recipe decides the learning rate."""

    @property
    def epochs(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def lr_min(self) -> float: ...

    @property
    def warmup_epochs(self) -> int | None: ...

    @property
    def schedule(self) -> str: ...

    @property
    def power(self) -> float: ...

    @property
    def gamma(self) -> float: ...


def learning_rate(step: int, total: int, peak: float, floor: float = 0.0) -> float:
    """Return the rate of ``step`` of ``total``: a tenth of warm-up, then cosine to ``floor``."""
    warmup = max(1, round(total * WARMUP_SHARE))
    if step < warmup:
        return peak * (step + 1) / warmup
    share = math.pi * (step - warmup + 1) / (total - warmup + 1)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(share))


def cosine(step: int, total: int, peak: float, floor: float = 0.0) -> float:
    """Return ``floor + (peak - floor) (1 + cos(pi t / T)) / 2``."""
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * step / total))


def cosine_epoch(epoch: int, epochs: int, peak: float, floor: float = 0.0) -> float:
    """Return ``floor + (peak - floor) (1 + cos(pi e / E)) / 2``."""
    return cosine(epoch, epochs, peak, floor)


def linear_epoch(epoch: int, epochs: int, peak: float, floor: float = 0.0) -> float:
    """Return a rate that falls linearly, and over the last ``LINEAR_TAIL`` epochs more slowly.

    With q = E - 5 the share of the peak is ``(q - e) / q`` while more than five epochs are
    left, then ``(E - e) / (5 q)``: the last step of the first line, in five steps. Trainings
    of up to five epochs fall linearly throughout.
    """
    tail = LINEAR_TAIL if epochs > LINEAR_TAIL else 0
    long, left = epochs - tail, epochs - epoch
    share = (left - tail) / long if left > tail else left / (long * tail)
    return floor + (peak - floor) * share


def exponential_epoch(epoch: int, gamma: float, peak: float, floor: float = 0.0) -> float:
    """Return ``max(floor, peak gamma ** e)``."""
    return max(floor, peak * gamma**epoch)


def warmed(epoch: int, warmup: int) -> float:
    """Return the share of an epoch's rate during warm-up: ``min(1, (e + 1) / W)``."""
    return min(1.0, (epoch + 1) / max(1, warmup))


def _cosine_steps(plan: Plan, step: int, steps: int) -> float:
    total = plan.epochs * steps
    if plan.warmup_epochs is None:
        return learning_rate(step, total, plan.lr, plan.lr_min)
    warmup = plan.warmup_epochs * steps
    if step < warmup:
        return plan.lr * (step + 1) / warmup
    return cosine(step - warmup, total - warmup, plan.lr, plan.lr_min)


def _epochwise(
    shape: Callable[[int, int, float, float], float],
) -> Callable[[Plan, int, int], float]:
    def rate(plan: Plan, step: int, steps: int) -> float:
        epoch = step // steps
        height = shape(epoch, plan.epochs, plan.lr, plan.lr_min)
        return height * warmed(epoch, plan.warmup_epochs or 0)

    return rate


def _cosine_power(plan: Plan, step: int, steps: int) -> float:
    return cosine_power(
        step // steps,
        epochs=plan.epochs,
        lr_max=plan.lr,
        lr_min=plan.lr_min,
        power=plan.power,
        warmup_epochs=plan.warmup_epochs or 0,
    )


def _exponential(plan: Plan, step: int, steps: int) -> float:
    epoch = step // steps
    height = exponential_epoch(epoch, plan.gamma, plan.lr, plan.lr_min)
    return height * warmed(epoch, plan.warmup_epochs or 0)


_SCHEDULES: Mapping[str, Callable[[Plan, int, int], float]] = {
    "cosine": _cosine_steps,
    "cosine-epoch": _epochwise(cosine_epoch),
    "cosine-power": _cosine_power,
    "exponential": _exponential,
    "linear": _epochwise(linear_epoch),
}


def rate_of(plan: Plan, step: int, steps: int) -> float:
    """Return the learning rate that a recipe gives a step.

    ``cosine`` goes step by step: with ``warmup_epochs`` None as ``learning_rate``, otherwise
    linearly to the peak within that many epochs, then along the whole cosine. The others are
    constant within an epoch; ``cosine-epoch``, ``exponential`` and ``linear`` are scaled by
    ``warmed`` at first, as PC-DARTS does, ``cosine-power`` has a warm-up of its own.

    Args:
        plan: The recipe.
        step: Counted from 0 over the whole training.
        steps: Steps of one epoch.

    Raises:
        UnknownNameError: There is no such schedule.
    """
    if plan.schedule not in _SCHEDULES:
        raise UnknownNameError("learning-rate schedule", plan.schedule, _SCHEDULES)
    return _SCHEDULES[plan.schedule](plan, step, steps)
