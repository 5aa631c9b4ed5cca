"""The residual bottleneck with attention: a ResNet bottleneck that attends where it convolved.

1x1 convolution to a quarter of the width, 3x3 depthwise convolution (which tells positions and
takes the stride), attention of all pixels to all, 1x1 convolution back, shortcut.

Source:
    Srinivas et al. (2021), "Bottleneck Transformers", arXiv:2101.11605, with the position
    code of Li et al. (2021), "BossNAS", arXiv:2103.12424 (a depthwise convolution in place
    of relative positions, so that the block fits any size). Differs: softmax over the keys and
    nothing else (BossNAS's search code contracts over the wrong axis); the last batch norm's
    scale starts at 1, not at 0, so that the branch trains under optimisers whose steps are
    proportional to a weight's norm.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from zoo.builders import BlockCost, register
from zoo.errors import InvalidInputError
from zoo.families import costs
from zoo.families.drop_path import DropPath
from zoo.families.interfaces import (
    at_least_one,
    conv_norm_relu,
    image,
    restored,
    widened,
    width,
)
from zoo.families.tokens import changes, join_heads, num_heads, split_heads
from zoo.spec import BlockSpec, TensorSpec

REDUCTION = 4
"""How many times narrower the bottleneck is."""


class BottleneckAttention(nn.Module):
    """ReLU(shortcut(x) + expand(attention(position(reduce(x)))))."""

    def __init__(self, in_chans: int, channels: int, *, stride: int, head_dim: int) -> None:
        super().__init__()
        narrow = channels // REDUCTION
        self.heads = num_heads(narrow, head_dim)
        self.reduce = nn.Sequential(*conv_norm_relu(in_chans, narrow, 1))
        self.position = nn.Conv2d(narrow, narrow, 3, stride, 1, groups=narrow, bias=False)
        self.qkv = nn.Conv2d(narrow, 3 * narrow, 1, bias=False)
        self.norm = nn.BatchNorm2d(narrow)
        self.expand = nn.Sequential(
            nn.Conv2d(narrow, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.stride = stride
        shortcut: list[nn.Module] = []
        if changes(in_chans, channels, stride):
            shortcut = [nn.Conv2d(in_chans, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.shortcut = nn.Sequential(*shortcut)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Map images of ``in_chans`` to images of ``channels``."""
        y = self.position(self.reduce(x))
        tokens = self.qkv(y).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in tokens)
        mixed = join_heads(functional.scaled_dot_product_attention(query, key, value))
        mixed = mixed.transpose(1, 2).reshape(y.shape)
        branch = self.drop_path(self.expand(functional.relu(self.norm(mixed))))
        # A strided 1x1 convolution is a slice and a convolution.
        return functional.relu(branch + self.shortcut(x[:, :, :: self.stride, :: self.stride]))


def block_spec(
    inputs: TensorSpec, *, channels: int, stride: int = 1, head_dim: int = 16
) -> BlockSpec:
    """Describe a residual bottleneck with attention.

    Args:
        inputs: Images ``(in_chans, height, width)``.
        channels: Width; a quarter of it is a multiple of ``head_dim``.
        stride: Of the depthwise convolution; sizes are divided by it, rounding up.
        head_dim: Channels of one head.

    Raises:
        IncompatibleShapeError: ``inputs`` are no float images.
        InvalidInputError: A number is below 1, or the heads are not whole.
    """
    at_least_one(channels=channels, stride=stride, head_dim=head_dim)
    if channels % REDUCTION:
        raise InvalidInputError(f"channels is {channels}; it must be a multiple of {REDUCTION}")
    num_heads(channels // REDUCTION, head_dim)
    return BlockSpec(
        op="bottleneck_attention.block",
        params={"stride": stride, "head_dim": head_dim},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs; with n pixels attention itself takes n² ``channels`` / 2."""
    settings = _settings(spec)
    (in_chans, *_), channels = image(spec.inputs[0]), width(spec)
    before, after = costs.area(spec.inputs[0]), costs.area(spec.outputs[0])
    narrow = channels // REDUCTION
    shortcut = BlockCost()
    if changes(in_chans, channels, settings["stride"]):
        shortcut = costs.conv(in_chans, channels, 1, after) + costs.norm(channels)
    return costs.total(
        costs.conv(in_chans, narrow, 1, before),
        costs.norm(narrow),
        costs.conv(narrow, narrow, 3, after, groups=narrow),
        costs.conv(narrow, 3 * narrow, 1, after),
        BlockCost(macs=2 * after * after * narrow),
        costs.norm(narrow),
        costs.conv(narrow, channels, 1, after),
        costs.norm(channels),
        shortcut,
    )


def _settings(spec: BlockSpec) -> dict[str, int]:
    return restored(spec, block_spec, stride=int, head_dim=int)


@register(
    "bottleneck_attention.block",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(16, 5, 6)), channels=16, head_dim=2),
        block_spec(TensorSpec(shape=(6, 7, 5)), channels=16, stride=2, head_dim=4),
        block_spec(TensorSpec(shape=(16, None, None)), channels=16, head_dim=4),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``bottleneck_attention.block``; its width is that of its output."""
    return BottleneckAttention(image(spec.inputs[0])[0], width(spec), **_settings(spec))
