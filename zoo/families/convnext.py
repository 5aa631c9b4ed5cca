"""The ConvNeXt block: a large depthwise convolution and a feed-forward network.

Source:
    Liu et al. (2022), "A ConvNet for the 2020s", arXiv:2201.03545; layer norm with eps
    1e-6, the branch scaled by a learned vector that starts at 1e-6. Differs: a block that
    changes width or size begins with a 3x3 convolution and batch norm, where the
    original has a layer norm and a 2x2 convolution between its stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.builders import BlockCost, register
from zoo.families import costs
from zoo.families.drop_path import DropPath
from zoo.families.interfaces import at_least_one, image, odd, restored, widened, width
from zoo.families.tokens import EPS, FeedForward, Transition
from zoo.spec import BlockSpec, TensorSpec

LAYER_SCALE = 1e-6
"""What the scale of the branch starts at."""


class ConvNeXt(nn.Module):
    """Transition, then x + scale · feed-forward(norm(depthwise convolution of x))."""

    def __init__(
        self, in_chans: int, channels: int, *, stride: int, kernel: int, expand: int
    ) -> None:
        super().__init__()
        self.transition = Transition(in_chans, channels, stride)
        self.filter = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        nn.init.trunc_normal_(self.filter.weight, std=0.02)
        nn.init.zeros_(self.filter.bias)  # type: ignore[arg-type]  # it has one
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.feed_forward = FeedForward(channels, expand)
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Map images of ``in_chans`` to images of ``channels``."""
        x = self.transition(x)
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        y = self.scale * self.feed_forward(y)
        return x + self.drop_path(y.permute(0, 3, 1, 2))


def block_spec(
    inputs: TensorSpec, *, channels: int, stride: int = 1, kernel: int = 7, expand: int = 4
) -> BlockSpec:
    """Describe a ConvNeXt block.

    Args:
        inputs: Images ``(in_chans, height, width)``.
        channels: Channels of the output.
        stride: Of the transition; sizes are divided by it, rounding up.
        kernel: Size of the depthwise convolution, odd.
        expand: Hidden width of the feed-forward network, in ``channels``.

    Raises:
        IncompatibleShapeError: ``inputs`` are no float images.
        InvalidInputError: A number is below 1, or ``kernel`` is even.
    """
    at_least_one(channels=channels, stride=stride, expand=expand)
    odd(kernel=kernel)
    return BlockSpec(
        op="convnext.block",
        params={"stride": stride, "kernel": kernel, "expand": expand},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs."""
    settings = _settings(spec)
    channels, pixels = width(spec), costs.area(spec.outputs[0])
    return costs.total(
        Transition.cost(spec),
        costs.conv(channels, channels, settings["kernel"], pixels, groups=channels, bias=True),
        costs.norm(channels),
        FeedForward.cost(channels, settings["expand"], pixels),
        BlockCost(num_params=channels),
    )


def _settings(spec: BlockSpec) -> dict[str, int]:
    return restored(spec, block_spec, stride=int, kernel=int, expand=int)


@register(
    "convnext.block",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(4, 5, 6)), channels=4),
        block_spec(TensorSpec(shape=(4, 7, 5)), channels=6, stride=2, kernel=3, expand=2),
        block_spec(TensorSpec(shape=(4, None, None)), channels=4),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``convnext.block``; its width is that of its output."""
    return ConvNeXt(image(spec.inputs[0])[0], width(spec), **_settings(spec))
