"""Costs of an MBConv network as a sum over its layers, and the losses made of them.

A network's latency is that of its fixed layers plus, for every searched block, that of
the operation chosen. So the expectation over independent choices is one dot product of
their probabilities with a table. Multiply-accumulates and parameters are sums likewise,
and exactly so; latency is one only about, which is why a cap on it is checked on the
whole network in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.cost.proxyless_yaml import layer_entry, mobile_key
from nas.protocols import SearchSpace
from nas.spaces.mbconv import Edge, MBConvSpace, Op
from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.spec import Architecture, BlockSpec, TensorSpec

IMAGENET = TensorSpec(shape=(3, 224, 224))

OVERHEAD = "overhead"
"""Key of a table for what a network costs beside its layers; may be missing."""


@dataclass(frozen=True)
class Layer:
    """The fields by which a look-up table knows a layer; ``str`` writes the key.

    ``kind`` is ``Conv``, ``expanded_conv``, ``Conv_1`` or ``Logits``. Shapes are
    ``(height, width, channels)``, the output of ``Logits`` its number of classes. The
    other fields are set for ``expanded_conv`` only.
    """

    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    expand: int | None = None
    kernel: int | None = None
    stride: int | None = None
    skip: bool | None = None

    def __str__(self) -> str:
        """Return the key of the ProxylessNAS tables."""
        outputs = self.output if len(self.output) > 1 else self.output[0]
        return mobile_key(
            self.kind,
            self.input,
            outputs,
            expand=self.expand,
            kernel=self.kernel,
            stride=self.stride,
            idskip=self.skip,
        )


@dataclass(frozen=True)
class CostTable:
    """Cost of the fixed layers, and of every operation on every searched block.

    ``ops`` is float64 ``(edges, operations)``; ``zero`` and operations that a block
    cannot have are 0.
    """

    fixed: float
    ops: Tensor

    def expected(self, probabilities: Tensor) -> Tensor:
        """Return the expected cost under ``(edges, operations)`` probabilities, float64."""
        table = self.ops.to(probabilities.device)
        return self.fixed + (table * probabilities.to(table.dtype)).sum()

    def total(self, choices: tuple[int, ...]) -> float:
        """Return the cost of one architecture."""
        return self.fixed + math.fsum(
            float(row[choice]) for row, choice in zip(self.ops, choices, strict=True)
        )


def layers(
    space: MBConvSpace, *, inputs: TensorSpec = IMAGENET, num_classes: int = 1000
) -> dict[Layer, BlockSpec]:
    """Return every distinct layer of the space's networks, with the block that runs it."""
    fixed, edges = _walk(space, inputs, num_classes)
    found = dict(fixed)
    for row in edges:
        found.update(item for item in row if item is not None)
    return found


def latency_tensor(
    space: MBConvSpace,
    lookup: Callable[[Layer], float],
    *,
    inputs: TensorSpec = IMAGENET,
    num_classes: int = 1000,
) -> CostTable:
    """Ask ``lookup`` for every layer once and return the space's table of latencies.

    Raises:
        InvalidInputError: ``lookup`` lacks a layer (``KeyError`` or ``InvalidInputError``),
            or says that it takes no time or an infinite one.
    """
    known: dict[Layer, float] = {}

    def ask(layer: Layer, _: BlockSpec) -> float:
        if layer not in known:
            try:
                value = float(lookup(layer))
            except KeyError as error:
                raise InvalidInputError(
                    f"the latency table has no layer {str(layer)!r}; measure it: an unknown "
                    "layer does not count as zero"
                ) from error
            if not (math.isfinite(value) and value > 0):
                raise InvalidInputError(f"the latency of {str(layer)!r} is {value}; it must be > 0")
            known[layer] = value
        return known[layer]

    return cost_table(space, ask, inputs=inputs, num_classes=num_classes)


def layered_ms(
    space: SearchSpace,
    architecture: Architecture,
    latencies: Mapping[str, float],
    *,
    inputs: TensorSpec,
    num_classes: int,
) -> float:
    """Return a network's latency by a table of layers, keyed as ``str(layer)``.

    Raises:
        InvalidInputError: The space has no such layers, or the table lacks one.
    """
    if not isinstance(space, MBConvSpace):
        raise InvalidInputError(
            "this latency table is of MBConv layers and prices the space 'mbconv' only, not "
            f"{space.describe()['name']!r}; build one with: blockyard cost table build"
        )
    lookup = named_lookup(latencies)
    table = latency_tensor(space, lookup, inputs=inputs, num_classes=num_classes)
    return table.total(architecture.choices)


def cost_table(
    space: MBConvSpace,
    cost: Callable[[Layer, BlockSpec], float],
    *,
    inputs: TensorSpec,
    num_classes: int,
) -> CostTable:
    """Return the table of any cost that is a sum over layers."""
    fixed, edges = _walk(space, inputs, num_classes)
    ops = torch.zeros(len(edges), max(map(len, edges)), dtype=torch.float64)
    for row, items in enumerate(edges):
        for column, item in enumerate(items):
            if item is not None:
                ops[row, column] = cost(*item)
    return CostTable(math.fsum(cost(layer, spec) for layer, spec in fixed), ops)


def measure_latencies(
    space: MBConvSpace,
    measure: Callable[[Sequence[BlockSpec]], float],
    *,
    inputs: TensorSpec,
    num_classes: int,
) -> dict[str, float]:
    """Measure every distinct layer, and two whole networks by which their sum is corrected.

    A layer measured alone has overheads that a network pays once, and loses what caches
    keep between layers. So all layers are scaled, and an overhead added, such that the
    sums of the smallest and the largest network are what was measured of them.

    Args:
        space: Whose layers to measure.
        measure: Returns the milliseconds of a chain of blocks with fresh weights.
        inputs: One image.
        num_classes: Classes of the task.

    Returns:
        Milliseconds by ``str(layer)`` and ``overhead``.
    """
    task: dict[str, Any] = {"inputs": inputs, "num_classes": num_classes}
    alone = {layer: measure([spec]) for layer, spec in layers(space, **task).items()}
    table = latency_tensor(space, alone.__getitem__, **task)
    cardinalities = space.cardinalities()
    rows = [row[:n] for row, n in zip(table.ops.tolist(), cardinalities, strict=True)]
    extremes = [tuple(row.index(pick(row)) for row in rows) for pick in (min, max)]
    sums = [table.total(choices) for choices in extremes]
    whole = [measure(space.blocks(space.architecture(item), **task)) for item in extremes]
    if sums[1] > sums[0] and whole[1] > whole[0]:
        scale = (whole[1] - whole[0]) / (sums[1] - sums[0])
    else:
        scale = whole[1] / sums[1]
    found = {str(layer): scale * value for layer, value in alone.items()}
    return found | {OVERHEAD: whole[0] - scale * sums[0]}


def named_lookup(latencies: Mapping[str, float]) -> Callable[[Layer], float]:
    """Return the look-up in a table keyed as ``str(layer)``."""
    return lambda layer: latencies[str(layer)]


def parse_latencies(table: Mapping[str, Any]) -> dict[str, float]:
    """Return milliseconds by key from a table of numbers, or of ``{"mean": …}`` as published.

    Raises:
        InvalidInputError: It is no table, or an entry is neither, or is not above 0.
    """
    if not isinstance(table, Mapping):
        raise InvalidInputError(
            f"table is {table!r:.80}; give a mapping of layer keys to milliseconds, or import the "
            "file with: blockyard cost table import"
        )
    return {
        str(key): float(entry)
        if key == OVERHEAD and isinstance(entry, int | float)
        else layer_entry(str(key), entry).median_ms
        for key, entry in table.items()
    }


def macs(layer: Layer, spec: BlockSpec) -> float:
    """Return the multiply-accumulates of a layer's convolutions and matrix product."""
    (in_chans, *_), out = spec.inputs[0].shape, spec.outputs[0].shape
    wide = (in_chans or 0) * (layer.expand or 1)
    if layer.kind == "Logits":
        return float((in_chans or 0) * (out[0] or 0))
    if layer.kind != "expanded_conv":
        kernel = int(_setting(spec, "kernel"))
        return float(_area(out) * kernel * kernel * (in_chans or 0) * (out[0] or 0))
    expansion = 0 if layer.expand == 1 else _area(spec.inputs[0].shape) * (in_chans or 0) * wide
    kernel = layer.kernel or 0
    return float(expansion + _area(out) * wide * (kernel * kernel + (out[0] or 0)))


def weights(layer: Layer, spec: BlockSpec) -> float:
    """Return the parameters of a layer, batch norms included."""
    (in_chans, *_), (out_chans, *_) = spec.inputs[0].shape, spec.outputs[0].shape
    before, after = in_chans or 0, out_chans or 0
    if layer.kind == "Logits":
        return float(before * after + after)
    if layer.kind != "expanded_conv":
        kernel = int(_setting(spec, "kernel"))
        return float(kernel * kernel * before * after + 2 * after)
    wide = before * (layer.expand or 1)
    kernel = layer.kernel or 0
    expansion = 0 if layer.expand == 1 else before * wide + 2 * wide
    return float(expansion + wide * (kernel * kernel + 2) + wide * after + 2 * after)


def roofline(*, gmacs: float, gbytes: float) -> Callable[[Layer, BlockSpec], float]:
    """Return a layer's milliseconds on a nominal device: bound by arithmetic or by memory.

    Args:
        gmacs: Multiply-accumulates a second, in 1e9.
        gbytes: Bytes a second between memory and arithmetic, in 1e9. Weights, and the
            inputs and outputs of every convolution in float32, pass once.
    """

    def cost(layer: Layer, spec: BlockSpec) -> float:
        moved = _numel(spec.inputs[0].shape) + _numel(spec.outputs[0].shape)
        if layer.kind == "expanded_conv":
            wide = (spec.inputs[0].shape[0] or 0) * (layer.expand or 1)
            before = 0 if layer.expand == 1 else 2 * wide * _area(spec.inputs[0].shape)
            moved += before + 2 * wide * _area(spec.outputs[0].shape)
        size = 4 * (moved + weights(layer, spec))
        return 1e3 * max(macs(layer, spec) / (gmacs * 1e9), size / (gbytes * 1e9))

    return cost


def mul_log(loss: Tensor, cost: Tensor, *, ref: float, alpha: float, beta: float) -> Tensor:
    """Return ``alpha * loss * (ln cost / ln ref) ** beta``; both must be above 1."""
    return alpha * loss * (torch.log(cost) / math.log(ref)).pow(beta).to(loss.dtype)


def add_linear(loss: Tensor, cost: Tensor, *, ref: float, weight: float) -> Tensor:
    """Return ``loss + weight * (cost - ref) / ref``."""
    return loss + (weight * (cost - ref) / ref).to(loss.dtype)


_Item = tuple[Layer, BlockSpec]


def _walk(
    space: MBConvSpace, inputs: TensorSpec, num_classes: int
) -> tuple[list[_Item], list[list[_Item | None]]]:
    """Return the fixed layers, and for each searched block its operations' layers."""
    stem, first = space.stem_specs(inputs)
    fixed = [(_layer("Conv", stem), stem), (_layer("expanded_conv", first), first)]
    edges = []
    at = first.outputs[0]
    for edge in space.edges:
        edges.append([_edge_item(space, edge, op, at) for op in edge.ops])
        after = next(item for item in edges[-1] if item is not None)
        at = after[1].outputs[0]
    conv, classifier = space.head_specs(at, num_classes=num_classes)
    fixed += [(_layer("Conv_1", conv), conv), (_layer("Logits", classifier), classifier)]
    return fixed, edges


def _edge_item(space: MBConvSpace, edge: Edge, op: Op | None, inputs: TensorSpec) -> _Item | None:
    if op is None:
        return None
    spec = space.edge_spec(edge, op, inputs)
    return _layer("expanded_conv", spec), spec


def _layer(kind: str, spec: BlockSpec) -> Layer:
    before, after = _hwc(spec.inputs[0]), _hwc(spec.outputs[0])
    if kind != "expanded_conv":
        return Layer(kind, before, after)
    return Layer(
        kind,
        before,
        after,
        expand=int(_setting(spec, "expand")),
        kernel=int(_setting(spec, "kernel")),
        stride=int(_setting(spec, "stride")),
        skip=bool(_setting(spec, "skip")),
    )


def _setting(spec: BlockSpec, name: str) -> Any:
    return spec.params[name]


def _hwc(tensor: TensorSpec) -> tuple[int, ...]:
    if any(size is None for size in tensor.shape):
        raise IncompatibleShapeError(f"shape {tensor.shape} has a free dimension; fix its size")
    channels, *size = (side or 0 for side in tensor.shape)
    return (*size, channels)


def _area(shape: tuple[int | None, ...]) -> int:
    return math.prod(side or 0 for side in shape[1:])


def _numel(shape: tuple[int | None, ...]) -> int:
    return math.prod(side or 0 for side in shape)
