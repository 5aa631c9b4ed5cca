"""What all sampling methods share: which candidates are feasible, and which are best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.pareto import Direction, Points, crowding, front, hypervolume, ranks
from nas.protocols import Limit
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, Evaluation


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate that was evaluated: objective values, and relative violation a bound."""

    architecture: Architecture
    values: tuple[float, ...]
    violations: Mapping[str, float]

    @cached_property
    def feasible(self) -> bool:
        return all(violation <= 0 for violation in self.violations.values())

    @property
    def violation(self) -> float:
        """Sum of what the bounds are exceeded by, 0 if all hold."""
        return sum(max(0.0, violation) for violation in self.violations.values())


def objective_values(evaluation: Evaluation, objectives: Sequence[str]) -> tuple[float, ...]:
    """Return the metrics that are objectives.

    Raises:
        InvalidInputError: The evaluator does not report one of them.
    """
    return tuple(_metric(evaluation, name, "objective") for name in objectives)


def violations(evaluation: Evaluation, limits: Sequence[Limit]) -> dict[str, float]:
    """Return by how much each bound is exceeded, relative to the bound; 0 or less holds.

    Raises:
        InvalidInputError: The evaluator does not report a limited metric.
    """
    found: dict[str, float] = {}
    for limit in limits:
        value = _metric(evaluation, limit.metric, "limit")
        for side, bound, sign in (("max", limit.max, 1.0), ("min", limit.min, -1.0)):
            if bound is not None:
                excess = sign * (value - bound) / (abs(bound) or 1.0)
                name = f"{limit.metric}.{side}"
                found[name] = max(found.get(name, excess), excess)
    return found


def order(candidates: Sequence[Ranked], directions: Sequence[Direction]) -> list[Ranked]:
    """Return the candidates, best first.

    First the Pareto front of the feasible ones: the best in the first objective leads,
    the others follow from the loneliest to the most crowded. Then the feasible rest, front
    by front in the same way. Then the infeasible ones, by how much they exceed the limits.
    Ties keep the order given.
    """
    feasible = [item for item in candidates if item.feasible]
    infeasible = [item for item in candidates if not item.feasible]
    ordered: list[Ranked] = []
    if feasible:
        points = np.array([item.values for item in feasible])
        rank = ranks(points, directions)
        for level in range(int(rank.max()) + 1):
            members = np.flatnonzero(rank == level)
            ordered += [feasible[i] for i in _order_front(members, points, directions)]
    return ordered + sorted(infeasible, key=lambda item: item.violation)


def covered(candidates: Sequence[Ranked], directions: Sequence[Direction]) -> float:
    """Return the hypervolume of the feasible candidates, up to the worst values among them.

    It never falls as candidates are added.
    """
    points = np.array([item.values for item in candidates if item.feasible])
    if len(points) == 0:
        return 0.0
    worst = np.where(np.array(directions) == "maximize", points.min(axis=0), points.max(axis=0))
    return hypervolume(points[front(points, directions)], worst, directions)


def _order_front(
    members: NDArray[np.intp], points: Points, directions: Sequence[Direction]
) -> list[int]:
    values = points[members]
    sign = -1.0 if directions[0] == "maximize" else 1.0
    lead = int(np.argmin(sign * values[:, 0]))
    rest = np.delete(np.arange(len(members)), lead)
    lonely = np.argsort(-crowding(values)[rest], kind="stable")
    return [int(members[lead]), *(int(members[i]) for i in rest[lonely])]


def _metric(evaluation: Evaluation, name: str, role: str) -> float:
    if name not in evaluation.metrics:
        known = ", ".join(sorted(evaluation.metrics))
        raise InvalidInputError(
            f"the evaluator does not report the {role} {name!r}; it has {known}"
        )
    return float(evaluation.metrics[name])
