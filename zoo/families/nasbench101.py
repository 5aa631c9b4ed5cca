"""The NAS-Bench-101 family of blocks: stem, cell, reduction and head.

A cell is a graph of at most seven vertices, each after all it reads: the input, operations,
and the output. An operation reads the sum of its predecessors (the input through a 1x1
projection); the output is the concatenation of its predecessors, to which a projection of
the input is added if it is one of them. Channels are divided among those concatenated.

Source:
    Ying et al. (2019), "NAS-Bench-101: Towards Reproducible Neural Architecture Search",
    arXiv:1902.09635. Differs: batch norm has PyTorch's momentum, so that short trainings
    can be scored in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import TypeAlias

import torch
from torch import Tensor, nn

from zoo.builders import register
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.interfaces import (
    confirm,
    conv_norm_relu,
    image,
    logits,
    param,
    sole_input,
    widened,
    width,
)
from zoo.spec import BlockSpec, TensorSpec

OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
"""What an interior vertex may compute, numbered as by the published generator."""

Edges: TypeAlias = tuple[tuple[int, int], ...]
"""Edges from vertex to vertex: 0 is the input, the highest number the output."""


def vertex_channels(channels: int, vertices: int, edges: Edges) -> list[int]:
    """Return the width of every interior vertex of a cell; those of input and output are 0.

    What the output concatenates shares ``channels``, the first ones getting one more if
    they do not divide; every other vertex is as wide as the widest that reads it.

    Raises:
        InvalidInputError: There are fewer channels than vertices to concatenate.
    """
    last = vertices - 1
    joined = sorted(source for source, target in edges if target == last and source > 0)
    if len(joined) > channels:
        raise InvalidInputError(
            f"{channels} channels cannot be divided among {len(joined)} vertices"
        )
    widths = [0] * vertices
    for at, vertex in enumerate(joined):
        share, rest = divmod(channels, len(joined))
        widths[vertex] = share + (at < rest)
    for vertex in range(last - 1, 0, -1):
        if vertex not in joined:
            readers = [target for source, target in edges if source == vertex]
            widths[vertex] = max((widths[reader] for reader in readers), default=0)
    return widths


def operation(name: str, channels: int) -> nn.Module:
    """Build what an interior vertex computes.

    Raises:
        UnknownNameError: ``name`` is not one of ``OPERATIONS``.
    """
    if name not in OPERATIONS:
        raise UnknownNameError("NAS-Bench-101 operation", name, OPERATIONS)
    if name == "maxpool3x3":
        return nn.MaxPool2d(3, stride=1, padding=1)
    return nn.Sequential(*conv_norm_relu(channels, channels, 3 if "3x3" in name else 1))


class Cell(nn.Module):
    """A cell of which every vertex lies on a path from the input to the output."""

    def __init__(
        self, in_chans: int, channels: int, operations: Sequence[str], edges: Edges
    ) -> None:
        super().__init__()
        self.last = len(operations) + 1
        self.widths = vertex_channels(channels, self.last + 1, edges)
        self.widths[self.last] = channels
        self.sources = tuple(
            tuple(sorted(source for source, target in edges if target == vertex))
            for vertex in range(self.last + 1)
        )
        self.operations = nn.ModuleList(
            operation(name, self.widths[vertex]) for vertex, name in enumerate(operations, start=1)
        )
        self.projections = nn.ModuleDict(
            {
                str(target): nn.Sequential(*conv_norm_relu(in_chans, self.widths[target], 1))
                for source, target in edges
                if source == 0
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for vertex, module in enumerate(self.operations, start=1):
            terms = [
                states[source][:, : self.widths[vertex]]
                for source in self.sources[vertex]
                if source > 0
            ]
            states.append(module(self._sum(vertex, terms, x)))
        joined = [states[source] for source in self.sources[self.last] if source > 0]
        return self._sum(self.last, [torch.cat(joined, dim=1)] if joined else [], x)

    def _sum(self, vertex: int, terms: list[Tensor], x: Tensor) -> Tensor:
        if str(vertex) in self.projections:
            terms = [*terms, self.projections[str(vertex)](x)]
        return reduce(add, terms)


def stem_spec(inputs: TensorSpec, *, channels: int) -> BlockSpec:
    """Describe the 3x3 convolution, batch norm and ReLU on the images.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
    """
    outputs = widened(inputs, channels)
    return BlockSpec(op="nasbench101.stem", inputs=(inputs,), outputs=(outputs,))


def cell_spec(
    inputs: TensorSpec, *, channels: int, operations: Sequence[str], edges: Edges
) -> BlockSpec:
    """Describe a cell: ``operations`` of its interior vertices, and its ``edges``.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: An edge is not from a vertex to a later one, or a vertex reads
            nothing or is read by none.
        UnknownNameError: An operation is not one of ``OPERATIONS``.
    """
    for name in operations:
        if name not in OPERATIONS:
            raise UnknownNameError("NAS-Bench-101 operation", str(name), OPERATIONS)
    last = len(operations) + 1
    if not all(0 <= source < target <= last for source, target in edges):
        raise InvalidInputError(f"edges {edges} do not lead from 0 towards {last}")
    if {source for source, _ in edges} != set(range(last)) or {
        target for _, target in edges
    } != set(range(1, last + 1)):
        raise InvalidInputError(f"a vertex of the cell with edges {edges} leads nowhere")
    named: list[Json] = [*operations]
    pairs: list[Json] = [list(edge) for edge in sorted(edges)]
    return BlockSpec(
        op="nasbench101.cell",
        params={"operations": named, "edges": pairs},
        inputs=(inputs,),
        outputs=(widened(inputs, channels),),
    )


def reduction_spec(inputs: TensorSpec) -> BlockSpec:
    """Describe the 2x2 max pooling between two stacks.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
    """
    outputs = widened(inputs, image(inputs)[0], stride=2)
    return BlockSpec(op="nasbench101.reduction", inputs=(inputs,), outputs=(outputs,))


def head_spec(inputs: TensorSpec, *, num_classes: int) -> BlockSpec:
    """Describe global average pooling and the classifier.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: ``num_classes`` is below 1.
    """
    outputs = logits(inputs, num_classes)
    return BlockSpec(op="nasbench101.head", inputs=(inputs,), outputs=(outputs,))


@register("nasbench101.stem")
def build_stem(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench101.stem``; its width is that of its output."""
    inputs, channels = sole_input(spec), width(spec)
    confirm(spec, stem_spec(inputs, channels=channels))
    return nn.Sequential(*conv_norm_relu(image(inputs)[0], channels, 3))


@register("nasbench101.cell")
def build_cell(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench101.cell``; ``params``: ``operations`` and ``edges``."""
    inputs, channels = sole_input(spec), width(spec)
    operations = [str(name) for name in param(spec, "operations", list)]
    try:
        edges = tuple((int(source), int(target)) for source, target in param(spec, "edges", list))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{spec.op} has edges={spec.params['edges']!r}; it takes a list of [from, to] pairs"
        ) from error
    confirm(spec, cell_spec(inputs, channels=channels, operations=operations, edges=edges))
    return Cell(image(inputs)[0], channels, operations, edges)


@register("nasbench101.reduction")
def build_reduction(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench101.reduction``."""
    confirm(spec, reduction_spec(sole_input(spec)))
    return nn.MaxPool2d(2, stride=2, ceil_mode=True)


@register("nasbench101.head")
def build_head(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench101.head``; the number of classes is the size of its output."""
    inputs, num_classes = sole_input(spec), width(spec)
    confirm(spec, head_spec(inputs, num_classes=num_classes))
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(image(inputs)[0], num_classes)
    )
