"""NAS-Bench-201 networks as graphs, for the functional hash.

One cell between stem and head stands for all: the network repeats it, so networks compute
the same if their cells do. The operations are as published: ReLU, convolution and batch
norm; 3x3 average pooling that leaves padding out. Normalisation is drawn without its affine
part, and with its eps; the offset that a built network would learn is marked, since it
makes a difference where zeros are normalised.

Source:
    Dong and Yang (2020), "NAS-Bench-201", arXiv:2001.00326.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from nas.graph import Graph
from nas.spaces.drawn_layers import ReluConvNorm, normalised
from zoo.spec import TensorSpec

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node to node, in the order of the string form."""

_WIDTH = 3
_SIDE = 6
"""Channels and pixels of the drawing."""


def nasbench201_graph(
    operations: Sequence[str],
    *,
    inputs: TensorSpec,
    num_classes: int,
    channels: int = 16,
    cells: int = 5,
) -> Graph:
    """Draw the network of a cell, small.

    Args:
        operations: Names of operations, one for each of ``EDGES``.
        inputs: Images ``(channels, height, width)`` of the real network.
        num_classes: Its number of logits.
        channels: Its width in the first stage.
        cells: Its cells of a stage.
    """
    in_chans = int(inputs.shape[0] or 1)
    graph = Graph(TensorSpec(shape=(in_chans, _SIDE, _SIDE)))
    size = f"{list(inputs.shape)} {channels}x{cells} {num_classes}"
    states = [graph.apply(f"stem {size}", partial(Stem, in_chans), graph.input())]
    for node in range(1, 4):
        terms = []
        for name, (source, target) in zip(operations, EDGES, strict=True):
            if target == node:
                terms.append(_draw(graph, name, states[source]))
        states.append(graph.add(*terms))
    graph.apply(f"head of {size}", partial(Head, num_classes), states[-1])
    return graph


def _draw(graph: Graph, name: str, source: int) -> int:
    if name == "none":
        return graph.zero(like=source)
    if name == "skip_connect":
        return graph.identity(source)
    if name == "avg_pool_3x3":
        pool = partial(nn.AvgPool2d, 3, stride=1, padding=1, count_include_pad=False)
        return graph.apply(name, pool, source, parametric=False)
    kernel = 1 if name == "nor_conv_1x1" else 3
    return graph.apply(
        name, partial(ReluConvNorm, _WIDTH, _WIDTH, kernel=kernel), source, offset=True
    )


class Stem(nn.Module):
    """A convolution and batch norm on the images."""

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, _WIDTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return normalised(self.conv(x))


class Head(nn.Module):
    """Logits: a dense layer over everything, so that nothing of the cell is averaged away."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(_WIDTH * _SIDE * _SIDE, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))
