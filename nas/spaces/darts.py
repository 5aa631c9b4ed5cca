"""The DARTS cell space: one normal and one reduction cell, stacked.

Every node of a cell adds two edges: two distinct earlier states, each through one
operation. ``Architecture.choices`` holds three integers a node, normal cell first:
the pair of states (in lexicographic order of pairs), the operation on the lower state,
the operation on the higher one (indices into ``DartsSpace.edge_ops``). Every tuple within
``cardinalities()`` is legal, and no two tuples name the same pair of edges.

Source:
    Liu et al. (2019), "DARTS: Differentiable Architecture Search", arXiv:1806.09055.
    ``none`` belongs to the supernet's mixture only; a derived cell has no such edge.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from math import comb, prod

from torch import nn

from nas.graph import Graph
from nas.spaces.categorical import check_choices
from nas.spaces.drawn_layers import ReluConvNorm
from zoo.builders import build_chain
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.darts import (
    Edge,
    Head,
    Nodes,
    cell_spec,
    head_spec,
    imagenet_stem_spec,
    stem_layers,
    stem_spec,
)
from zoo.families.darts_operations import (
    ALL_OPERATIONS,
    OPERATIONS,
    PRIMITIVE_SETS,
    operation,
)
from zoo.spec import Architecture, BlockSpec, TensorSpec

STEMS = ("cifar", "imagenet")

_EDGE = re.compile(r"(\w+)\((\d+)\)")


@dataclass(frozen=True)
class Genotype:
    """What is inside the normal and the reduction cell; every node has two edges."""

    normal: Nodes
    reduce: Nodes

    def __str__(self) -> str:
        """Write ``normal: op(state) + op(state) | …; reduce: …``, one node between bars."""
        return f"normal: {_write(self.normal)}; reduce: {_write(self.reduce)}"

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Read what ``str`` writes; white space and the order of a node's edges are free.

        Raises:
            InvalidInputError: ``text`` is not of that form.
        """
        match = re.fullmatch(r"\s*normal:([^;]*);\s*reduce:([^;]*)", text)
        if match is None:
            raise InvalidInputError(
                f"genotype {text!r} is not of the form 'normal: op(0) + op(1) | …; reduce: …'"
            )
        return cls(normal=_read(match[1]), reduce=_read(match[2]))


@dataclass(frozen=True)
class DartsSpace:
    """The cell space of DARTS, of any depth, width, number of nodes and set of operations.

    Cells ``cells // 3`` and ``2 * cells // 3`` halve the size and double the width, as in
    the original; a network of one or two cells therefore has reduction cells only. Published
    sizes: searched with ``cells=8``; trained for CIFAR with ``cells=20, channels=36``, for
    ImageNet with ``cells=14, channels=48, stem="imagenet", stem_multiplier=1``.

    Args:
        cells: Number of cells, at least 1.
        channels: Width of the first cell.
        nodes: Nodes of a cell, at least 1.
        ops: Operations of the supernet's edges, of which the order decides ties; or the name
            of one of ``zoo.families.darts_operations.PRIMITIVE_SETS``.
        stem_multiplier: Width of the stem as a multiple of ``channels``.
        stem: ``cifar``, one convolution, or ``imagenet``, three of stride 2 for large images.

    Raises:
        InvalidInputError: A number is below 1, ``ops`` are repeated or all ``none``, or no set
            has their name.
        UnknownNameError: An operation is not one of
            ``zoo.families.darts_operations.ALL_OPERATIONS``.
    """

    cells: int = 3
    channels: int = 16
    nodes: int = 4
    ops: tuple[str, ...] = OPERATIONS
    stem_multiplier: int = 3
    stem: str = "cifar"

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise UnknownNameError("stem", str(self.stem), STEMS)
        for name in ("cells", "channels", "nodes", "stem_multiplier"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInputError(f"{name} is {value!r}; it must be an integer of at least 1")
        object.__setattr__(self, "ops", _named_ops(self.ops))
        for op in self.ops:
            if op not in ALL_OPERATIONS:
                raise UnknownNameError("DARTS operation", str(op), ALL_OPERATIONS)
        if len(set(self.ops)) < len(self.ops) or not self.edge_ops:
            raise InvalidInputError(
                f"ops are {', '.join(self.ops) or 'empty'}; name each operation once, "
                "and at least one that is not none"
            )

    @cached_property
    def edge_ops(self) -> tuple[str, ...]:
        """The operations that a derived edge may have: all but ``none``."""
        return tuple(op for op in self.ops if op != "none")

    @cached_property
    def reductions(self) -> frozenset[int]:
        """The positions of the reduction cells."""
        return frozenset({self.cells // 3, 2 * self.cells // 3})

    def reduced_before(self, position: int) -> bool:
        """Return whether a cell's first input is twice the size of its second."""
        return position - 1 in self.reductions or (position == 0 and self.stem == "imagenet")

    def describe(self) -> dict[str, Json]:
        params: dict[str, Json] = {
            "cells": self.cells,
            "channels": self.channels,
            "nodes": self.nodes,
            "ops": list(self.ops),
            "stem_multiplier": self.stem_multiplier,
        }
        # Architectures are known by their description: that of the default must not change.
        return {
            "name": "darts",
            "params": params | ({} if self.stem == "cifar" else {"stem": self.stem}),
        }

    def cardinalities(self) -> tuple[int, ...]:
        num_ops = len(self.edge_ops)
        cell = [n for node in range(self.nodes) for n in (comb(node + 2, 2), num_ops, num_ops)]
        return tuple(cell * 2)

    def size(self) -> int:
        return prod(self.cardinalities())

    def sample(self, rng: random.Random) -> Architecture:
        return self._architecture([rng.randrange(options) for options in self.cardinalities()])

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Return a copy with one variable changed; every neighbour of a variable is as likely.

        Raises:
            InvalidInputError: The space has only one architecture.
        """
        self.check(architecture)
        free = [at for at, options in enumerate(self.cardinalities()) if options > 1]
        if not free:
            raise InvalidInputError("this space has one architecture; nothing can be mutated")
        at = rng.choice(free)
        shift = rng.randrange(1, self.cardinalities()[at])
        return self._replace(architecture, at, shift)

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        self.check(architecture)
        for at, options in enumerate(self.cardinalities()):
            for shift in range(1, options):
                yield self._replace(architecture, at, shift)

    def check(self, architecture: Architecture) -> None:
        check_choices(self, architecture)

    def encode(self, genotype: Genotype) -> Architecture:
        """Return the architecture of a genotype; the order of a node's edges is free.

        Raises:
            InvalidInputError: The genotype has another number of nodes, a node without two
                distinct earlier states, or an operation that this space lacks.
        """
        choices = [*self._encode_cell(genotype.normal), *self._encode_cell(genotype.reduce)]
        return self._architecture(choices)

    def decode(self, architecture: Architecture) -> Genotype:
        """Return the genotype; the edges of a node in the order of their states."""
        self.check(architecture)
        half = 3 * self.nodes
        return Genotype(
            normal=self._decode_cell(architecture.choices[:half]),
            reduce=self._decode_cell(architecture.choices[half:]),
        )

    def summary(self, architecture: Architecture) -> str:
        return str(self.decode(architecture))

    def parse(self, text: str) -> Architecture:
        """Return the architecture whose ``summary`` is ``text``.

        Raises:
            InvalidInputError: ``text`` is no genotype, or none of this space.
        """
        return self.encode(Genotype.parse(text))

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        genotype = self.decode(architecture)
        describe_stem = imagenet_stem_spec if self.stem == "imagenet" else stem_spec
        specs = [describe_stem(inputs, channels=self.stem_multiplier * self.channels)]
        channels = self.channels
        for position in range(self.cells):
            reduction = position in self.reductions
            channels *= 2 if reduction else 1
            first, second = specs[-1].outputs
            specs.append(
                cell_spec(
                    (first, second),
                    channels=channels,
                    nodes=genotype.reduce if reduction else genotype.normal,
                    reduction=reduction,
                    reduction_prev=self.reduced_before(position),
                    last=position == self.cells - 1,
                )
            )
        specs.append(head_spec(specs[-1].outputs[0], num_classes=num_classes))
        return tuple(specs)

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        return build_chain(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``, two channels wide and small.

        The smallest cells see at least 2 pixels, if the real ones do: on a single one, pooling
        and skipping are the same.
        """
        specs = self.blocks(architecture, inputs=inputs, num_classes=num_classes)
        genotype = self.decode(architecture)
        in_chans, *size = inputs.shape
        most = 64 if self.stem == "imagenet" else 16
        graph = Graph(TensorSpec(shape=(in_chans, *(min(side or most, most) for side in size))))
        stem = partial(stem_layers, int(in_chans or 1), 4)
        s0 = s1 = graph.apply(f"stem {specs[0].id}", stem, graph.input())
        if self.stem == "imagenet":
            halve = partial(ReluConvNorm, 4, 4, stride=2)
            s1 = graph.apply(f"second stem {specs[0].id}", halve, s0)
        widths, thin = (4, 4), 2
        for position, spec in enumerate(specs[1:-1]):
            reduction = position in self.reductions
            thin *= 2 if reduction else 1
            nodes = genotype.reduce if reduction else genotype.normal
            s0, s1 = s1, _draw_cell(graph, spec, nodes, (s0, s1), widths, thin)
            widths = (widths[1], thin * self.nodes)
        graph.apply(f"head {specs[-1].id}", partial(Head, widths[1], num_classes), s1)
        return graph

    def _architecture(self, choices: list[int]) -> Architecture:
        return Architecture(space=self.describe(), choices=tuple(choices))

    def _replace(self, architecture: Architecture, at: int, shift: int) -> Architecture:
        choices = list(architecture.choices)
        choices[at] = (choices[at] + shift) % self.cardinalities()[at]
        return self._architecture(choices)

    def _encode_cell(self, nodes: Nodes) -> Iterator[int]:
        if len(nodes) != self.nodes:
            raise InvalidInputError(f"a cell has {len(nodes)} nodes; this space has {self.nodes}")
        for position, edges in enumerate(nodes):
            ordered = sorted(edges, key=lambda edge: edge[1])
            states = tuple(state for _, state in ordered)
            pairs = _pairs(position)
            if states not in pairs:
                raise InvalidInputError(
                    f"node {position + 2} reads states {list(states)}; "
                    f"it takes two different ones of 0 to {position + 1}"
                )
            yield pairs.index(states)
            for op, _ in ordered:
                if op not in self.edge_ops:
                    raise UnknownNameError("operation of this space", op, self.edge_ops)
                yield self.edge_ops.index(op)

    def _decode_cell(self, choices: tuple[int, ...]) -> Nodes:
        return tuple(
            (
                (self.edge_ops[choices[3 * node + 1]], _pairs(node)[choices[3 * node]][0]),
                (self.edge_ops[choices[3 * node + 2]], _pairs(node)[choices[3 * node]][1]),
            )
            for node in range(self.nodes)
        )


def _draw_cell(
    graph: Graph,
    spec: BlockSpec,
    nodes: Nodes,
    inputs: tuple[int, int],
    widths: tuple[int, int],
    thin: int,
) -> int:
    """Draw one cell ``thin`` channels wide; ``widths`` are those of its drawn inputs."""
    interface = f"{[list(tensor.shape) for tensor in spec.inputs]} {spec.params['channels']}"
    states = []
    for at, halve in enumerate((bool(spec.params["reduction_prev"]), False)):
        fitted = partial(ReluConvNorm, widths[at], thin, stride=2 if halve else 1)
        states.append(graph.apply(f"preprocess {at} {interface}", fitted, inputs[at]))
    for edges in nodes:
        terms = []
        for op, state in edges:
            stride = 2 if spec.params["reduction"] and state < 2 else 1
            if op == "skip_connect" and stride == 1:
                terms.append(graph.identity(states[state]))
            elif op.endswith("_pool_3x3"):
                pool = partial(operation, op, thin, stride=stride, affine=False)
                name = f"{op} /{stride}"
                terms.append(graph.apply(name, pool, states[state], parametric=False))
            else:
                layer = partial(ReluConvNorm, thin, thin, stride=stride)
                name = f"{op} /{stride} {interface}"
                terms.append(graph.apply(name, layer, states[state]))
        states.append(graph.add(*terms))
    return graph.concat(*states[2:])


def _named_ops(ops: object) -> tuple[str, ...]:
    """Return the operations of a list, or of the primitive set that a string names."""
    if isinstance(ops, str):
        ops = PRIMITIVE_SETS.get(ops, ops)
    if isinstance(ops, str) or not isinstance(ops, list | tuple):
        raise InvalidInputError(
            f"ops is {ops!r}; give a list of names, or name a set: {', '.join(PRIMITIVE_SETS)}"
        )
    return tuple(ops)


def _pairs(node: int) -> list[tuple[int, ...]]:
    return list(combinations(range(node + 2), 2))


def _write(nodes: Nodes) -> str:
    return " | ".join(" + ".join(f"{op}({state})" for op, state in edges) for edges in nodes)


def _read(text: str) -> Nodes:
    nodes: list[tuple[Edge, ...]] = []
    for node in text.split("|"):
        edges = [_EDGE.fullmatch(edge.strip()) for edge in node.split("+")]
        if None in edges:
            raise InvalidInputError(f"{node.strip()!r} is not of the form 'op(0) + op(1)'")
        nodes.append(tuple((match[1], int(match[2])) for match in edges if match is not None))
    return tuple(nodes)
