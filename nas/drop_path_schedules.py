"""ScheduledDropPath: how likely a path is kept, by the depth of its cell and the time.

Source:
    Zoph et al. (2018), arXiv:1707.07012; the numbers of ``SCHEDULES`` are those of the
    official code, github.com/tensorflow/models, research/slim/nets/nasnet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zoo.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class DropPathSchedule:
    """A schedule: the last cell's paths are kept with probability ``base_keep`` in the end.

    ``steps`` is after how many updates that is so, ``cells`` the number of cells, those of
    reductions and stem counted.
    """

    base_keep: float
    steps: int
    cells: int

    def keep(self, cell: int, step: int) -> float:
        """Return the probability that a path of ``cell`` is kept at ``step``, both from 0."""
        return scheduled_keep(
            self.base_keep, cell=cell, cells=self.cells, step=step, steps=self.steps
        )


SCHEDULES: Mapping[str, DropPathSchedule] = {
    "cifar": DropPathSchedule(base_keep=0.6, steps=937_500, cells=20),
    "mobile": DropPathSchedule(base_keep=1.0, steps=250_000, cells=16),
    "large": DropPathSchedule(base_keep=0.7, steps=250_000, cells=22),
}
"""The published schedules, by the preset of ``NasnetSpace``; 937,500 steps are 600 epochs of
50,000 images in batches of 32."""


def keep_at_depth(base_keep: float, depth: float, *, step: int, steps: int) -> float:
    """Return ``1 - min(1, step / steps) depth (1 - base_keep)``, written as it is published.

    Args:
        base_keep: Of the last layer in the end.
        depth: Place of the layer, ``(cell + 1) / cells``.
        step: Updates of the weights so far.
        steps: Updates until the end of the schedule.
    """
    keep_layer = 1 - depth * (1 - base_keep)
    return 1 - min(1.0, step / steps) * (1 - keep_layer)


def layer_keep(base_keep: float, *, cell: int, cells: int) -> float:
    """Return a cell's keep-probability in the end: ``1 - ((cell + 1) / cells) (1 - base_keep)``.

    Raises:
        InvalidInputError: ``base_keep`` is not in (0, 1], or ``cell`` not one of ``cells``.
    """
    if not 0 < base_keep <= 1:
        raise InvalidInputError(f"base_keep is {base_keep}; it must be above 0 and at most 1")
    if not 0 <= cell < cells:
        raise InvalidInputError(f"cell {cell} is not one of {cells}, counted from 0")
    return 1 - (cell + 1) / cells * (1 - base_keep)


def scheduled_keep(base_keep: float, *, cell: int, cells: int, step: int, steps: int) -> float:
    """Return a path's keep-probability: ``1 - min(1, step / steps) (1 - layer_keep)``.

    Args:
        base_keep: Of the last cell in the end.
        cell: Position of the path's cell, from 0.
        cells: Number of cells, those of reductions and stem counted.
        step: Updates of the weights so far.
        steps: Updates until the end of the schedule.

    Raises:
        InvalidInputError: A number is out of range.
    """
    if step < 0 or steps < 1:
        raise InvalidInputError(f"step {step} of {steps} is not within a training")
    return 1 - min(1.0, step / steps) * (1 - layer_keep(base_keep, cell=cell, cells=cells))
