"""Chains of blocks as graphs, for the functional hash: every block one vertex.

What a block computes is known by its description: its operation, settings, widths and
sizes. What a chain computes is known by the order in which its blocks read each other. So a
vertex needs no more than weights of its own, seeded by that description, and something that is
not linear: here a residual layer on few channels and pixels, which is quick, and through
forty of which a change is still seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from nas.graph import Graph
from zoo.spec import BlockSpec, TensorSpec

_WIDTH, _SIDE, _LOGITS = 4, 4, 8
"""Channels and pixels of the drawing, and what its last block returns."""


def chain_graph(
    specs: Sequence[BlockSpec], *, is_identity: Callable[[BlockSpec], bool] = lambda _: False
) -> Graph:
    """Draw a chain of blocks that each take and return one tensor.

    Args:
        specs: From the images to the logits; all but identities have weights.
        is_identity: Says which blocks return what they are given.
    """
    in_chans = specs[0].inputs[0].shape[0] or 1
    graph = Graph(TensorSpec(shape=(in_chans, _SIDE, _SIDE)))
    at = graph.apply(_name(specs[0]), partial(First, in_chans), graph.input())
    for spec in specs[1:-1]:
        if is_identity(spec):
            at = graph.identity(at)
        else:
            at = graph.apply(_name(spec), partial(Inner), at)
    graph.apply(_name(specs[-1]), partial(Last), at)
    return graph


def _name(spec: BlockSpec) -> str:
    return f"{spec.op} {spec.id}"


class First(nn.Module):
    """The images, and what a layer makes of them, on the channels of the drawing."""

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, _WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()


class Inner(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(_WIDTH, _WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).tanh()


class Last(nn.Module):
    """A dense layer over everything, so that nothing is averaged away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(_WIDTH * _SIDE * _SIDE, _LOGITS)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))
