"""NAS-Bench-101 networks as graphs, for the functional hash.

One cell between stem and head stands for all. Channels are divided evenly among what the
output concatenates: which vertex gets one more where they do not divide depends on their
numbering, and is not drawn.

Source:
    Ying et al. (2019), "NAS-Bench-101: Towards Reproducible Neural Architecture Search",
    arXiv:1902.09635.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from nas.graph import Graph
from zoo.spec import TensorSpec

_WIDTH = 2
"""Channels of an interior vertex."""

_INSIDE = 4
"""Channels of the cell's input."""

_SIDE = 6


def nasbench101_graph(
    operations: Sequence[str],
    edges: Sequence[tuple[int, int]],
    *,
    inputs: TensorSpec,
    num_classes: int,
    channels: int = 128,
    cells: int = 3,
) -> Graph:
    """Draw the network of a pruned cell, small.

    Args:
        operations: Names of the interior vertices' operations.
        edges: From vertex to vertex; 0 is the input, the highest number the output.
        inputs: Images ``(channels, height, width)`` of the real network.
        num_classes: Its number of logits.
        channels: Its width in the first stack.
        cells: Its cells of a stack.
    """
    in_chans, last = int(inputs.shape[0] or 1), len(operations) + 1
    sources = [[s for s, target in edges if target == vertex] for vertex in range(last + 1)]
    parts = max(1, sum(source > 0 for source in sources[last]))
    graph = Graph(TensorSpec(shape=(in_chans, _SIDE, _SIDE)))
    size = f"{list(inputs.shape)} {channels}x{cells} {num_classes}"
    x = graph.apply(f"stem {size}", partial(ConvNormRelu, in_chans, _INSIDE, 3), graph.input())
    states = [x]
    for vertex, name in enumerate(operations, start=1):
        terms = [states[source] for source in sources[vertex] if source]
        if 0 in sources[vertex]:
            make = partial(ConvNormRelu, _INSIDE, _WIDTH, 1)
            terms.append(graph.apply(f"projection to 1/{parts}", make, x))
        if name == "maxpool3x3":
            pool = partial(nn.MaxPool2d, 3, stride=1, padding=1)
            states.append(graph.apply(name, pool, graph.add(*terms), parametric=False))
        else:
            make = partial(ConvNormRelu, _WIDTH, _WIDTH, 3 if "3x3" in name else 1)
            states.append(graph.apply(f"{name} 1/{parts}", make, graph.add(*terms)))
    joined = [states[source] for source in sources[last] if source]
    terms = [graph.concat(*joined)] if joined else []
    if 0 in sources[last]:
        make = partial(ConvNormRelu, _INSIDE, _WIDTH * parts, 1)
        terms.append(graph.apply("projection to output", make, x))
    out = _WIDTH * parts * _SIDE * _SIDE
    graph.apply(f"head of {size}", partial(_head, out, num_classes), graph.add(*terms))
    return graph


class ConvNormRelu(nn.Module):
    """Convolution, batch norm without affine part, ReLU."""

    def __init__(self, in_chans: int, out_chans: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.batch_norm(x, None, None, None, None, True, 0.0, 1e-3, False).relu()


def _head(size: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(size, num_classes))
