"""The decision which edge to split and how, with no more gradients than it takes.

Every round measures D of the edges still in the race on the same batches. After a round
an edge leaves if its score lies below the leader's by more than the confidence bound: the
mean over batches of the paired difference, both under their best partition of the mean
so far, exceeds ``z`` standard errors. When one edge is left the race goes on until its
partition is as certain: the runner-up's objective exceeds the best's by ``z`` standard
errors. Then, or after ``batches``, the mean D decides as it would without a race.

Source:
    Maron and Moore (1997), "The Racing Algorithm"; ours for the combination with edges.
    Without racing (``z`` infinite) it is the published rule: 100 batches on every edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.methods.few_shot.matching import mean_distances
from nas.methods.few_shot.partition import (
    EXACT_PARTITIONS,
    OBJECTIVES,
    EdgeRule,
    Objective,
    Partition,
    Sizes,
    best_partition,
    choose_edge,
    edge_score,
    num_partitions,
    partitions,
)
from zoo.errors import InvalidInputError, UnknownNameError

ROUND = 10
"""Batches between two looks at who leads."""

Measure = Callable[[int, int], Tensor]
"""Returns D ``(operations, operations)`` of an edge on a numbered batch."""


def num_rounds(batches: int) -> int:
    """Return the rounds in which an edge is measured on so many batches.

    Raises:
        InvalidInputError: ``batches`` is no integer of at least 1.
    """
    if type(batches) is not int or batches < 1:
        raise InvalidInputError(f"batches is {batches!r}; it must be an integer of at least 1")
    return -(-batches // ROUND)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """How a split is decided.

    Attributes:
        groups: Number of groups.
        sizes: Which sizes they may have (``partition.group_sizes``).
        objective: What they minimise (``partition.OBJECTIVES``).
        rule: How edges compare (``partition.edge_score``).

    Raises:
        UnknownNameError: There is no such rule or objective.
        InvalidInputError: The sizes do not allow so many groups.
    """

    groups: int
    sizes: Sizes = "half"
    objective: Objective = "intra"
    rule: EdgeRule = "normalised"

    def __post_init__(self) -> None:
        for kind, value, choices in (
            ("rule of group sizes", self.sizes, get_args(Sizes)),
            ("objective of a partition", self.objective, get_args(Objective)),
            ("rule of the edge", self.rule, get_args(EdgeRule)),
        ):
            if value not in choices:
                raise UnknownNameError(kind, str(value), choices)
        if self.sizes == "pair" and self.groups != 2:
            raise InvalidInputError(
                f"sizes 'pair' makes 2 groups, not {self.groups}; take 'half' or 'any'"
            )

    def partition(self, distances: Tensor) -> Partition:
        """Return the best groups under D."""
        return best_partition(
            distances.tolist(), self.groups, sizes=self.sizes, objective=self.objective
        )

    def decide(self, distances: Mapping[int, Tensor]) -> tuple[int, Partition]:
        """Return the edge to split and its groups."""
        return choose_edge(
            {edge: matrix.tolist() for edge, matrix in distances.items()},
            self.groups,
            sizes=self.sizes,
            objective=self.objective,
            rule=self.rule,
        )


@dataclass(kw_only=True)
class Race:
    """One decision in progress; ``round`` advances it.

    Args:
        criterion: How it is decided.
        edges: Who takes part; each has at least as many operations as there are groups.
        batches: Measurements of an edge at most.
        z: Standard errors of the bound; infinite measures all.

    Raises:
        InvalidInputError: No edge takes part, or a number is out of range.
    """

    criterion: Criterion
    edges: tuple[int, ...]
    batches: int = 100
    z: float = 3.0
    samples: dict[int, list[Tensor]] = field(default_factory=dict)
    alive: tuple[int, ...] = ()
    passes: int = 0
    decided: bool = False

    def __post_init__(self) -> None:
        if not self.edges:
            raise InvalidInputError("no edge is left that could be split; split fewer times")
        num_rounds(self.batches)
        if not self.z > 0:
            raise InvalidInputError(f"z is {self.z}; it must be above 0")
        self.alive = self.alive or self.edges
        for edge in self.edges:
            self.samples.setdefault(edge, [])

    @property
    def rounds(self) -> int:
        """Rounds after which the race is over at the latest."""
        return num_rounds(self.batches)

    def round(self, measure: Measure) -> None:
        """Measure up to ``ROUND`` batches of every edge in the race; nothing if it is decided."""
        first = len(self.samples[self.alive[0]])
        if self.decided or first >= self.batches:
            return
        for batch in range(first, min(first + ROUND, self.batches)):
            for edge in self.alive:
                found = measure(edge, batch)
                self.passes += len(found)
                self.samples[edge].append(found.double().cpu())
        if len(self.samples[self.alive[0]]) >= self.batches:
            self.decided = True
        elif math.isfinite(self.z):
            self._drop()
            self.decided = len(self.alive) == 1 and self._certain(self.alive[0])

    def result(self) -> tuple[int, Partition]:
        """Return the edge to split and its groups, as of now."""
        return self.criterion.decide({edge: self.mean(edge) for edge in self.alive})

    def mean(self, edge: int) -> Tensor:
        """Return the mean of D over the batches that were measured of an edge."""
        return mean_distances(self.samples[edge])

    def state_dict(self) -> dict[str, Any]:
        return {
            "alive": list(self.alive),
            "passes": self.passes,
            "decided": self.decided,
            "samples": {str(k): torch.stack(v) for k, v in self.samples.items() if v},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken, in a race of the same terms."""
        self.alive = tuple(int(edge) for edge in state["alive"])
        self.passes, self.decided = int(state["passes"]), bool(state["decided"])
        kept = state["samples"]
        self.samples = {edge: list(kept.get(str(edge), ())) for edge in self.edges}

    def _drop(self) -> None:
        scores: dict[int, NDArray[np.float64]] = {}
        for edge in self.alive:
            groups = self.criterion.partition(self.mean(edge))
            scores[edge] = np.array(
                [
                    edge_score(sample.tolist(), groups, self.criterion.rule)
                    for sample in self.samples[edge]
                ]
            )
        leader, _ = self.result()
        self.alive = tuple(
            edge
            for edge in self.alive
            if edge == leader or not exceeds(scores[leader] - scores[edge], self.z)
        )

    def _certain(self, edge: int) -> bool:
        """Return whether the best partition of an edge beats every other beyond the bound."""
        terms = self.criterion
        operations = len(self.samples[edge][0])
        if num_partitions(operations, terms.groups, terms.sizes) > EXACT_PARTITIONS:
            return False
        score = OBJECTIVES[terms.objective]
        best = terms.partition(self.mean(edge))
        samples = [sample.tolist() for sample in self.samples[edge]]
        own = np.array([score(sample, best) for sample in samples])
        return all(
            exceeds(np.array([score(sample, other) for sample in samples]) - own, self.z)
            for other in partitions(operations, terms.groups, terms.sizes)
            if other != best
        )


def exceeds(differences: NDArray[np.float64], z: float) -> bool:
    """Return whether the mean of paired differences is above 0 by more than ``z`` errors of it."""
    count = len(differences)
    if count < 2:
        return False
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    return float(differences.mean()) > z * error
