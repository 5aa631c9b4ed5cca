"""From mixtures to cells: the derived genotype, and those that come next.

The score of an operation on an edge is its share of the edge times the edge's share of
its node. A node keeps the two edges whose best operation scores highest, each with that
operation; equal scores fall to the lower state and the earlier operation. ``none`` is
never kept, but lowers the shares of the others.

Source:
    Liu et al. (2019), arXiv:1806.09055, with the edge shares of Xu et al. (2020),
    arXiv:1907.05737. The ranking beyond the first is ours: see ``ranked``.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import torch

from nas.spaces.darts import DartsSpace, Genotype
from nas.supernet import KINDS, Mixture
from zoo.families.darts import Edge, Nodes
from zoo.spec import Architecture

_Choice = tuple[float, tuple[Edge, ...]]
"""What a node may keep, and by how much the logarithm of its score falls short of the best."""

Scores = Sequence[Sequence[float]]
"""``(states, operations)``: the score of every operation on every edge into one node."""


def derive(space: DartsSpace, mixtures: Mapping[str, Mixture]) -> Genotype:
    """Return the genotype that the mixtures favour; a node's edges with the best first."""
    cells: dict[str, Nodes] = {
        kind: tuple(_derive_node(node, space.ops) for node in _node_scores(space, mixtures[kind]))
        for kind in KINDS
    }
    return Genotype(normal=cells["normal"], reduce=cells["reduce"])


def ranked(space: DartsSpace, mixtures: Mapping[str, Mixture]) -> Iterator[Architecture]:
    """Yield every distinct architecture, best first, beginning with the derived one.

    Architectures are ordered by the product of the scores of all edges that they keep:
    the derived one maximises it, and the next replaces its least certain decision.
    Choices for a kind of cell that the network does not have are left as derived.
    """
    first = space.encode(derive(space, mixtures))
    yield first
    present = {"reduce"} if space.cells == len(space.reductions) else set(KINDS)
    nodes = [
        _options(scores, space.ops) if kind in present else [(0.0, _derive_node(scores, space.ops))]
        for kind in KINDS
        for scores in _node_scores(space, mixtures[kind])
    ]
    for edges in _best_combinations(nodes):
        genotype = Genotype(normal=edges[: space.nodes], reduce=edges[space.nodes :])
        architecture = space.encode(genotype)
        if architecture != first:
            yield architecture


def _node_scores(space: DartsSpace, mixture: Mixture) -> list[Scores]:
    segments = [node + 2 for node in range(space.nodes)]
    scores = (mixture.ops * mixture.edges.unsqueeze(1)).detach().cpu()
    return [node.tolist() for node in torch.split(scores, segments)]


def _derive_node(scores: Scores, ops: Sequence[str]) -> tuple[Edge, ...]:
    legal = [at for at, op in enumerate(ops) if op != "none"]
    best = [max(row[at] for at in legal) for row in scores]
    states = sorted(range(len(scores)), key=lambda state: -best[state])[:2]
    return tuple((ops[max(legal, key=lambda at: scores[state][at])], state) for state in states)


def _options(scores: Scores, ops: Sequence[str]) -> list[_Choice]:
    """Return all pairs of edges into a node with the loss of each, best first."""
    legal = [at for at, op in enumerate(ops) if op != "none"]
    logs = [[math.log(max(score, sys.float_info.min)) for score in row] for row in scores]
    options = [
        (-(logs[low][a] + logs[high][b]), (low, high, a, b))
        for low, high in combinations(range(len(scores)), 2)
        for a, b in product(legal, legal)
    ]
    options.sort()
    least = options[0][0]
    return [(loss - least, ((ops[a], low), (ops[b], high))) for loss, (low, high, a, b) in options]


def _best_combinations(nodes: Sequence[Sequence[_Choice]]) -> Iterator[Nodes]:
    """Yield one choice a node in the order of their summed losses, by best-first search."""
    start = (0,) * len(nodes)
    heap = [(0.0, start)]
    seen = {start}
    while heap:
        _, chosen = heapq.heappop(heap)
        yield tuple(options[at][1] for options, at in zip(nodes, chosen, strict=True))
        for position, at in enumerate(chosen):
            following = (*chosen[:position], at + 1, *chosen[position + 1 :])
            if at + 1 < len(nodes[position]) and following not in seen:
                seen.add(following)
                loss = sum(options[i][0] for options, i in zip(nodes, following, strict=True))
                heapq.heappush(heap, (loss, following))
