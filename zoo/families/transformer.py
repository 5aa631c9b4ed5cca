"""The pre-norm transformer block on images: global attention and a feed-forward network.

Source:
    Vaswani et al. (2017), arXiv:1706.03762; Dosovitskiy et al. (2020), arXiv:2010.11929;
    as block T of Kag et al. (2024), "AsCAN", arXiv:2411.04967. Differs: pixels are the
    tokens and there is no class token; positions are told by the convolutions before
    the block alone; keys have no offset (without effect); a block that changes width or size
    begins with a 3x3 convolution.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from zoo.builders import BlockCost, register
from zoo.families import costs
from zoo.families.interfaces import at_least_one, image, restored, widened, width
from zoo.families.tokens import (
    FeedForward,
    MixerBlock,
    QueryKeyValue,
    Transition,
    join_heads,
    linear,
    num_heads,
    split_heads,
)
from zoo.spec import BlockSpec, TensorSpec


class GlobalAttention(nn.Module):
    """Multi-head attention of every pixel to every pixel, scaled by ``head_dim ** -0.5``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QueryKeyValue(channels)
        self.out = linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, height, width, channels)`` to the same shape."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x.flatten(1, 2)))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(join_heads(mixed)).reshape(x.shape)


def block_spec(
    inputs: TensorSpec, *, channels: int, stride: int = 1, head_dim: int = 32, expand: int = 4
) -> BlockSpec:
    """Describe a transformer block.

    Args:
        inputs: Images ``(in_chans, height, width)``.
        channels: Width, a multiple of ``head_dim``.
        stride: Of the transition; sizes are divided by it, rounding up.
        head_dim: Channels of one head.
        expand: Hidden width of the feed-forward network, in ``channels``.

    Raises:
        IncompatibleShapeError: ``inputs`` are no float images.
        InvalidInputError: A number is below 1, or the heads are not whole.
    """
    at_least_one(channels=channels, stride=stride, head_dim=head_dim, expand=expand)
    num_heads(channels, head_dim)
    return BlockSpec(
        op="transformer.block",
        params={"stride": stride, "head_dim": head_dim, "expand": expand},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs; with n pixels attention itself takes 2 n² ``channels``."""
    settings = _settings(spec)
    channels, tokens = width(spec), costs.area(spec.outputs[0])
    return costs.total(
        Transition.cost(spec),
        costs.norm(channels),
        QueryKeyValue.cost(channels, tokens),
        BlockCost(macs=2 * tokens * tokens * channels),
        costs.linear(channels, channels, tokens),
        costs.norm(channels),
        FeedForward.cost(channels, settings["expand"], tokens),
    )


def _settings(spec: BlockSpec) -> dict[str, int]:
    return restored(spec, block_spec, stride=int, head_dim=int, expand=int)


@register(
    "transformer.block",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(8, 5, 6)), channels=8, head_dim=4),
        block_spec(TensorSpec(shape=(6, 7, 5)), channels=8, stride=2, head_dim=8, expand=2),
        block_spec(TensorSpec(shape=(4, None, None)), channels=4, head_dim=4),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``transformer.block``; its width is that of its output."""
    settings = _settings(spec)
    channels = width(spec)
    return MixerBlock(
        GlobalAttention(channels, num_heads(channels, settings["head_dim"])),
        FeedForward(channels, settings["expand"]),
        Transition(image(spec.inputs[0])[0], channels, settings["stride"]),
        channels,
    )
