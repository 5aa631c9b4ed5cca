"""What is done at which step of a few-shot search: a pure function of the schedule.

A schedule has one stage more than splits. In stage s every sub-supernet is trained up to
the s-th checkpoint; then the edges of each are measured and it is split. Either is done for
all of them together or for one after the other. After the last stage the candidates of all
compete.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Literal, TypeAlias

from zoo.errors import ConflictError, InvalidInputError

Phase: TypeAlias = Literal["train", "match", "select"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a supernet is split, into how many, and what follows.

    Attributes:
        checkpoints: Epochs at which to split, ascending.
        groups: Sub-supernets made of each one at each checkpoint.
        final_epochs: Epochs of every sub-supernet after the last split.
        restart: Whether those start from fresh weights; until then, architecture parameters
            are frozen. Otherwise all go on from their parents' weights and optimisers.
        fixed_schedule: Whether the learning rate of what restarts anneals over its own epochs;
            otherwise over the length of the whole (and so ends half-way, as in the official
            code on NAS-Bench-201). A temperature always falls over its own.

    Raises:
        InvalidInputError: The numbers do not fit each other.
    """

    checkpoints: tuple[int, ...]
    groups: tuple[int, ...]
    final_epochs: int
    restart: bool
    fixed_schedule: bool = True

    def __post_init__(self) -> None:
        if len(self.checkpoints) != len(self.groups) or not self.checkpoints:
            raise InvalidInputError(
                f"there are {len(self.checkpoints)} checkpoints and {len(self.groups)} numbers "
                "of groups; give one of each for every split"
            )
        for name in ("checkpoints", "groups"):
            for value in getattr(self, name):
                if type(value) is not int:
                    raise InvalidInputError(f"{name} has {value!r}; it takes integers")
        if list(self.checkpoints) != sorted(self.checkpoints) or self.checkpoints[0] < 0:
            raise InvalidInputError(f"checkpoints are {self.checkpoints}; they must ascend from 0")
        if any(groups < 2 for groups in self.groups):
            raise InvalidInputError(f"groups are {self.groups}; each must be at least 2")
        if type(self.final_epochs) is not int or self.final_epochs < 1:
            raise InvalidInputError(
                f"final_epochs is {self.final_epochs!r}; it must be an integer of at least 1"
            )
        for name in ("restart", "fixed_schedule"):
            if type(getattr(self, name)) is not bool:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}; give true or false")

    @property
    def splits(self) -> int:
        return len(self.checkpoints)

    def nets(self, stage: int) -> int:
        """Return how many sub-supernets there are in ``stage``."""
        return prod(self.groups[:stage])

    def epochs(self, stage: int) -> int:
        """Return the epochs that each sub-supernet is trained in ``stage``."""
        if stage == self.splits:
            return self.final_epochs
        return self.checkpoints[stage] - (self.checkpoints[stage - 1] if stage else 0)

    def length(self, stage: int) -> int:
        """Return the epochs over which the learning rate falls."""
        if self.restart and stage == self.splits and self.fixed_schedule:
            return self.final_epochs
        return self.checkpoints[-1] + self.final_epochs

    def cooling(self, stage: int) -> int:
        """Return the epochs over which a temperature falls: of what restarts, its own."""
        if self.restart and stage == self.splits:
            return self.final_epochs
        return self.checkpoints[-1] + self.final_epochs

    def frozen(self, stage: int) -> bool:
        """Return whether the architecture parameters stay as they are in ``stage``."""
        return self.restart and stage < self.splits

    @property
    def total_epochs(self) -> int:
        """Return the epochs of all sub-supernets together, the budget of the search."""
        return sum(self.nets(stage) * self.epochs(stage) for stage in range(self.splits + 1))


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One step: in which stage, in which phase, of which nets, and the how-manieth of those."""

    stage: int
    phase: Phase
    nets: range
    index: int


@dataclass(frozen=True)
class Plan:
    """All steps of a search.

    Attributes:
        schedule: Splits and epochs.
        per_epoch: Steps of an epoch.
        rounds: Steps that measure one sub-supernet before each split.
        selection: Steps of the contest in the end.
        together: Whether a step is one of all sub-supernets of its stage.
    """

    schedule: Schedule
    per_epoch: int
    rounds: int
    selection: int
    together: bool

    @cached_property
    def _parts(self) -> list[tuple[int, Phase, int, int]]:
        """Stage, phase, turns and steps a turn of every part of the search."""
        parts: list[tuple[int, Phase, int, int]] = []
        for stage in range(self.schedule.splits + 1):
            turns = 1 if self.together else self.schedule.nets(stage)
            parts.append((stage, "train", turns, self.schedule.epochs(stage) * self.per_epoch))
            if stage < self.schedule.splits:
                parts.append((stage, "match", turns, self.rounds))
        parts.append((self.schedule.splits, "select", 1, self.selection))
        return parts

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(turns * steps for _, _, turns, steps in self._parts))

    @property
    def total(self) -> int:
        return self._ends[-1]

    def at(self, step: int) -> Moment:
        """Return what step number ``step``, from 0, does.

        Raises:
            ConflictError: All steps are done.
        """
        first = 0
        for (stage, phase, _, steps), end in zip(self._parts, self._ends, strict=True):
            if step < end:
                turn, index = divmod(step - first, steps)
                whole = self.together or phase == "select"
                nets = range(self.schedule.nets(stage)) if whole else range(turn, turn + 1)
                return Moment(stage=stage, phase=phase, nets=nets, index=index)
            first = end
        raise ConflictError(f"the search is over: all {self.total} steps are done")
