"""Which operations a sub-supernet may use: a mask ``(edges, operations)`` of Booleans.

Splitting an edge gives every child the parent's mask with one group of the edge's
operations: children are disjoint on that edge, and together cover the parent. Edges with
fewer operations than others are padded with False.

Source:
    Hu et al. (2022), arXiv:2203.15207 (``enc``, θ); Zhao et al. (2021), "Few-shot Neural
    Architecture Search", arXiv:2006.06863.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain, product
from math import prod

import torch
from torch import Tensor

from zoo.errors import InvalidInputError


def full_mask(cardinalities: Sequence[int]) -> Tensor:
    """Return the mask of a whole space, given the number of operations of each edge."""
    counts = torch.tensor(cardinalities).unsqueeze(1)
    return torch.arange(int(counts.max())) < counts


def allowed(mask: Tensor) -> list[list[int]]:
    """Return the allowed operations of every edge, ascending."""
    return [[at for at, may in enumerate(row) if may] for row in mask.tolist()]


def split_mask(mask: Tensor, edge: int, groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the masks of the children when ``edge`` is split into ``groups`` of operations.

    Args:
        mask: The parent's, ``(edges, operations)``.
        edge: The row to split.
        groups: Operations by their number in the row, each of the allowed ones once.

    Raises:
        InvalidInputError: The groups do not part the allowed operations.
    """
    parent = allowed(mask)[edge]
    if sorted(op for group in groups for op in group) != parent or not all(groups):
        raise InvalidInputError(
            f"the groups {groups} do not part the operations {parent} of edge {edge}"
        )
    children = []
    for group in groups:
        child = mask.clone()
        child[edge] = False
        child[edge, list(group)] = True
        children.append(child)
    return children


def sub_space_size(mask: Tensor) -> int:
    """Return the number of ways to give every edge one allowed operation.

    Where an architecture keeps only some edges (DARTS), several of these ways are one.
    """
    return prod(int(count) for count in mask.sum(1))


def restricted(scores: Sequence[Sequence[float]], mask: Tensor) -> list[list[float]]:
    """Return the scores of the allowed operations of every edge, in their order."""
    return [[row[op] for op in kept] for row, kept in zip(scores, allowed(mask), strict=True)]


Parts = Sequence[Sequence[tuple[int, ...]]]
"""The legal choices of every part of an architecture; an architecture takes one of each."""


def distinct(parts: Parts, count: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Return ``count`` different combinations drawn uniformly, or all if there are no more.

    (The official code draws forever from a sub-space of fewer than 200 networks.)

    Args:
        parts: What to combine.
        count: How many.
        rng: Source of the draws.
    """
    if prod(map(len, parts)) <= count:
        return [tuple(chain.from_iterable(found)) for found in product(*parts)]
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        drawn.setdefault(tuple(chain.from_iterable(rng.choice(part) for part in parts)))
    return list(drawn)
