"""The DARTS family of blocks: stem, cell and head.

A network is the chain ``darts.stem`` (x) → (s0, s1), ``darts.cell`` (s0, s1) → (s1, s2),
…, a last ``darts.cell`` (s0, s1) → (s2), ``darts.head`` (s) → logits. For large images the
stem is ``darts.stem_imagenet``, whose s1 is half the size of s0. Modules, order of
submodules and defaults follow the derived network of DARTS, so its parameter counts hold.

Source:
    Liu et al. (2019), "DARTS: Differentiable Architecture Search", arXiv:1806.09055.
    Differs: odd heights and widths are halved upwards; see ``darts_operations``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from zoo.builders import register
from zoo.canonical import Json
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families.darts_operations import ALL_OPERATIONS, operation, preprocess
from zoo.families.drop_path import DropPath
from zoo.spec import BlockSpec, TensorSpec

Edge: TypeAlias = tuple[str, int]
"""An operation and the state that it reads: 0 and 1 are the cell's inputs, 2 its first node."""

Nodes: TypeAlias = tuple[tuple[Edge, ...], ...]
"""The wiring of a cell: for every node the edges whose results it adds."""


def stem_layers(in_chans: int, out_chans: int) -> nn.Sequential:
    """Build the 3x3 convolution and batch norm of the stem."""
    return nn.Sequential(
        nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False), nn.BatchNorm2d(out_chans)
    )


class Stem(nn.Module):
    """The stem's layers, their result returned twice: both inputs of the first cell."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.layers = stem_layers(in_chans, out_chans)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = self.layers(x)
        return state, state


class ImageNetStem(nn.Module):
    """Three convolutions of stride 2: ``s0`` at a quarter of the size, ``s1`` at an eighth."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        half = out_chans // 2
        self.layers0 = nn.Sequential(
            *_strided(in_chans, half), nn.ReLU(), *_strided(half, out_chans)
        )
        self.layers1 = nn.Sequential(nn.ReLU(), *_strided(out_chans, out_chans))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.layers0(x)
        return s0, self.layers1(s0)


def _strided(in_chans: int, out_chans: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_chans, out_chans, 3, stride=2, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_chans)


class Cell(nn.Module):
    """A derived cell: every node adds its edges, the result is all nodes side by side.

    In a reduction cell the edges from the cell's two inputs halve the size. With
    ``last`` only the new state is returned, otherwise ``(s1, new state)``. In training the
    path of every edge may be dropped, but for skip connections that change nothing.
    """

    def __init__(
        self,
        in_chans: tuple[int, int],
        channels: int,
        nodes: Nodes,
        *,
        reduction: bool,
        reduction_prev: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.preprocess0 = preprocess(in_chans[0], channels, halve=reduction_prev, affine=True)
        self.preprocess1 = preprocess(in_chans[1], channels, halve=False, affine=True)
        self.edges = nn.ModuleList(
            operation(name, channels, stride=2 if reduction and state < 2 else 1, affine=True)
            for edges in nodes
            for name, state in edges
        )
        self.sources = tuple(tuple(state for _, state in edges) for edges in nodes)
        self.drop_path = DropPath()
        self.last = last

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = iter(self.edges)
        for sources in self.sources:
            results = [self._follow(next(edges), states[source]) for source in sources]
            states.append(reduce(add, results))
        out = torch.cat(states[2:], dim=1)
        return out if self.last else (s1, out)

    def _follow(self, edge: nn.Module, state: Tensor) -> Tensor:
        result = edge(state)
        return result if isinstance(edge, nn.Identity) else self.drop_path(result)


class Head(nn.Sequential):
    """Global average pooling and a linear classifier."""

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, num_classes))


def stem_spec(inputs: TensorSpec, *, channels: int) -> BlockSpec:
    """Describe the stem that turns images into the two states of the first cell.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``.
    """
    _, height, width = _image(inputs)
    state = TensorSpec(shape=(channels, height, width), dtype=inputs.dtype)
    return BlockSpec(
        op="darts.stem", params={"channels": channels}, inputs=(inputs,), outputs=(state, state)
    )


def imagenet_stem_spec(inputs: TensorSpec, *, channels: int) -> BlockSpec:
    """Describe the stem that shrinks large images eightfold before the first cell.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``.
        InvalidInputError: ``channels`` is below 2.
    """
    if channels < 2:
        raise InvalidInputError(f"an ImageNet stem of {channels} channels needs at least 2")
    _, *size = _image(inputs)
    states = []
    for halvings in (2, 3):
        height, width = (
            reduce(lambda side, _: halved(side), range(halvings), side) for side in size
        )
        states.append(TensorSpec(shape=(channels, height, width), dtype=inputs.dtype))
    return BlockSpec(
        op="darts.stem_imagenet",
        params={"channels": channels},
        inputs=(inputs,),
        outputs=tuple(states),
    )


def cell_spec(
    inputs: tuple[TensorSpec, TensorSpec],
    *,
    channels: int,
    nodes: Nodes,
    reduction: bool,
    reduction_prev: bool,
    last: bool,
) -> BlockSpec:
    """Describe a cell; ``reduction_prev`` says that ``s0`` is twice the size of ``s1``.

    Raises:
        IncompatibleShapeError: The two inputs do not fit each other.
        InvalidInputError: An edge reads a state that does not exist yet.
        UnknownNameError: An operation is not one of ``ALL_OPERATIONS``.
    """
    _check_nodes(nodes)
    _, *size0 = _image(inputs[0])
    _, *size1 = _image(inputs[1])
    if [halved(size) if reduction_prev else size for size in size0] != size1:
        raise IncompatibleShapeError(
            f"the inputs of a cell {'after a reduction ' if reduction_prev else ''}do not fit: "
            f"{list(inputs[0].shape)} and {list(inputs[1].shape)}"
        )
    height, width = (halved(size) if reduction else size for size in size1)
    state = TensorSpec(shape=(channels * len(nodes), height, width), dtype=inputs[1].dtype)
    wiring: list[Json] = [[[name, source] for name, source in edges] for edges in nodes]
    return BlockSpec(
        op="darts.cell",
        params={
            "channels": channels,
            "nodes": wiring,
            "reduction": reduction,
            "reduction_prev": reduction_prev,
        },
        inputs=inputs,
        outputs=(state,) if last else (inputs[1], state),
    )


def head_spec(inputs: TensorSpec, *, num_classes: int) -> BlockSpec:
    """Describe the classifier on the last cell's state.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``.
        InvalidInputError: ``num_classes`` is below 1.
    """
    _image(inputs)
    if num_classes < 1:
        raise InvalidInputError(f"num_classes is {num_classes}; it must be at least 1")
    logits = TensorSpec(shape=(num_classes,), dtype=inputs.dtype)
    return BlockSpec(op="darts.head", inputs=(inputs,), outputs=(logits,))


def halved(size: int | None) -> int | None:
    """Return the height or width after a stride of two; an odd one is rounded up."""
    return None if size is None else (size + 1) // 2


def _image(tensor: TensorSpec) -> tuple[int, int | None, int | None]:
    if len(tensor.shape) != 3 or tensor.shape[0] is None or not tensor.dtype.startswith("float"):
        raise IncompatibleShapeError(
            f"a DARTS block takes float tensors of shape (channels, height, width) with a fixed "
            f"number of channels, not {tensor.dtype}{list(tensor.shape)}"
        )
    return tensor.shape[0], tensor.shape[1], tensor.shape[2]


def _check_nodes(nodes: Nodes) -> None:
    for position, edges in enumerate(nodes):
        for name, source in edges:
            if name not in ALL_OPERATIONS:
                raise UnknownNameError("DARTS operation", name, ALL_OPERATIONS)
            if not 0 <= source < position + 2:
                raise InvalidInputError(
                    f"node {position + 2} reads state {source}; "
                    f"it may read states 0 to {position + 1}"
                )
    if not nodes or not all(nodes):
        raise InvalidInputError("a cell needs at least one node, and every node one edge")


def _param(spec: BlockSpec, name: str, kind: type) -> Any:
    value = spec.params.get(name)
    if type(value) is not kind:
        raise InvalidInputError(f"{spec.op} has {name}={value!r}; it takes a {kind.__name__}")
    return value


def _nodes(spec: BlockSpec) -> Nodes:
    try:
        return tuple(
            tuple((str(name), int(source)) for name, source in edges)
            for edges in _param(spec, "nodes", list)
        )
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{spec.op} has nodes={spec.params['nodes']!r}; "
            "it takes a list of [operation, state] pairs for every node"
        ) from error


def _confirm(spec: BlockSpec, expected: BlockSpec) -> None:
    if spec.id != expected.id:
        raise IncompatibleShapeError(
            f"{spec.op} of these parameters returns {_shapes(expected.outputs)}, "
            f"but its spec says {_shapes(spec.outputs)}"
        )


def _shapes(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


@register("darts.stem")
def build_stem(spec: BlockSpec) -> nn.Module:
    """Build ``darts.stem``; ``params``: ``channels`` of the state."""
    channels = _param(spec, "channels", int)
    _confirm(spec, stem_spec(spec.inputs[0], channels=channels))
    return Stem(_image(spec.inputs[0])[0], channels)


@register(
    "darts.stem_imagenet",
    examples=(imagenet_stem_spec(TensorSpec(shape=(3, 17, 16)), channels=4),),
)
def build_imagenet_stem(spec: BlockSpec) -> nn.Module:
    """Build ``darts.stem_imagenet``; ``params``: ``channels`` of both states."""
    channels = _param(spec, "channels", int)
    _confirm(spec, imagenet_stem_spec(spec.inputs[0], channels=channels))
    return ImageNetStem(_image(spec.inputs[0])[0], channels)


@register("darts.cell")
def build_cell(spec: BlockSpec) -> nn.Module:
    """Build ``darts.cell``; its ``params`` are the arguments of ``cell_spec``."""
    if len(spec.inputs) != 2:
        raise IncompatibleShapeError(f"a cell takes two states, not {len(spec.inputs)}")
    first, second = spec.inputs
    settings: dict[str, Any] = {
        "channels": _param(spec, "channels", int),
        "nodes": _nodes(spec),
        "reduction": _param(spec, "reduction", bool),
        "reduction_prev": _param(spec, "reduction_prev", bool),
        "last": len(spec.outputs) == 1,
    }
    _confirm(spec, cell_spec((first, second), **settings))
    return Cell((_image(first)[0], _image(second)[0]), **settings)


@register("darts.head")
def build_head(spec: BlockSpec) -> nn.Module:
    """Build ``darts.head``; the number of classes is the size of its output."""
    num_classes = spec.outputs[0].shape[0]
    if num_classes is None:
        raise IncompatibleShapeError("the number of classes of a head cannot vary")
    _confirm(spec, head_spec(spec.inputs[0], num_classes=num_classes))
    return Head(_image(spec.inputs[0])[0], num_classes)
