"""The HyTra family of blocks: stem, residual layers of convolution or attention, head.

A network is the chain ``hytra.stem``, ``hytra.layer`` …, ``hytra.head``. A layer is a
bottleneck: a 1x1 reduction to a quarter of its width, one depthwise 3x3 convolution that is
both the position code and, with stride 2, the down-sampling, then a 3x3 convolution or
multi-head self-attention over all pixels, then a 1x1 expansion, added to a shortcut. The
first layer after the stem may skip scales: its reduction begins with a depthwise
convolution whose kernel and stride are 2, 4 or 8, and its shortcut is of the reduced image
(``patch``).

Source:
    Li et al. (2021), "BossNAS: Exploring Hybrid CNN-transformers with Block-wisely
    Self-supervised Neural Architecture Search", arXiv:2103.12424. Differs from the official
    search code: attention weights are contracted over the keys that they were normalised
    over; queries are not scaled in place; a layer is that of the released networks: a shortcut
    that changes the shape is average pooling where it shrinks, a 1x1 convolution and a norm
    (there a convolution, 3x3 with stride 2 where it shrinks, norm and ReLU), and in the first
    layer no second reduction follows the patch. No convolution before a norm has a bias.
    Sizes that a stride does not divide are rounded up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.builders import register
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families.interfaces import (
    confirm,
    image,
    logits,
    param,
    sole_input,
    widened,
    width,
)
from zoo.spec import BlockSpec, TensorSpec

KINDS = ("attention", "convolution")
"""What a layer computes between its two 1x1 convolutions."""

BOTTLENECK = 4
"""A layer's width is this many times that of its bottleneck."""


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d) v, normalised and contracted over the keys.

    Args:
        queries: ``(batch, heads, tokens, head_dim)``, like ``keys`` and ``values``.
        keys: See ``queries``.
        values: See ``queries``.
    """
    return functional.scaled_dot_product_attention(queries, keys, values)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels of ``(batch, channels, height, width)``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # (batch, 3, heads, head_dim, tokens), as the channels of a 1x1 convolution lie.
        parts = self.qkv(x).reshape(batch, 3, self.heads, channels // self.heads, -1)
        queries, keys, values = parts.transpose(-1, -2).unbind(1)
        mixed = attention(queries, keys, values)
        return mixed.transpose(-1, -2).reshape(batch, channels, height, width)


class Patch(nn.Module):
    """A depthwise convolution whose kernel is its stride, a 1x1 convolution and batch norm.

    Images that ``size`` does not divide are padded with zeros at the right and the bottom.
    """

    def __init__(self, in_chans: int, out_chans: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.depthwise = nn.Conv2d(in_chans, in_chans, size, size, groups=in_chans, bias=False)
        self.pointwise = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        below, right = (-side % self.size for side in x.shape[-2:])
        if below or right:
            x = functional.pad(x, (0, right, 0, below))
        return self.norm(self.pointwise(self.depthwise(x)))


class Entrance(nn.Module):
    """What of a layer depends on where its input comes from: reduction and shortcut.

    Args:
        in_chans: Channels of the input.
        channels: Width of the layer.
        shrink: Factor by which the layer shrinks its input.
        patch: Whether a ``Patch`` does that, rather than the position code.
    """

    def __init__(self, in_chans: int, channels: int, *, shrink: int, patch: bool) -> None:
        super().__init__()
        hidden = channels // BOTTLENECK
        self.patch = patch
        self.reduce: nn.Module = (
            Patch(in_chans, hidden, shrink) if patch else nn.Conv2d(in_chans, hidden, 1, bias=False)
        )
        if patch:
            in_chans, shrink = hidden, 1
        self.position = nn.Conv2d(hidden, hidden, 3, shrink, 1, groups=hidden, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.project: nn.Module | None = None
        if shrink > 1 or in_chans != channels:
            self.project = nn.Sequential(
                nn.AvgPool2d(shrink, ceil_mode=True) if shrink > 1 else nn.Identity(),
                nn.Conv2d(in_chans, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bottleneck's input and the shortcut."""
        reduced = self.reduce(x)
        given = reduced if self.patch else x
        shortcut = given if self.project is None else self.project(given)
        return torch.relu(self.norm(self.position(reduced))), shortcut


class Body(nn.Module):
    """What of a layer does not depend on where its input comes from.

    The last batch norm starts at zero, so that a fresh layer is its shortcut.
    """

    def __init__(self, channels: int, *, kind: str, head_dim: int) -> None:
        super().__init__()
        hidden = channels // BOTTLENECK
        self.mix: nn.Module = (
            SelfAttention(hidden, hidden // head_dim)
            if kind == "attention"
            else nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        )
        self.mix_norm = nn.BatchNorm2d(hidden)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_norm(self.expand(torch.relu(self.mix_norm(self.mix(x)))))


class Layer(nn.Module):
    """A residual layer: ReLU(body(entrance) + shortcut)."""

    def __init__(self, entrance: Entrance, body: Body) -> None:
        super().__init__()
        self.entrance, self.body = entrance, body

    def forward(self, x: Tensor) -> Tensor:
        reduced, shortcut = self.entrance(x)
        return torch.relu(self.body(reduced) + shortcut)


def stem(in_chans: int, channels: int) -> nn.Module:
    """Build the 7x7 convolution of stride 2, batch norm, ReLU and max pooling: a quarter."""
    return nn.Sequential(
        nn.Conv2d(in_chans, channels, 7, 2, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    )


def stem_spec(inputs: TensorSpec, *, channels: int) -> BlockSpec:
    """Describe the stem; it shrinks images to a quarter of height and width.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: ``channels`` is below 1.
    """
    outputs = widened(widened(inputs, channels, stride=2), channels, stride=2)
    return BlockSpec(op="hytra.stem", inputs=(inputs,), outputs=(outputs,))


def layer_spec(
    inputs: TensorSpec, *, channels: int, kind: str, shrink: int, patch: bool, head_dim: int
) -> BlockSpec:
    """Describe a residual layer.

    Args:
        inputs: What it takes.
        channels: Its width, a multiple of ``4 * head_dim``.
        kind: One of ``KINDS``.
        shrink: Factor by which height and width shrink: 1 or 2, with ``patch`` up to 8.
        patch: Whether a depthwise convolution of that kernel and stride shrinks it.
        head_dim: Channels of an attention head.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        UnknownNameError: ``kind`` is not one of ``KINDS``.
        InvalidInputError: A number is out of range.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of HyTra layer", kind, KINDS)
    if shrink not in ((1, 2, 4, 8) if patch else (1, 2)):
        raise InvalidInputError(f"shrink is {shrink}; it must be 1 or 2, with patch also 4 or 8")
    if head_dim < 1 or channels < 1 or channels % (BOTTLENECK * head_dim):
        raise InvalidInputError(
            f"channels is {channels}; it must be a multiple of {BOTTLENECK} times head_dim "
            f"({head_dim})"
        )
    return BlockSpec(
        op="hytra.layer",
        params={"kind": kind, "shrink": shrink, "patch": patch, "head_dim": head_dim},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=shrink),),
    )


def head_spec(inputs: TensorSpec, *, num_classes: int) -> BlockSpec:
    """Describe global average pooling and the classifier.

    Raises:
        IncompatibleShapeError: ``inputs`` is no float ``(channels, height, width)``.
        InvalidInputError: ``num_classes`` is below 1.
    """
    return BlockSpec(op="hytra.head", inputs=(inputs,), outputs=(logits(inputs, num_classes),))


@register("hytra.stem")
def build_stem(spec: BlockSpec) -> nn.Module:
    """Build ``hytra.stem``; its width is that of its output."""
    inputs, channels = sole_input(spec), width(spec)
    confirm(spec, stem_spec(inputs, channels=channels))
    return stem(image(inputs)[0], channels)


_EXAMPLE = TensorSpec(shape=(8, 8, 8))


@register(
    "hytra.layer",
    examples=(
        layer_spec(_EXAMPLE, channels=8, kind="attention", shrink=1, patch=False, head_dim=2),
        layer_spec(_EXAMPLE, channels=16, kind="convolution", shrink=2, patch=False, head_dim=2),
        layer_spec(_EXAMPLE, channels=16, kind="attention", shrink=4, patch=True, head_dim=2),
    ),
)
def build_layer(spec: BlockSpec) -> nn.Module:
    """Build ``hytra.layer``; its ``params`` are the arguments of ``layer_spec``."""
    inputs, channels = sole_input(spec), width(spec)
    kind, head_dim = param(spec, "kind", str), param(spec, "head_dim", int)
    shrink, patch = param(spec, "shrink", int), param(spec, "patch", bool)
    expected = layer_spec(
        inputs, channels=channels, kind=kind, shrink=shrink, patch=patch, head_dim=head_dim
    )
    confirm(spec, expected)
    return Layer(
        Entrance(image(inputs)[0], channels, shrink=shrink, patch=patch),
        Body(channels, kind=kind, head_dim=head_dim),
    )


@register("hytra.head")
def build_head(spec: BlockSpec) -> nn.Module:
    """Build ``hytra.head``; the number of classes is the size of its output."""
    inputs, num_classes = sole_input(spec), width(spec)
    if len(inputs.shape) != 3:
        raise IncompatibleShapeError(f"{spec.op} takes images, not {list(inputs.shape)}")
    confirm(spec, head_spec(inputs, num_classes=num_classes))
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(image(inputs)[0], num_classes)
    )
