"""Bi-level routing attention: every region of the image attends to the few that suit it.

The image is cut into S x S regions. Means of queries and of keys over the regions give a
region's affinity to every other; pixels then attend to all pixels of their region's k best.
A depthwise convolution of the values (local context enhancement) is added.

| symbol | here | shape |
|---|---|---|
| S | ``regions`` | regions along each side |
| k | ``topk`` | regions that each one attends to, at most S² |
| I | ``routes`` | (batch, S², k), chosen without gradient |
| q, k, v | ``query``, ``key``, ``value`` | (batch, height, width, channels) |

Source:
    Zhu et al. (2023), "BiFormer: Vision Transformer with Bi-Level Routing Attention",
    arXiv:2303.08810; official code: rayleizhu/BiFormer. As there: logits and affinities
    are scaled by ``channels ** -0.5`` (all channels, not a head's), the convolutions of
    values and of positions have 5 and 3 pixels, the feed-forward network expands 3 times.
    Differs: images must divide into the regions (the original pads with zeros, which then
    take part in the attention); keys have no offset (without effect); a block that changes
    width or size begins with a 3x3 convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.builders import BlockCost, register
from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.families import costs
from zoo.families.interfaces import at_least_one, image, restored, sides, widened, width
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

POSITION_KERNEL = 3
CONTEXT_KERNEL = 5


def partition(x: Tensor, regions: int) -> Tensor:
    """Return ``(batch, height, width, channels)`` as ``(batch, regions², pixels, channels)``.

    Regions and the pixels of each are in raster order.
    """
    _, height, breadth, _ = x.shape
    x = torch.unflatten(x, 2, (regions, breadth // regions))
    x = torch.unflatten(x, 1, (regions, height // regions))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merge(x: Tensor, height: int, breadth: int, regions: int) -> Tensor:
    """Undo ``partition``."""
    x = torch.unflatten(x, 2, (height // regions, breadth // regions))
    x = torch.unflatten(x, 1, (regions, regions))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def region_routes(query: Tensor, key: Tensor, topk: int, scale: float) -> Tensor:
    """Return the regions that each region attends to, best first.

    Args:
        query: Shape ``(batch, regions, pixels, channels)``.
        key: The same shape.
        topk: How many.
        scale: Of the affinities (their order does not depend on it).

    Returns:
        Indices ``(batch, regions, topk)``; no gradient goes through the choice.
    """
    affinity = (query.detach().mean(2) * scale) @ key.detach().mean(2).transpose(1, 2)
    return affinity.topk(topk, dim=-1).indices


def bi_level_routing_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    regions: int,
    topk: int,
    scale: float | None = None,
) -> Tensor:
    """Return, for every pixel, the attention to the pixels of its region's routes.

    Args:
        query: Shape ``(batch, height, width, channels)``.
        key: The same shape.
        value: The same shape.
        heads: A divisor of ``channels``.
        regions: Along each side; divides height and width.
        topk: Regions attended to.
        scale: Of the logits; None is ``channels ** -0.5``, as published.

    Returns:
        The same shape, without local context enhancement.
    """
    _, height, breadth, channels = query.shape
    scale = channels**-0.5 if scale is None else scale
    query, key, value = (partition(part, regions) for part in (query, key, value))
    routes = region_routes(query, key, topk, scale)
    key, value = _gather(key, routes), _gather(value, routes)
    query, key, value = (split_heads(part.flatten(0, 1), heads) for part in (query, key, value))
    mixed = join_heads(functional.scaled_dot_product_attention(query, key, value, scale=scale))
    mixed = torch.unflatten(mixed, 0, (-1, regions * regions))
    return merge(mixed, height, breadth, regions)


def _gather(x: Tensor, routes: Tensor) -> Tensor:
    """Return the pixels of the chosen regions, ``(batch, regions, topk * pixels, channels)``."""
    _, regions, pixels, channels = x.shape
    at = routes.flatten(1).unsqueeze(2).expand(-1, -1, pixels * channels)
    return x.flatten(2).gather(1, at).reshape(-1, regions, routes.shape[2] * pixels, channels)


class BiLevelRoutingAttention(nn.Module):
    """Queries, keys and values; routed attention plus local context; output map."""

    def __init__(self, channels: int, heads: int, *, regions: int, topk: int) -> None:
        super().__init__()
        self.heads, self.regions, self.topk = heads, regions, topk
        self.qkv = QueryKeyValue(channels)
        self.context = nn.Conv2d(
            channels, channels, CONTEXT_KERNEL, padding=CONTEXT_KERNEL // 2, groups=channels
        )
        self.out = linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, height, width, channels)`` to the same shape."""
        query, key, value = self.qkv(x)
        mixed = bi_level_routing_attention(
            query, key, value, heads=self.heads, regions=self.regions, topk=self.topk
        )
        context = self.context(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.out(mixed + context)


def block_spec(
    inputs: TensorSpec,
    *,
    channels: int,
    stride: int = 1,
    head_dim: int = 32,
    regions: int = 7,
    topk: int = 4,
    expand: int = 3,
) -> BlockSpec:
    """Describe a BiFormer block.

    Args:
        inputs: Images ``(in_chans, height, width)`` of fixed size.
        channels: Width, a multiple of ``head_dim``.
        stride: Of the transition; sizes are divided by it, rounding up.
        head_dim: Channels of one head.
        regions: Along each side; must divide the output's height and width.
        topk: Regions that each one attends to.
        expand: Hidden width of the feed-forward network, in ``channels``.

    Raises:
        IncompatibleShapeError: ``inputs`` are no images of fixed size, or do not divide.
        InvalidInputError: A number is out of range, or the heads are not whole.
    """
    at_least_one(channels=channels, stride=stride, head_dim=head_dim, regions=regions)
    at_least_one(topk=topk, expand=expand)
    num_heads(channels, head_dim)
    if topk > regions * regions:
        raise InvalidInputError(f"topk is {topk}, but there are only {regions * regions} regions")
    outputs = widened(inputs, channels, stride=stride)
    if any(side % regions for side in sides(outputs)):
        raise IncompatibleShapeError(
            f"images of {sides(outputs)} pixels do not divide into {regions} x {regions} regions; "
            "choose regions that divide height and width"
        )
    return BlockSpec(
        op="biformer.block",
        params={
            "stride": stride,
            "head_dim": head_dim,
            "regions": regions,
            "topk": topk,
            "expand": expand,
        },
        inputs=(inputs,),
        outputs=(outputs,),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs: n pixels attend to n ``topk`` / S² each."""
    settings = _settings(spec)
    channels, tokens = width(spec), costs.area(spec.outputs[0])
    cells = settings["regions"] ** 2
    attended = settings["topk"] * tokens // cells
    return costs.total(
        Transition.cost(spec),
        costs.conv(channels, channels, POSITION_KERNEL, tokens, groups=channels, bias=True),
        costs.norm(channels),
        QueryKeyValue.cost(channels, tokens),
        BlockCost(macs=cells * cells * channels + 2 * tokens * attended * channels),
        costs.conv(channels, channels, CONTEXT_KERNEL, tokens, groups=channels, bias=True),
        costs.linear(channels, channels, tokens),
        costs.norm(channels),
        FeedForward.cost(channels, settings["expand"], tokens),
    )


def _settings(spec: BlockSpec) -> dict[str, int]:
    names = ("stride", "head_dim", "regions", "topk", "expand")
    return restored(spec, block_spec, **dict.fromkeys(names, int))


@register(
    "biformer.block",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(8, 4, 6)), channels=8, head_dim=4, regions=2, topk=2),
        block_spec(
            TensorSpec(shape=(4, 11, 6)), channels=8, stride=2, head_dim=8, regions=3, topk=4
        ),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``biformer.block``; its width is that of its output."""
    settings = _settings(spec)
    channels = width(spec)
    heads = num_heads(channels, settings["head_dim"])
    position = nn.Conv2d(
        channels, channels, POSITION_KERNEL, padding=POSITION_KERNEL // 2, groups=channels
    )
    return MixerBlock(
        BiLevelRoutingAttention(
            channels, heads, regions=settings["regions"], topk=settings["topk"]
        ),
        FeedForward(channels, settings["expand"]),
        Transition(image(spec.inputs[0])[0], channels, settings["stride"]),
        channels,
        position=position,
    )
