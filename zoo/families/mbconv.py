"""The MBConv family of blocks: convolution, inverted residual block, classifier.

A network is the chain ``mbconv.conv`` (stem), ``mbconv.block`` …, ``mbconv.conv`` (1x1),
``mbconv.classifier``; every block takes and returns one tensor.

Source:
    Sandler et al. (2018), "MobileNetV2", arXiv:1801.04381, with the settings of
    Cai et al. (2019), "ProxylessNAS", arXiv:1812.00332: batch norms with eps 1e-3,
    ReLU6, weights drawn from N(0, 2 / (k * k * out_chans)), the fan-out of depthwise
    convolutions not divided by their groups.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from zoo.builders import BlockCost, register
from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.families import costs
from zoo.families.drop_path import DropPath
from zoo.families.interfaces import at_least_one, odd
from zoo.spec import BlockSpec, TensorSpec

KERNELS = (3, 5, 7)
"""The kernel sizes that the ProxylessNAS space offers."""


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm and, unless ``linear``, ReLU6; odd sizes are halved upwards."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        conv = nn.Conv2d(
            in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (kernel * kernel * out_chans)))
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_chans, eps=1e-3)]
        super().__init__(*layers, *([] if linear else [nn.ReLU6(inplace=True)]))


class MBConv(nn.Sequential):
    """An inverted bottleneck without shortcut: expand, depthwise convolution, project.

    With ``expand`` 1 the expansion is left out.
    """

    def __init__(
        self, in_chans: int, out_chans: int, *, expand: int, kernel: int, stride: int
    ) -> None:
        wide = in_chans * expand
        layers = [] if expand == 1 else [ConvBNReLU(in_chans, wide, 1)]
        super().__init__(
            *layers,
            ConvBNReLU(wide, wide, kernel, stride=stride, groups=wide),
            ConvBNReLU(wide, out_chans, 1, linear=True),
        )


class MBConvBlock(nn.Module):
    """An inverted bottleneck, with ``skip`` added to its input unless its path is dropped."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        expand: int,
        kernel: int,
        stride: int,
        skip: bool,
    ) -> None:
        super().__init__()
        self.layers = MBConv(in_chans, out_chans, expand=expand, kernel=kernel, stride=stride)
        self.skip = skip
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.layers(x)) if self.skip else self.layers(x)


class Classifier(nn.Sequential):
    """Global average pooling, dropout and a linear classifier."""

    def __init__(self, in_chans: int, num_classes: int, *, dropout: float = 0.0) -> None:
        linear = nn.Linear(in_chans, num_classes)
        bound = 1 / math.sqrt(in_chans)
        nn.init.uniform_(linear.weight, -bound, bound)
        nn.init.zeros_(linear.bias)
        drop = [nn.Dropout(dropout)] if dropout else []
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, linear)


def conv_spec(inputs: TensorSpec, *, channels: int, kernel: int, stride: int) -> BlockSpec:
    """Describe a convolution with batch norm and ReLU6.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``.
        InvalidInputError: ``kernel`` is even, or a number is below 1.
    """
    _positive(channels=channels, kernel=kernel, stride=stride)
    return BlockSpec(
        op="mbconv.conv",
        params={"channels": channels, "kernel": kernel, "stride": stride},
        inputs=(inputs,),
        outputs=(_after(inputs, channels, stride),),
    )


def block_spec(
    inputs: TensorSpec, *, channels: int, expand: int, kernel: int, stride: int, skip: bool
) -> BlockSpec:
    """Describe an inverted residual block.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``, or
            there is a ``skip`` although the shape changes.
        InvalidInputError: ``kernel`` is even, or a number is below 1.
    """
    _positive(channels=channels, kernel=kernel, stride=stride, expand=expand)
    if skip and (stride != 1 or inputs.shape[0] != channels):
        raise IncompatibleShapeError(
            f"a block from {list(inputs.shape)} to {channels} channels with stride {stride} "
            "changes the shape; it can have no skip"
        )
    return BlockSpec(
        op="mbconv.block",
        params={
            "channels": channels,
            "expand": expand,
            "kernel": kernel,
            "stride": stride,
            "skip": skip,
        },
        inputs=(inputs,),
        outputs=(_after(inputs, channels, stride),),
    )


def placed_block_spec(
    inputs: TensorSpec, *, channels: int, stride: int = 1, expand: int = 6, kernel: int = 3
) -> BlockSpec:
    """Describe an inverted residual block that has a shortcut where it keeps the shape.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``.
        InvalidInputError: ``kernel`` is even, or a number is below 1.
    """
    skip = stride == 1 and _image(inputs)[0] == channels
    return block_spec(
        inputs, channels=channels, expand=expand, kernel=kernel, stride=stride, skip=skip
    )


def classifier_spec(inputs: TensorSpec, *, num_classes: int, dropout: float = 0.0) -> BlockSpec:
    """Describe global pooling, dropout and the linear classifier.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``.
        InvalidInputError: ``num_classes`` is below 1, or ``dropout`` is no probability below 1.
    """
    _image(inputs)
    if num_classes < 1:
        raise InvalidInputError(f"num_classes is {num_classes}; it must be at least 1")
    if not 0 <= dropout < 1:
        raise InvalidInputError(f"dropout is {dropout}; it must be at least 0 and below 1")
    logits = TensorSpec(shape=(num_classes,), dtype=inputs.dtype)
    return BlockSpec(
        op="mbconv.classifier",
        params={"dropout": float(dropout)},
        inputs=(inputs,),
        outputs=(logits,),
    )


def _positive(*, kernel: int, **numbers: int) -> None:
    odd(kernel=kernel)
    at_least_one(**numbers)


def _image(tensor: TensorSpec) -> tuple[int, int | None, int | None]:
    if len(tensor.shape) != 3 or tensor.shape[0] is None or not tensor.dtype.startswith("float"):
        raise IncompatibleShapeError(
            "an MBConv block takes float tensors of shape (channels, height, width) with a fixed "
            f"number of channels, not {tensor.dtype}{list(tensor.shape)}"
        )
    return tensor.shape[0], tensor.shape[1], tensor.shape[2]


def _after(inputs: TensorSpec, channels: int, stride: int) -> TensorSpec:
    _, *size = _image(inputs)
    height, width = (None if side is None else -(-side // stride) for side in size)
    return TensorSpec(shape=(channels, height, width), dtype=inputs.dtype)


def _param(spec: BlockSpec, name: str, kind: type) -> Any:
    value = spec.params.get(name)
    if type(value) is not kind:
        raise InvalidInputError(f"{spec.op} has {name}={value!r}; it takes a {kind.__name__}")
    return value


def _confirm(spec: BlockSpec, expected: BlockSpec) -> None:
    if spec.id != expected.id:
        shapes = [[list(tensor.shape) for tensor in item.outputs] for item in (expected, spec)]
        raise IncompatibleShapeError(
            f"{spec.op} of these parameters returns {shapes[0]}, but its spec says {shapes[1]}"
        )


def _conv_cost(spec: BlockSpec) -> BlockCost:
    channels, kernel = _param(spec, "channels", int), _param(spec, "kernel", int)
    weights = costs.conv(_image(spec.inputs[0])[0], channels, kernel, costs.area(spec.outputs[0]))
    return weights + costs.norm(channels)


def _block_cost(spec: BlockSpec) -> BlockCost:
    channels, kernel = _param(spec, "channels", int), _param(spec, "kernel", int)
    in_chans, expand = _image(spec.inputs[0])[0], _param(spec, "expand", int)
    before, after = costs.area(spec.inputs[0]), costs.area(spec.outputs[0])
    wide = in_chans * expand
    first = costs.conv(in_chans, wide, 1, before) + costs.norm(wide)
    return costs.total(
        BlockCost() if expand == 1 else first,
        costs.conv(wide, wide, kernel, after, groups=wide),
        costs.norm(wide),
        costs.conv(wide, channels, 1, after),
        costs.norm(channels),
    )


def _classifier_cost(spec: BlockSpec) -> BlockCost:
    return costs.linear(_image(spec.inputs[0])[0], spec.outputs[0].shape[0] or 1, 1)


_EXAMPLE = TensorSpec(shape=(4, 7, 5))


@register(
    "mbconv.conv",
    describe=conv_spec,
    cost=_conv_cost,
    examples=(conv_spec(_EXAMPLE, channels=6, kernel=3, stride=2),),
)
def build_conv(spec: BlockSpec) -> nn.Module:
    """Build ``mbconv.conv``; its ``params`` are the arguments of ``conv_spec``."""
    settings = {name: _param(spec, name, int) for name in ("channels", "kernel", "stride")}
    _confirm(spec, conv_spec(spec.inputs[0], **settings))
    in_chans = _image(spec.inputs[0])[0]
    return ConvBNReLU(in_chans, settings["channels"], settings["kernel"], stride=settings["stride"])


@register(
    "mbconv.block",
    describe=placed_block_spec,
    cost=_block_cost,
    examples=(
        placed_block_spec(_EXAMPLE, channels=4, expand=3),
        placed_block_spec(_EXAMPLE, channels=6, stride=2, expand=1, kernel=5),
        placed_block_spec(TensorSpec(shape=(4, None, None)), channels=4),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``mbconv.block``; its ``params`` are the arguments of ``block_spec``."""
    names = ("channels", "expand", "kernel", "stride")
    settings = {name: _param(spec, name, int) for name in names}
    skip = _param(spec, "skip", bool)
    _confirm(spec, block_spec(spec.inputs[0], **settings, skip=skip))
    out_chans = settings.pop("channels")
    return MBConvBlock(_image(spec.inputs[0])[0], out_chans, **settings, skip=skip)


@register(
    "mbconv.classifier",
    describe=classifier_spec,
    cost=_classifier_cost,
    examples=(classifier_spec(_EXAMPLE, num_classes=3, dropout=0.5),),
)
def build_classifier(spec: BlockSpec) -> nn.Module:
    """Build ``mbconv.classifier``; the number of classes is the size of its output."""
    num_classes = spec.outputs[0].shape[0]
    if num_classes is None:
        raise IncompatibleShapeError("the number of classes of a classifier cannot vary")
    dropout = spec.params.get("dropout")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise InvalidInputError(f"{spec.op} has dropout={dropout!r}; it takes a number")
    _confirm(spec, classifier_spec(spec.inputs[0], num_classes=num_classes, dropout=dropout))
    return Classifier(_image(spec.inputs[0])[0], num_classes, dropout=dropout)
