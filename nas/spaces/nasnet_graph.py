"""NASNet networks as drawings, by which ``nas.identity`` knows them.

Blocks may be numbered in many ways, their sides exchanged and what a cell returns put in
any order: one network, one drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from nas.graph import Graph
from nas.spaces.drawn_layers import ReluConvNorm
from zoo.families.interfaces import param
from zoo.families.nasnet import Head, Stem, Wiring, fixed_image, halves
from zoo.families.nasnet_operations import operation
from zoo.spec import BlockSpec, TensorSpec

THIN = 2
"""Channels of a state in the first cell."""

LEAST_SIDE = 4
"""Pixels that are left behind the last reduction, so that pools are no identities."""


@dataclass(frozen=True)
class _Drawn:
    vertex: int
    width: int


def nasnet_graph(specs: Sequence[BlockSpec], wirings: Sequence[Wiring], *, eps: float) -> Graph:
    """Draw a network, thinner and no larger than its reductions need.

    Args:
        specs: Its blocks: stem, cells, head.
        wirings: Of every cell.
        eps: Of every batch norm.
    """
    stem, *cells, head = specs
    stride = 2 if stem.params["stride"] == 2 else 1
    most = LEAST_SIDE * stride * 2 ** sum(bool(spec.params["reduction"]) for spec in cells)
    in_chans, *size = fixed_image(stem.inputs[0])
    graph = Graph(TensorSpec(shape=(in_chans, *(min(side, most) for side in size))))
    raw = _channels(stem) == _channels(cells[0])
    width = THIN if raw else THIN + 1
    make = partial(Stem, in_chans, width, stride=stride, eps=eps)
    current = _Drawn(graph.apply(f"stem {stem.id}", make, graph.input()), width)
    previous, thin = None, THIN
    for number, (spec, wiring) in enumerate(zip(cells, wirings, strict=True)):
        widens = number > 0 and _channels(spec) > _channels(cells[number - 1])
        thin *= 2 if widens else 1
        new = _Cell(graph, spec, wiring, thin, eps).draw(previous, current)
        previous, current = ((previous or current) if spec.params["skip"] else current), new
    classes = head.outputs[0].shape[0] or 1
    classify = partial(Head, current.width, classes, dropout=0.0)
    graph.apply(f"head {head.inputs[0].shape} {classes}", classify, current.vertex)
    return graph


class _Cell:
    """Draws one cell ``thin`` channels wide.

    The true widths and sizes of its inputs are part of its vertices, not its place in the
    network, so that a cell that stands twice is recognised.
    """

    def __init__(
        self, graph: Graph, spec: BlockSpec, wiring: Wiring, thin: int, eps: float
    ) -> None:
        self._graph, self._wiring, self._thin, self._eps = graph, wiring, thin, eps
        self._reduces = bool(spec.params["reduction"])
        self._chans = _channels(spec)
        self._inputs = [fixed_image(tensor) for tensor in spec.inputs]
        self._halves = halves(spec.inputs)
        self._interface = f"{[list(item) for item in self._inputs]} {self._chans} {self._reduces}"

    def draw(self, previous: _Drawn | None, current: _Drawn) -> _Drawn:
        """Draw the cell on its inputs and return its concatenation."""
        fitted = self._layer(current.width)
        states = [_Drawn(self._apply("squeeze current", fitted, current.vertex), self._thin)]
        states.append(self._fit_previous(previous, current))
        for *sides, combine in self._wiring.blocks:
            ends = [self._operation(name, state, states[state]) for name, state in sides]
            if combine == "add":
                joined = self._graph.add(*ends)
            else:
                both = self._graph.concat(*ends)
                joined = self._apply("join", self._layer(2 * self._thin), both)
            states.append(_Drawn(joined, self._thin))
        parts = [self._returned(state, states[state]) for state in self._wiring.outputs]
        return _Drawn(self._graph.concat(*parts), self._thin * len(parts))

    def _fit_previous(self, previous: _Drawn | None, current: _Drawn) -> _Drawn:
        if previous is None:
            return current
        if not self._halves and self._inputs[0][0] == self._chans:
            return previous
        fitted = self._layer(previous.width, stride=2 if self._halves else 1)
        return _Drawn(self._apply("squeeze previous", fitted, previous.vertex), self._thin)

    def _operation(self, name: str, state: int, source: _Drawn) -> int:
        stride = 2 if self._reduces and state < 2 else 1
        same = self._width(state) == self._chans
        if name == "identity" and stride == 1 and same:
            return self._graph.identity(source.vertex)
        if "pool" in name and same:
            pool = partial(operation, name, source.width, self._thin, stride=stride, eps=self._eps)
            return self._graph.apply(f"{name} /{stride}", pool, source.vertex, parametric=False)
        layer = self._layer(source.width, stride=stride)
        return self._apply(f"{name} /{stride} from {self._width(state)}", layer, source.vertex)

    def _returned(self, state: int, drawn: _Drawn) -> int:
        halves = state < 2 and self._reduces
        if not halves and self._width(state) == self._chans:
            return drawn.vertex
        layer = self._layer(drawn.width, stride=2 if halves else 1)
        return self._apply(f"returned from {self._width(state)}", layer, drawn.vertex)

    def _layer(self, in_chans: int, *, stride: int = 1) -> Callable[[], nn.Module]:
        return partial(ReluConvNorm, in_chans, self._thin, stride=stride, eps=self._eps)

    def _width(self, state: int) -> int:
        """Return a state's true width: of the raw input if there is no previous one."""
        return self._inputs[0][0] if state == 1 and len(self._inputs) == 1 else self._chans

    def _apply(self, op: str, make: Callable[[], nn.Module], source: int) -> int:
        return self._graph.apply(f"{op} {self._interface}", make, source)


def _channels(spec: BlockSpec) -> int:
    return param(spec, "channels", int)
