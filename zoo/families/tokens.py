"""What the attention families share: a residual block around any mixer of tokens.

Pixels are tokens, channels last. A mixer is a module from ``(batch, height, width,
channels)`` to the same shape; ``MixerBlock`` puts norms, shortcuts, a feed-forward network and,
where the shape changes, a transition around it (a "MetaFormer" block).

Source:
    Vaswani et al. (2017), arXiv:1706.03762; pre-norm: Xiong et al. (2020),
    arXiv:2002.04745; the common form: Yu et al. (2022), "MetaFormer is Actually What You
    Need for Vision", arXiv:2111.11418. The transition (3x3 convolution of the block's
    stride, batch norm) is that between the stages of BiFormer; it stands inside the block,
    so that every block can be put at the beginning of a stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.builders import BlockCost
from zoo.errors import InvalidInputError
from zoo.families import costs
from zoo.families.drop_path import DropPath
from zoo.families.interfaces import image
from zoo.spec import BlockSpec

EPS = 1e-6
"""Of layer norms, as in vision transformers."""


class QueryKeyValue(nn.Module):
    """One linear map to queries, keys and values; keys have no offset.

    An offset of the keys adds the same number to all logits of a query, which softmax takes
    out again: it would be a parameter without effect and without gradient. (As in BEiT,
    Bao et al. 2021, arXiv:2106.08254.)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.query_bias = nn.Parameter(torch.zeros(channels))
        self.value_bias = nn.Parameter(torch.zeros(channels))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``(..., channels)`` to three of that shape."""
        offsets = (self.query_bias, torch.zeros_like(self.query_bias), self.value_bias)
        mapped = functional.linear(x, self.weight, torch.cat(offsets))
        query, key, value = mapped.chunk(3, dim=-1)
        return query, key, value

    @staticmethod
    def cost(channels: int, tokens: int) -> BlockCost:
        """Return what it costs for ``tokens`` vectors."""
        weights = costs.linear(channels, 3 * channels, tokens, bias=False)
        return weights + BlockCost(num_params=2 * channels)


class FeedForward(nn.Sequential):
    """Two linear maps with GELU between them."""

    def __init__(self, channels: int, expand: int) -> None:
        super().__init__(
            linear(channels, channels * expand), nn.GELU(), linear(channels * expand, channels)
        )

    @staticmethod
    def cost(channels: int, expand: int, tokens: int) -> BlockCost:
        """Return what it costs for ``tokens`` vectors."""
        hidden = channels * expand
        return costs.linear(channels, hidden, tokens) + costs.linear(hidden, channels, tokens)


class Transition(nn.Sequential):
    """From other channels or a larger image: 3x3 convolution and batch norm; else nothing."""

    def __init__(self, in_chans: int, channels: int, stride: int) -> None:
        conv = nn.Conv2d(in_chans, channels, 3, stride, 1, bias=False)
        layers = (conv, nn.BatchNorm2d(channels))
        super().__init__(*(layers if changes(in_chans, channels, stride) else ()))

    @staticmethod
    def cost(spec: BlockSpec) -> BlockCost:
        """Return what that of a block of one input, one output and ``stride`` costs."""
        in_chans, channels = image(spec.inputs[0])[0], image(spec.outputs[0])[0]
        if not changes(in_chans, channels, spec.params["stride"]):
            return BlockCost()
        pixels = costs.area(spec.outputs[0])
        return costs.conv(in_chans, channels, 3, pixels) + costs.norm(channels)


class MixerBlock(nn.Module):
    """Transition, then tokens mixed and fed forward, each after a norm and beside a shortcut.

    Args:
        mixer: Maps ``(batch, height, width, channels)`` to the same shape.
        feed_forward: Maps ``(..., channels)`` to the same shape.
        transition: Maps images to images of ``channels``.
        channels: Width of the block.
        position: Added to its input before anything else, e.g. a convolution, or None.
    """

    def __init__(
        self,
        mixer: nn.Module,
        feed_forward: nn.Module,
        transition: Transition,
        channels: int,
        *,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.transition = transition
        self.position = position
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.feed_forward = feed_forward
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_chans, height, width)`` to the block's output."""
        x = self.transition(x)
        if self.position is not None:
            x = x + self.position(x)
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.drop_path(self.feed_forward(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


def changes(in_chans: int, channels: int, stride: object) -> bool:
    """Say whether a block's output has another shape than its input."""
    return in_chans != channels or stride != 1


def linear(in_chans: int, out_chans: int, *, bias: bool = True) -> nn.Linear:
    """Build a linear map that starts as transformers do: truncated normal, no offset."""
    layer = nn.Linear(in_chans, out_chans, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def num_heads(channels: int, head_dim: int) -> int:
    """Return how many heads of ``head_dim`` channels there are.

    Raises:
        InvalidInputError: ``channels`` is no multiple of ``head_dim``.
    """
    if head_dim < 1 or channels % head_dim:
        raise InvalidInputError(
            f"{channels} channels are not whole heads of {head_dim}; "
            "choose a head_dim that divides them"
        )
    return channels // head_dim


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return ``(batch, tokens, channels)`` as ``(batch, heads, tokens, channels / heads)``."""
    return torch.unflatten(x, -1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Undo ``split_heads``."""
    return x.transpose(1, 2).flatten(2)
