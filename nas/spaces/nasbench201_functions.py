"""Which NAS-Bench-201 cells compute the same, by symbols alone.

The functional hash does not use this; it is held against it. The value of a node is a sum
of terms, each the cell's input or a convolution, pooled some number of times; a convolution
is known by its kind and the value it reads. Two cells compute the same if some renaming of
their convolutions makes these definitions equal. Zeros stay zeros in a convolution that is
normalised without an affine part; a doubled input makes another convolution, by its eps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TypeAlias

from nas.spaces.nasbench201_graph import EDGES

Edge: TypeAlias = tuple[int, int]
Terms: TypeAlias = tuple[tuple[tuple[int, int], int], ...]
"""((atom, times pooled), times counted), in order; atom 0 is the input."""

Function: TypeAlias = tuple[tuple[tuple[int, str, Terms], ...], Terms]
"""Convolutions (number, kind, what it reads), and the output."""


def cell_function(operations: Sequence[str]) -> Function:
    """Return the least form of what a cell computes; equal for equal functions.

    Args:
        operations: Names of operations, one for each of ``EDGES``.
    """
    convolutions = [
        edge for edge, op in zip(EDGES, operations, strict=True) if op.startswith("nor_conv")
    ]
    first = {edge: number for number, edge in enumerate(convolutions, start=1)}
    used = {number for number, _, _ in _written(operations, first)[0]}
    live = [edge for edge in convolutions if first[edge] in used]
    return min(
        _written(operations, dict(zip(live, numbers, strict=True)))
        for numbers in permutations(range(1, len(live) + 1))
    )


def _written(operations: Sequence[str], numbers: Mapping[Edge, int]) -> Function:
    """Write a cell with its convolutions numbered; those without a number have no effect."""
    values: list[Counter[tuple[int, int]]] = [Counter({(0, 0): 1})]
    definitions: dict[int, tuple[int, str, Terms]] = {}
    for node in (1, 2, 3):
        total: Counter[tuple[int, int]] = Counter()
        for edge, op in zip(EDGES, operations, strict=True):
            source = values[edge[0]] if edge[1] == node else Counter()
            if op == "skip_connect":
                total.update(source)
            elif op == "avg_pool_3x3":
                total.update({(atom, pooled + 1): n for (atom, pooled), n in source.items()})
            elif op.startswith("nor_conv") and source and edge in numbers:
                number = numbers[edge]
                definitions[number] = (number, op, tuple(sorted(source.items())))
                total.update({(number, 0): 1})
        values.append(total)
    output = tuple(sorted(values[3].items()))
    needed: set[int] = set()
    waiting = [atom for (atom, _), _ in output]
    while waiting:
        number = waiting.pop()
        if number and number not in needed:
            needed.add(number)
            waiting += [atom for (atom, _), _ in definitions[number][2]]
    return tuple(definitions[number] for number in sorted(needed)), output


def published_form(operations: Sequence[str]) -> str:
    """Return the string by which the benchmark's authors count 6,466 different cells.

    It writes out every node as a sorted sum of its edges' strings, skips left out and what
    stems from ``none`` marked. See ``docs/algorithms.md`` for what that misses.

    Source:
        Dong and Yang (2020), arXiv:2001.00326, and the structure class of their code.
    """
    nodes = ["0"]
    for node in (1, 2, 3):
        terms = []
        for (source, target), op in zip(EDGES, operations, strict=True):
            if target == node:
                if op == "none" or nodes[source] == "#":
                    terms.append("#")
                elif op == "skip_connect":
                    terms.append(nodes[source])
                else:
                    terms.append(f"({nodes[source]})@{op}")
        nodes.append("+".join(sorted(terms)))
    return nodes[3]
