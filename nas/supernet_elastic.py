"""A weight-sharing network over the MBConv space whose kernel sizes share one kernel.

Blocks of one expansion share everything; their depthwise kernel is stored at the largest
size, and a smaller one is the centre of the next larger, transformed by a matrix that all
channels share (it starts as the identity).

Source:
    Cai et al. (2020), "Once-for-All: Train One Network and Specialize it for Efficient
    Deployment", arXiv:1908.09791, elastic kernel sizes. Differs: expansions have weights of
    their own, depth is the space's ``zero``, and there is neither distillation nor
    progressive shrinking; batch norms have no statistics of their own a size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.spaces.mbconv import Edge, MBConvSpace, Op
from nas.supernet import Mixture
from zoo.builders import build
from zoo.families.mbconv import ConvBNReLU
from zoo.spec import TensorSpec

KIND = "chain"
"""The one kind of cell, as the key of its mixture: the whole chain of searched blocks."""


class ElasticDepthwise(nn.Module):
    """A depthwise convolution of any of several kernel sizes, with batch norm and ReLU6.

    Args:
        channels: Of input and output.
        kernels: Sizes on offer, odd.
        stride: 1 or 2.
    """

    def __init__(self, channels: int, kernels: Sequence[int], *, stride: int) -> None:
        super().__init__()
        self.sizes = sorted(set(kernels), reverse=True)
        self.stride = stride
        largest = self.sizes[0]
        self.weight = nn.Parameter(torch.empty(channels, 1, largest, largest))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (largest * largest * channels)))
        self.transforms = nn.ParameterDict(
            {str(size): nn.Parameter(torch.eye(size * size)) for size in self.sizes[1:]}
        )
        self.after = nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU6(inplace=True))

    def kernel(self, size: int) -> Tensor:
        """Return the kernel of one size, ``(channels, 1, size, size)``."""
        found: Tensor = self.weight
        for larger, smaller in pairwise(self.sizes):
            if smaller < size:
                break
            margin = (larger - smaller) // 2
            centre = found[:, :, margin : margin + smaller, margin : margin + smaller]
            found = F.linear(centre.flatten(1), self.transforms[str(smaller)]).view_as(centre)
        return found

    def forward(self, x: Tensor, size: int) -> Tensor:
        kernel = self.kernel(size)
        groups = len(kernel)
        return self.after(F.conv2d(x, kernel, None, self.stride, size // 2, groups=groups))


class ElasticMBConv(nn.Module):
    """An inverted bottleneck of one expansion and several kernel sizes, without shortcut."""

    def __init__(self, edge: Edge, expand: int, kernels: Sequence[int]) -> None:
        super().__init__()
        wide = edge.in_chans * expand
        self.expand = nn.Identity() if expand == 1 else ConvBNReLU(edge.in_chans, wide, 1)
        self.depthwise = ElasticDepthwise(wide, kernels, stride=edge.stride)
        self.project = ConvBNReLU(wide, edge.out_chans, 1, linear=True)

    def forward(self, x: Tensor, size: int) -> Tensor:
        return self.project(self.depthwise(self.expand(x), size))


class ElasticBlock(nn.Module):
    """The weighted sum of a searched block's operations, beside its shortcut if it has one."""

    def __init__(self, edge: Edge) -> None:
        super().__init__()
        self.skip = edge.skip
        self.choices: tuple[Op | None, ...] = edge.ops
        sizes: dict[int, list[int]] = {}
        for op in edge.ops:
            if op is not None:
                sizes.setdefault(op.expand, []).append(op.kernel)
        self.paths = nn.ModuleDict(
            {str(expand): ElasticMBConv(edge, expand, found) for expand, found in sizes.items()}
        )

    def forward(self, x: Tensor, weights: Tensor, active: Sequence[int] | None) -> Tensor:
        run = range(len(self.choices)) if active is None else active
        terms = [
            weights[at] * self.paths[str(op.expand)](x, op.kernel)
            for at in run
            if (op := self.choices[at]) is not None
        ]
        return reduce(add, [x, *terms] if self.skip else terms)


class ElasticSupernet(nn.Module):
    """All networks of an MBConv space at once, kernel sizes sharing weights.

    Args:
        space: Its stem, searched blocks and head.
        inputs: One image.
        num_classes: Number of logits.
    """

    def __init__(self, space: MBConvSpace, *, inputs: TensorSpec, num_classes: int) -> None:
        super().__init__()
        stem, first = space.stem_specs(inputs)
        self.stem, self.first = build(stem), build(first)
        self.blocks = nn.ModuleList(ElasticBlock(edge) for edge in space.edges)
        width = TensorSpec(shape=(space.edges[-1].out_chans, 1, 1))
        conv, classifier = space.head_specs(width, num_classes=num_classes)
        self.last, self.classifier = build(conv), build(classifier)

    def forward(self, images: Tensor, mixtures: Mapping[str, Mixture]) -> Tensor:
        """Map ``(batch, in_chans, height, width)`` to logits ``(batch, num_classes)``."""
        x = self.first(self.stem(images))
        mixture = mixtures[KIND]
        active = mixture.active or [None] * len(self.blocks)
        for block, weights, run in zip(self.blocks, mixture.ops.unbind(), active, strict=True):
            x = block(x, weights, run)
        return self.classifier(self.last(x))
