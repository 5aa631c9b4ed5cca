"""Inverted bottlenecks with squeeze and excitation and SiLU: convolution and block.

The classifier of a network of these is ``mbconv.classifier``.

Source:
    Tan and Le (2019), "EfficientNet", arXiv:1905.11946; Hu et al. (2018),
    "Squeeze-and-Excitation Networks", arXiv:1709.01507. The squeezed width is a share of the
    block's input channels, at least one. Differs from the search code of BossNAS,
    arXiv:2103.12424: a shortcut only where shapes agree, as in EfficientNet (there one
    everywhere, through pooling and a 1x1 convolution that a layer's operations share).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from zoo.builders import register
from zoo.errors import InvalidInputError
from zoo.families.interfaces import confirm, image, param, sole_input, widened, width
from zoo.spec import BlockSpec, TensorSpec


def conv_norm(
    in_chans: int, out_chans: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Build a convolution and batch norm; odd sizes are halved upwards."""
    conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_chans)]


class SqueezeExcite(nn.Module):
    """Scales channels by a gate that sees the mean of every channel."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(functional.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class MBConvSE(nn.Module):
    """Expand, depthwise convolution, squeeze and excite, project; residual where shapes agree."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        expand: int,
        kernel: int,
        stride: int,
        squeeze: float,
    ) -> None:
        super().__init__()
        hidden = in_chans * expand
        widen = [] if expand == 1 else [*conv_norm(in_chans, hidden, 1), nn.SiLU()]
        self.layers = nn.Sequential(
            *widen,
            *conv_norm(hidden, hidden, kernel, stride=stride, groups=hidden),
            nn.SiLU(),
            SqueezeExcite(hidden, max(1, int(in_chans * squeeze))),
            *conv_norm(hidden, out_chans, 1),
        )
        self.residual = stride == 1 and in_chans == out_chans

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


def conv_spec(inputs: TensorSpec, *, channels: int, kernel: int, stride: int) -> BlockSpec:
    """Describe a convolution with batch norm and SiLU.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: ``kernel`` is even, or a number is below 1.
    """
    _check(kernel=kernel, stride=stride)
    return BlockSpec(
        op="mbconv-se.conv",
        params={"kernel": kernel, "stride": stride},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def block_spec(
    inputs: TensorSpec, *, channels: int, expand: int, kernel: int, stride: int, squeeze: float
) -> BlockSpec:
    """Describe an inverted bottleneck.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: ``kernel`` is even, or a number is out of range.
    """
    _check(kernel=kernel, stride=stride, expand=expand)
    if not 0 < squeeze <= 1:
        raise InvalidInputError(f"squeeze is {squeeze}; it must be above 0 and at most 1")
    return BlockSpec(
        op="mbconv-se.block",
        params={"expand": expand, "kernel": kernel, "stride": stride, "squeeze": squeeze},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def _check(*, kernel: int, **numbers: int) -> None:
    for name, value in {"kernel": kernel, **numbers}.items():
        if value < 1:
            raise InvalidInputError(f"{name} is {value}; it must be at least 1")
    if kernel % 2 == 0:
        raise InvalidInputError(f"kernel is {kernel}; it must be odd")


@register("mbconv-se.conv")
def build_conv(spec: BlockSpec) -> nn.Module:
    """Build ``mbconv-se.conv``; its width is that of its output."""
    inputs, channels = sole_input(spec), width(spec)
    kernel, stride = param(spec, "kernel", int), param(spec, "stride", int)
    confirm(spec, conv_spec(inputs, channels=channels, kernel=kernel, stride=stride))
    return nn.Sequential(*conv_norm(image(inputs)[0], channels, kernel, stride=stride), nn.SiLU())


@register("mbconv-se.block")
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``mbconv-se.block``; its width is that of its output."""
    inputs, channels = sole_input(spec), width(spec)
    numbers = {name: param(spec, name, int) for name in ("expand", "kernel", "stride")}
    squeeze = spec.params.get("squeeze")
    if isinstance(squeeze, bool) or not isinstance(squeeze, int | float):
        raise InvalidInputError(f"{spec.op} has squeeze={squeeze!r}; it takes a number")
    confirm(spec, block_spec(inputs, channels=channels, **numbers, squeeze=squeeze))
    return MBConvSE(image(inputs)[0], channels, **numbers, squeeze=squeeze)
