"""The NAS-Bench-Macro family of blocks: stem, layer and head.

Source:
    Su et al. (2021), "Prioritized Architecture Sampling with Monto-Carlo Tree Search",
    arXiv:2103.11922. Differs: a strided 1x1 convolution is written as a slice and a
    convolution (same values).
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.builders import register
from zoo.errors import UnknownNameError
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

OPERATIONS = {"identity": None, "mbconv_k3_e3": (3, 3), "mbconv_k5_e6": (5, 6)}
"""What a layer may compute: kernel size and expansion of an inverted bottleneck."""

HEAD_CHANNELS = 1280


class Projection(nn.Module):
    """What is left of an identity that changes the shape: a 1x1 convolution and batch norm."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_chans)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x[:, :, :: self.stride, :: self.stride]))


class InvertedBottleneck(nn.Module):
    """Widen, filter channel by channel, narrow; added to its input where the shapes agree."""

    def __init__(
        self, in_chans: int, out_chans: int, stride: int, kernel: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = in_chans * expansion
        self.layers = nn.Sequential(
            *conv_norm_relu(in_chans, hidden, 1),
            *conv_norm_relu(hidden, hidden, kernel, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_chans, 1, bias=False),
            nn.BatchNorm2d(out_chans),
        )
        self.residual = stride == 1 and in_chans == out_chans

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


def stem_spec(inputs: TensorSpec, *, channels: int) -> BlockSpec:
    """Describe the 3x3 convolution, batch norm and ReLU on the images.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
    """
    outputs = widened(inputs, channels)
    return BlockSpec(op="nasbench-macro.stem", inputs=(inputs,), outputs=(outputs,))


def layer_spec(inputs: TensorSpec, *, channels: int, stride: int, operation: str) -> BlockSpec:
    """Describe one layer.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        UnknownNameError: ``operation`` is not one of ``OPERATIONS``.
    """
    if operation not in OPERATIONS:
        raise UnknownNameError("NAS-Bench-Macro operation", operation, OPERATIONS)
    return BlockSpec(
        op="nasbench-macro.layer",
        params={"operation": operation, "stride": stride},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def head_spec(inputs: TensorSpec, *, num_classes: int) -> BlockSpec:
    """Describe a 1x1 convolution to 1,280 channels, average pooling and the classifier.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: ``num_classes`` is below 1.
    """
    outputs = logits(inputs, num_classes)
    return BlockSpec(op="nasbench-macro.head", inputs=(inputs,), outputs=(outputs,))


@register("nasbench-macro.stem")
def build_stem(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench-macro.stem``; its width is that of its output."""
    inputs, channels = sole_input(spec), width(spec)
    confirm(spec, stem_spec(inputs, channels=channels))
    return nn.Sequential(*conv_norm_relu(image(inputs)[0], channels, 3))


@register("nasbench-macro.layer")
def build_layer(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench-macro.layer``; ``params``: ``operation`` and ``stride``."""
    inputs, channels = sole_input(spec), width(spec)
    name, stride = param(spec, "operation", str), param(spec, "stride", int)
    confirm(spec, layer_spec(inputs, channels=channels, stride=stride, operation=name))
    in_chans = image(inputs)[0]
    bottleneck = OPERATIONS[name]
    if bottleneck is not None:
        return InvertedBottleneck(in_chans, channels, stride, *bottleneck)
    if stride == 1 and in_chans == channels:
        return nn.Identity()
    return Projection(in_chans, channels, stride)


@register("nasbench-macro.head")
def build_head(spec: BlockSpec) -> nn.Module:
    """Build ``nasbench-macro.head``; the number of classes is the size of its output."""
    inputs, num_classes = sole_input(spec), width(spec)
    confirm(spec, head_spec(inputs, num_classes=num_classes))
    return nn.Sequential(
        *conv_norm_relu(image(inputs)[0], HEAD_CHANNELS, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(HEAD_CHANNELS, num_classes),
    )
