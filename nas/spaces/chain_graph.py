"""Chains of blocks as graphs, for the functional hash: every block one vertex, and thin.

A vertex is known by the description of its real block, so that whatever tells two blocks
apart (widths, sizes, kernels) tells their vertices' weights apart, however thin they run.
That holds for blocks with weights only: those without must be drawn at a size that tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nas.graph import Graph
from zoo.builders import build
from zoo.spec import BlockSpec, TensorSpec

_WIDTHS = (3, 4)
"""Channels of the drawing; they change wherever those of the network do."""

_SIDE = 8
"""Most pixels of the drawing's height and width."""

Thin = Callable[[BlockSpec, TensorSpec, int], BlockSpec | None]
"""Returns a block on the inputs and of the channels given; None if it is an identity."""


def chain_graph(specs: Sequence[BlockSpec], thin: Thin) -> Graph:
    """Draw a chain of blocks that each take and return one tensor.

    Args:
        specs: From the images to the logits.
        thin: Describes the drawing's block for a real one.
    """
    (images,) = specs[0].inputs
    in_chans, *size = images.shape
    given = TensorSpec(shape=(in_chans, *(min(pixels or _SIDE, _SIDE) for pixels in size)))
    graph = Graph(given)
    at, changes = graph.input(), 0
    for spec in specs:
        changes += spec.inputs[0].shape[0] != spec.outputs[0].shape[0]
        drawn = thin(spec, given, _WIDTHS[changes % 2])
        if drawn is None:
            at = graph.identity(at)
        else:
            at = graph.apply(f"{spec.op} {spec.id}", partial(build, drawn), at)
            given = drawn.outputs[0]
    return graph
