"""Neighbourhood attention: every pixel attends to the K x K window of pixels nearest to it.

Windows do not leave the image: near a border the window is moved inwards until it fits, so
that every pixel has exactly K² keys. A learned bias depends on where a key lies relative to
the query (up to K - 1 pixels away, near borders).

| symbol | here | shape |
|---|---|---|
| K | ``kernel`` | odd, at most height and width |
| ρ(i) | ``windows(length, kernel)[i]`` | (length, K) positions along one axis |
| B | ``bias`` | (heads, 2K - 1, 2K - 1), indexed by key - query + K - 1 |

Source:
    Hassani et al. (2022), "Neighborhood Attention Transformer", arXiv:2204.07143; official
    code: SHI-Labs/Neighborhood-Attention-Transformer. As there: queries are scaled by
    ``head_dim ** -0.5``, the bias starts from N(0, 0.02²) and is not scaled, the
    feed-forward network expands 3 times. This is the reference form: keys and values of
    all windows are gathered, which takes K² times their memory; no kernel of its own.
    Differs: an image smaller than the window is an error (the original pads it with zeros);
    keys have no offset (without effect); a block that changes width or size begins with a
    3x3 convolution and batch norm (there: without the block, and a layer norm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.builders import BlockCost, register
from zoo.errors import IncompatibleShapeError
from zoo.families import costs
from zoo.families.interfaces import at_least_one, image, odd, restored, sides, widened, width
from zoo.families.tokens import (
    FeedForward,
    MixerBlock,
    QueryKeyValue,
    Transition,
    linear,
    num_heads,
)
from zoo.spec import BlockSpec, TensorSpec


def windows(length: int, kernel: int) -> Tensor:
    """Return the positions that each position attends to along one axis.

    Args:
        length: Pixels, at least ``kernel``.
        kernel: Pixels of a window, odd.

    Returns:
        ``(length, kernel)`` ascending positions: the window around a pixel, moved inside.
    """
    first = (torch.arange(length) - kernel // 2).clamp(0, length - kernel)
    return first.unsqueeze(1) + torch.arange(kernel)


def neighbours(height: int, breadth: int, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the pixels that each pixel attends to, and where they lie.

    Returns:
        Two ``(height * breadth, kernel²)`` tensors: positions in raster order, and positions in
        a flattened ``(2 kernel - 1, 2 kernel - 1)`` table of relative positions.
    """
    rows, columns = windows(height, kernel), windows(breadth, kernel)
    pixels = rows[:, None, :, None] * breadth + columns[None, :, None, :]
    down = rows - torch.arange(height).unsqueeze(1) + kernel - 1
    right = columns - torch.arange(breadth).unsqueeze(1) + kernel - 1
    places = down[:, None, :, None] * (2 * kernel - 1) + right[None, :, None, :]
    shape = (height * breadth, kernel * kernel)
    return pixels.reshape(shape), places.reshape(shape)


def neighbourhood_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, pixels: Tensor, places: Tensor
) -> Tensor:
    """Return softmax(query · neighbours' keys / √head_dim + bias) · neighbours' values.

    Args:
        query: Shape ``(batch, tokens, heads, head_dim)``, tokens in raster order.
        key: The same shape.
        value: The same shape.
        bias: Shape ``(heads, 2 kernel - 1, 2 kernel - 1)``.
        pixels: As ``neighbours`` returns it.
        places: As ``neighbours`` returns it.

    Returns:
        The shape of ``query``.
    """
    tokens, count = pixels.shape
    near_keys, near_values = (
        torch.unflatten(part.index_select(1, pixels.flatten()), 1, (tokens, count))
        for part in (key, value)
    )  # (batch, tokens, count, heads, head_dim)
    queries = (query * query.shape[-1] ** -0.5).unsqueeze(3)
    logits = queries @ near_keys.permute(0, 1, 3, 4, 2)  # (batch, tokens, heads, 1, count)
    here = bias.flatten(1).index_select(1, places.flatten())
    here = torch.unflatten(here, 1, (tokens, count))
    weights = (logits + here.transpose(0, 1).unsqueeze(2)).softmax(-1)
    return (weights @ near_values.transpose(2, 3)).squeeze(3)


class NeighbourhoodAttention(nn.Module):
    """Queries, keys and values; attention to windows of ``kernel``; output map."""

    pixels: Tensor
    places: Tensor

    def __init__(
        self, channels: int, heads: int, *, kernel: int, height: int, breadth: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QueryKeyValue(channels)
        self.bias = nn.Parameter(torch.empty(heads, 2 * kernel - 1, 2 * kernel - 1))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.out = linear(channels, channels)
        pixels, places = neighbours(height, breadth, kernel)
        self.register_buffer("pixels", pixels, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, height, width, channels)`` to the same shape."""
        query, key, value = (
            torch.unflatten(part, -1, (self.heads, part.shape[-1] // self.heads))
            for part in self.qkv(x.flatten(1, 2))
        )
        mixed = neighbourhood_attention(query, key, value, self.bias, self.pixels, self.places)
        return self.out(mixed.flatten(2)).reshape(x.shape)


def block_spec(
    inputs: TensorSpec,
    *,
    channels: int,
    stride: int = 1,
    head_dim: int = 32,
    kernel: int = 7,
    expand: int = 3,
) -> BlockSpec:
    """Describe a neighbourhood attention block.

    Args:
        inputs: Images ``(in_chans, height, width)`` of fixed size.
        channels: Width, a multiple of ``head_dim``.
        stride: Of the transition; sizes are divided by it, rounding up.
        head_dim: Channels of one head.
        kernel: Pixels along each side of a window, odd, at most the output's size.
        expand: Hidden width of the feed-forward network, in ``channels``.

    Raises:
        IncompatibleShapeError: ``inputs`` are no images of fixed size, or smaller than a window.
        InvalidInputError: A number is out of range, or the heads are not whole.
    """
    at_least_one(channels=channels, stride=stride, head_dim=head_dim, expand=expand)
    odd(kernel=kernel)
    num_heads(channels, head_dim)
    outputs = widened(inputs, channels, stride=stride)
    if min(sides(outputs)) < kernel:
        raise IncompatibleShapeError(
            f"images of {sides(outputs)} pixels are smaller than a window of {kernel}; "
            "choose a smaller kernel"
        )
    return BlockSpec(
        op="neighbourhood.block",
        params={"stride": stride, "head_dim": head_dim, "kernel": kernel, "expand": expand},
        inputs=(inputs,),
        outputs=(outputs,),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs; attention itself takes 2 K² ``channels`` a pixel."""
    settings = _settings(spec)
    channels, tokens = width(spec), costs.area(spec.outputs[0])
    kernel = settings["kernel"]
    bias = num_heads(channels, settings["head_dim"]) * (2 * kernel - 1) ** 2
    return costs.total(
        Transition.cost(spec),
        costs.norm(channels),
        QueryKeyValue.cost(channels, tokens),
        BlockCost(macs=2 * tokens * kernel * kernel * channels, num_params=bias),
        costs.linear(channels, channels, tokens),
        costs.norm(channels),
        FeedForward.cost(channels, settings["expand"], tokens),
    )


def _settings(spec: BlockSpec) -> dict[str, int]:
    names = ("stride", "head_dim", "kernel", "expand")
    return restored(spec, block_spec, **dict.fromkeys(names, int))


@register(
    "neighbourhood.block",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(8, 5, 6)), channels=8, head_dim=4, kernel=3),
        block_spec(TensorSpec(shape=(4, 11, 9)), channels=8, stride=2, head_dim=8, kernel=5),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``neighbourhood.block``; its width is that of its output."""
    settings = _settings(spec)
    channels = width(spec)
    height, breadth = sides(spec.outputs[0])
    attention = NeighbourhoodAttention(
        channels,
        num_heads(channels, settings["head_dim"]),
        kernel=settings["kernel"],
        height=height,
        breadth=breadth,
    )
    return MixerBlock(
        attention,
        FeedForward(channels, settings["expand"]),
        Transition(image(spec.inputs[0])[0], channels, settings["stride"]),
        channels,
    )
