"""The NAS-Bench-201 family of blocks: stem, cell, reduction and head.

A cell has four nodes; every node adds one edge from each earlier node. ``EDGES`` is their
order, that of the usual string form. A cell may change the number of channels (NATS-Bench
size); then the edges from its first node do.

Source:
    Dong and Yang (2020), "NAS-Bench-201", arXiv:2001.00326; Dong et al. (2021),
    "NATS-Bench", arXiv:2009.00437. Differs: an odd height or width is halved upwards on
    both branches of a reduction, where the original cannot be built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from torch import Tensor, nn

from zoo.builders import register
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.interfaces import (
    confirm,
    image,
    logits,
    param,
    sole_input,
    widened,
    width,
)
from zoo.spec import BlockSpec, TensorSpec

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""What an edge may compute."""

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""The edges of a cell, from node to node, in the order of the string form."""


def relu_conv_norm(
    in_chans: int, out_chans: int, kernel: int, stride: int = 1, *, affine: bool = True
) -> nn.Module:
    """Build ReLU, convolution and batch norm; supernets leave out the norm's affine part."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_chans, affine=affine),
    )


def operation(name: str, in_chans: int, out_chans: int, *, affine: bool = True) -> nn.Module | None:
    """Build what one edge computes; None for ``none``, which adds nothing.

    Raises:
        UnknownNameError: ``name`` is not one of ``OPERATIONS``.
    """
    if name not in OPERATIONS:
        raise UnknownNameError("NAS-Bench-201 operation", name, OPERATIONS)
    if name == "none":
        return None
    if name.startswith("nor_conv"):
        kernel = 1 if name == "nor_conv_1x1" else 3
        return relu_conv_norm(in_chans, out_chans, kernel, affine=affine)
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        if in_chans == out_chans:
            return pool
        return nn.Sequential(relu_conv_norm(in_chans, out_chans, 1, affine=affine), pool)
    if in_chans == out_chans:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_chans, out_chans, 1, bias=False), nn.BatchNorm2d(out_chans, affine=affine)
    )


class Cell(nn.Module):
    """Four nodes, each the sum of its edges from all earlier ones; the last is the result."""

    def __init__(self, in_chans: int, out_chans: int, operations: Sequence[str]) -> None:
        super().__init__()
        self.out_chans = out_chans
        self.edges = nn.ModuleDict()
        for name, (source, target) in zip(operations, EDGES, strict=True):
            made = operation(name, in_chans if source == 0 else out_chans, out_chans)
            if made is not None:
                self.edges[f"{source}_{target}"] = made

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for node in range(1, 4):
            terms = [
                self.edges[f"{source}_{node}"](states[source])
                for source in range(node)
                if f"{source}_{node}" in self.edges
            ]
            states.append(reduce(add, terms) if terms else self._zeros(x))
        return states[-1]

    def _zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros((x.shape[0], self.out_chans, x.shape[2], x.shape[3]))


class Reduction(nn.Module):
    """A residual block that halves the size: two convolutions beside pooling and a 1x1."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            relu_conv_norm(in_chans, out_chans, 3, stride=2),
            relu_conv_norm(out_chans, out_chans, 3),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_chans, out_chans, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


def stem_spec(inputs: TensorSpec, *, channels: int) -> BlockSpec:
    """Describe the 3x3 convolution and batch norm on the images.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
    """
    return BlockSpec(op="nasbench201.stem", inputs=(inputs,), outputs=(widened(inputs, channels),))


def cell_spec(inputs: TensorSpec, *, channels: int, operations: Sequence[str]) -> BlockSpec:
    """Describe a cell; ``operations`` names one for each of ``EDGES``.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: There are not as many operations as edges.
        UnknownNameError: An operation is not one of ``OPERATIONS``.
    """
    for name in operations:
        if name not in OPERATIONS:
            raise UnknownNameError("NAS-Bench-201 operation", str(name), OPERATIONS)
    if len(operations) != len(EDGES):
        raise InvalidInputError(f"a cell takes {len(EDGES)} operations, not {len(operations)}")
    named: list[Json] = [*operations]
    return BlockSpec(
        op="nasbench201.cell",
        params={"operations": named},
        inputs=(inputs,),
        outputs=(widened(inputs, channels),),
    )


def reduction_spec(inputs: TensorSpec, *, channels: int) -> BlockSpec:
    """Describe the residual block between two stages.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
    """
    outputs = widened(inputs, channels, stride=2)
    return BlockSpec(op="nasbench201.reduction", inputs=(inputs,), outputs=(outputs,))


def head_spec(inputs: TensorSpec, *, num_classes: int) -> BlockSpec:
    """Describe batch norm, ReLU, global average pooling and the classifier.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: ``num_classes`` is below 1.
    """
    outputs = logits(inputs, num_classes)
    return BlockSpec(op="nasbench201.head", inputs=(inputs,), outputs=(outputs,))


@register("nasbench201.stem")
def build_stem(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench201.stem``; its width is that of its output."""
    inputs, channels = sole_input(spec), width(spec)
    confirm(spec, stem_spec(inputs, channels=channels))
    return nn.Sequential(
        nn.Conv2d(image(inputs)[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
    )


@register("nasbench201.cell")
def build_cell(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench201.cell``; ``params``: ``operations``, one name an edge."""
    inputs, channels = sole_input(spec), width(spec)
    operations = [str(name) for name in param(spec, "operations", list)]
    confirm(spec, cell_spec(inputs, channels=channels, operations=operations))
    return Cell(image(inputs)[0], channels, operations)


@register("nasbench201.reduction")
def build_reduction(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench201.reduction``; its width is that of its output."""
    inputs, channels = sole_input(spec), width(spec)
    confirm(spec, reduction_spec(inputs, channels=channels))
    return Reduction(image(inputs)[0], channels)


@register("nasbench201.head")
def build_head(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench201.head``; the number of classes is the size of its output."""
    inputs, num_classes = sole_input(spec), width(spec)
    confirm(spec, head_spec(inputs, num_classes=num_classes))
    channels = image(inputs)[0]
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )
