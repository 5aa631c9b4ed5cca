"""Lightning attention: linear attention with decay, computed block by block.

    o_t = Σ_s λ^|t - s| (q_t · k_s) v_s,   λ = exp(-slope) of each head

over all s (as image blocks use it, pixels in raster order), or over s ≤ t (causal). Within
a block of B tokens this is computed as it stands; what comes from other blocks goes
through a running sum of k_sᵀ v_s, which decays by λ^B from block to block. Hence the cost
grows linearly with the number of tokens, and the result is exact.

| symbol | here | shape |
|---|---|---|
| q, k | ``query``, ``key`` | (batch, heads, tokens, head_dim) |
| v | ``value`` | (batch, heads, tokens, value_dim) |
| slope | ``slopes`` | (heads,), those of ALiBi |
| B | ``block_size`` | tokens of a block; the last one is filled with zeros |

Source:
    Qin et al. (2024), "Lightning Attention-2", arXiv:2401.04658, and "Various Lengths,
    Constant Speed", arXiv:2405.17381; official code: OpenNLPLab/lightning-attention. The
    attention layer is the official example's: SiLU on queries, keys and values, layer
    norm of the result, a low-rank sigmoid gate, no offsets; the feed-forward network is
    the gated one without activation of TransNormerLLM, arXiv:2307.14995. Differs: plain
    PyTorch; not causal by default, since an image has no order; decays do not depend on
    the depth of the layer; a block that changes width or size begins with a 3x3 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.builders import BlockCost, register
from zoo.families import costs
from zoo.families.interfaces import at_least_one, image, param, restored, widened, width
from zoo.families.tokens import (
    MixerBlock,
    Transition,
    join_heads,
    linear,
    num_heads,
    split_heads,
)
from zoo.spec import BlockSpec, TensorSpec


def head_slopes(heads: int) -> list[float]:
    """Return the decay rates of ``heads`` heads, those of ALiBi.

    For a power of two they are 2^(-8/heads), 2^(-16/heads), …, 2^-8. Else those of the power
    of two below come first, then every second one of the power of two above.

    Source:
        Press et al. (2021), arXiv:2108.12409.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (head + 1) / below) for head in range(below)]
    between = [2.0 ** (-8 * (head + 1) / (2 * below)) for head in range(0, 2 * below, 2)]
    return slopes + between[: heads - below]


def lightning_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *, block_size: int, causal: bool
) -> Tensor:
    """Return linear attention with decay, block by block.

    Args:
        query: Shape ``(batch, heads, tokens, head_dim)``.
        key: The same shape.
        value: Shape ``(batch, heads, tokens, value_dim)``.
        slopes: Shape ``(heads,)``, not negative; 0 is attention without decay.
        block_size: Tokens of a block.
        causal: Only earlier tokens and the token itself count.

    Returns:
        Shape ``(batch, heads, tokens, value_dim)``.
    """
    tokens = int(query.shape[2])  # a constant, also where the call is traced
    blocks = -(-tokens // block_size)
    filled = (0, 0, 0, blocks * block_size - tokens)
    query, key, value = (
        torch.unflatten(functional.pad(part, filled), 2, (blocks, block_size))
        for part in (query, key, value)
    )
    at = torch.arange(block_size, device=query.device)
    rates = slopes[:, None]
    apart = at[:, None] - at
    near = torch.exp(-rates[:, :, None] * apart.abs())
    if causal:
        near = near.tril()
    mixed = (query @ key.transpose(-1, -2) * near[:, None]) @ value
    if blocks > 1:
        once = torch.exp(-rates[:, :, None] * block_size)
        sums = _sums(key, value, torch.exp(-rates * (block_size - at)), range(blocks - 1))
        past = (query * torch.exp(-rates * at)[:, None, :, None])[:, :, 1:] @ _running(sums, once)
        mixed = torch.cat([mixed[:, :, :1], mixed[:, :, 1:] + past], 2)
    if blocks > 1 and not causal:
        sums = _sums(key, value, torch.exp(-rates * (at + 1)), range(blocks - 1, 0, -1))
        ahead = torch.exp(-rates * (block_size - 1 - at))[:, None, :, None]
        future = (query * ahead)[:, :, :-1] @ _running(sums, once).flip(2)
        mixed = torch.cat([mixed[:, :, :-1] + future, mixed[:, :, -1:]], 2)
    return mixed.flatten(2, 3)[:, :, :tokens]


def _sums(key: Tensor, value: Tensor, weights: Tensor, blocks: Iterable[int]) -> list[Tensor]:
    """Return, for each of ``blocks``, the sum of its tokens' kᵀ v times their ``weights``."""
    weighted = (key * weights[:, None, :, None]).transpose(-1, -2)
    return [weighted[:, :, block] @ value[:, :, block] for block in blocks]


def _running(sums: Sequence[Tensor], once: Tensor) -> Tensor:
    """Return running sums, stacked: each is the one before times ``once``, plus the next item."""
    states = [sums[0]]
    for item in sums[1:]:
        states.append(states[-1] * once + item)
    return torch.stack(states, 2)


class LightningAttention(nn.Module):
    """Queries, keys, values and gate; linear attention; norm, gate, output map."""

    slopes: Tensor

    def __init__(
        self, channels: int, head_dim: int, *, block_size: int, causal: bool, decay: bool
    ) -> None:
        super().__init__()
        self.heads = num_heads(channels, head_dim)
        self.block_size, self.causal = block_size, causal
        self.qkv = linear(channels, 3 * channels, bias=False)
        self.gate = nn.Sequential(
            linear(channels, head_dim, bias=False), linear(head_dim, channels, bias=False)
        )
        self.norm = nn.LayerNorm(channels)
        self.out = linear(channels, channels, bias=False)
        slopes = torch.tensor(head_slopes(self.heads)) * decay
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, height, width, channels)`` to the same shape."""
        tokens = x.flatten(1, 2)
        parts = functional.silu(self.qkv(tokens)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        mixed = lightning_attention(
            query, key, value, self.slopes, block_size=self.block_size, causal=self.causal
        )
        gated = self.norm(join_heads(mixed)) * self.gate(tokens).sigmoid()
        return self.out(gated).reshape(x.shape)


class GatedFeedForward(nn.Module):
    """The product of two linear maps, mapped back; no activation, no offsets."""

    def __init__(self, channels: int, expand: int) -> None:
        super().__init__()
        self.widen = linear(channels, 2 * channels * expand, bias=False)
        self.narrow = linear(channels * expand, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., channels)`` to the same shape."""
        left, right = self.widen(x).chunk(2, dim=-1)
        return self.narrow(left * right)


def block_spec(
    inputs: TensorSpec,
    *,
    channels: int,
    stride: int = 1,
    head_dim: int = 32,
    block_size: int = 64,
    expand: int = 3,
    causal: bool = False,
    decay: bool = True,
) -> BlockSpec:
    """Describe a lightning attention block.

    Args:
        inputs: Images ``(in_chans, height, width)`` of fixed size.
        channels: Width, a multiple of ``head_dim``.
        stride: Of the transition; sizes are divided by it, rounding up.
        head_dim: Channels of one head, and the rank of the gate.
        block_size: Tokens of a block; at most as many as there are are taken.
        expand: Hidden width of the gated feed-forward network, in ``channels``.
        causal: A pixel sees only those before it in raster order.
        decay: Whether distant pixels count less.

    Raises:
        IncompatibleShapeError: ``inputs`` are no images of fixed size.
        InvalidInputError: A number is out of range, or the heads are not whole.
    """
    at_least_one(channels=channels, stride=stride, head_dim=head_dim)
    at_least_one(block_size=block_size, expand=expand)
    num_heads(channels, head_dim)
    outputs = widened(inputs, channels, stride=stride)
    costs.area(outputs)
    return BlockSpec(
        op="lightning.block",
        params={
            "stride": stride,
            "head_dim": head_dim,
            "block_size": block_size,
            "expand": expand,
            "causal": causal,
            "decay": decay,
        },
        inputs=(inputs,),
        outputs=(outputs,),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs, the zeros that fill the last block of tokens included."""
    settings = _settings(spec)
    channels, tokens = width(spec), costs.area(spec.outputs[0])
    head_dim, size = settings["head_dim"], min(settings["block_size"], tokens)
    blocks = -(-tokens // size)
    directions = 1 if param(spec, "causal", bool) else 2
    within = 2 * blocks * size * size * channels
    between = 2 * (blocks - 1) * size * head_dim * channels * directions
    hidden = channels * settings["expand"]
    return costs.total(
        Transition.cost(spec),
        costs.norm(channels),
        costs.linear(channels, 3 * channels, tokens, bias=False),
        BlockCost(macs=within + between),
        costs.norm(channels),
        costs.linear(channels, head_dim, tokens, bias=False),
        costs.linear(head_dim, channels, tokens, bias=False),
        costs.linear(channels, channels, tokens, bias=False),
        costs.norm(channels),
        costs.linear(channels, 2 * hidden, tokens, bias=False),
        costs.linear(hidden, channels, tokens, bias=False),
    )


def _settings(spec: BlockSpec) -> dict[str, int]:
    numbers = ("stride", "head_dim", "block_size", "expand")
    flags = ("causal", "decay")
    return restored(spec, block_spec, **dict.fromkeys(numbers, int), **dict.fromkeys(flags, bool))


@register(
    "lightning.block",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(8, 5, 6)), channels=8, head_dim=4, block_size=8),
        block_spec(TensorSpec(shape=(4, 7, 5)), channels=8, stride=2, head_dim=8),
        block_spec(
            TensorSpec(shape=(8, 4, 4)), channels=8, head_dim=4, block_size=8, causal=True,
            decay=False,
        ),
    ),
)  # fmt: skip
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``lightning.block``; its width is that of its output."""
    settings = _settings(spec)
    channels = width(spec)
    attention = LightningAttention(
        channels,
        settings["head_dim"],
        block_size=min(settings["block_size"], costs.area(spec.outputs[0])),
        causal=param(spec, "causal", bool),
        decay=param(spec, "decay", bool),
    )
    return MixerBlock(
        attention,
        GatedFeedForward(channels, settings["expand"]),
        Transition(image(spec.inputs[0])[0], channels, settings["stride"]),
        channels,
    )
