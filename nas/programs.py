"""Networks whose weights can be set and that can be run: drawn as graphs, or built.

A *site* is one tensor of parameters. Its content is all that tells it from others before
anything is run: its shape and, in a drawing, the operation that it belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from nas.dropping import Steady
from nas.graph import CONCAT, INPUT, SUM, ZERO, Graph, Vertex, reached
from zoo.signature import flat, projections

_ROUNDING = 2.0**-32


@dataclass(frozen=True)
class Site:
    """Weights that belong together, and what they are for; not where they stand."""

    content: str
    tensor: nn.Parameter


class Program(Protocol):
    """A network in training mode on the CPU, in float64.

    ``silent`` are, after a run, values that are zero here but for an offset that the real
    network would learn. ``opaque``: it may have operations of which nothing is known but
    what they do to the values that they meet.
    """

    sites: list[Site]
    silent: list[Tensor]
    opaque: bool

    def __call__(self, *inputs: Tensor) -> Tensor: ...

    def restart(self, *, settling: bool = False) -> None:
        """Forget earlier runs: buffers are what they were, concatenations are ordered anew.

        While weights settle, what is alike is treated alike: by one dropout, too.
        """


class Drawing:
    """A graph, run vertex by vertex in the order in which it was drawn.

    Vertices that nothing reads are left out.
    """

    opaque = False

    def __init__(self, graph: Graph) -> None:
        self._vertices = graph.vertices
        self._live = sorted(reached(graph.vertices))
        self._modules = {
            at: _take(vertex)
            for at in self._live
            if (vertex := graph.vertices[at]).make is not None
        }
        self._drops = any(
            isinstance(part, _DropoutNd)
            for module in self._modules.values()
            for part in module.modules()
        )
        self._state = _state(self._modules.values())
        self._settling = False
        self._orders: dict[int, list[list[int]]] = {}
        self.silent: list[Tensor] = []
        self.sites = [
            Site(f"{graph.vertices[at].op}/{name}/{list(tensor.shape)}", tensor)
            for at, module in self._modules.items()
            for name, tensor in module.named_parameters()
        ]

    def close(self) -> None:
        """Leave the modules to drawings to come."""
        self.restart()
        for at, module in self._modules.items():
            _leave(self._vertices[at], module)
        self._modules = {}

    def restart(self, *, settling: bool = False) -> None:
        self._settling = settling
        self._orders.clear()
        _restore(self._state)

    def __call__(self, *inputs: Tensor) -> Tensor:
        with Steady(alike=self._settling) if self._drops else nullcontext():
            return self._run(inputs[0])

    def _run(self, images: Tensor) -> Tensor:
        values: dict[int, Tensor] = {}
        self.silent = []
        for at in self._live:
            vertex = self._vertices[at]
            inputs = [values[source] for source in vertex.inputs]
            if at in self._modules:
                values[at] = self._modules[at](*inputs)
                if vertex.offset and not values[at].detach().any():
                    self.silent.append(values[at])
            elif vertex.op == INPUT:
                values[at] = images
            elif vertex.op == SUM:
                values[at] = reduce(add, inputs)
            elif vertex.op == CONCAT:
                values[at] = self._concat(at, inputs)
            elif vertex.op == ZERO:
                values[at] = torch.zeros_like(inputs[0])
            else:
                values[at] = inputs[0]
        return values[len(self._vertices) - 1]

    def _concat(self, at: int, parts: list[Tensor]) -> Tensor:
        """Put parts in the order of what is in them; their place in the drawing is nothing.

        Parts that are equal stand for each other: each place has their mean, so that no
        gradient tells them apart either.
        """
        if at not in self._orders:
            self._orders[at] = _alike(parts)
        slots = []
        for group in self._orders[at]:
            first = parts[group[0]]
            if len(group) > 1:
                first = torch.stack([parts[part] for part in group]).mean(0)
            slots += [first] * len(group)
        return torch.cat(slots, dim=1)


class Built:
    """A module as it is; every parameter that it trains is a site, whatever holds it.

    Buffers and parameters that ask for no gradient are part of what is computed. If it
    returns several tensors, they are one value side by side.
    """

    opaque = True

    def __init__(self, module: nn.Module) -> None:
        self._module = module.cpu().double()
        with suppress(NotImplementedError):  # an exported module is what it was exported as
            self._module.train()
        self._state = _state([self._module])
        self._settling = False
        self.silent: list[Tensor] = []
        self.sites = [
            Site(f"{list(tensor.shape)}", tensor)
            for tensor in self._module.parameters()
            if tensor.requires_grad
        ]

    def restart(self, *, settling: bool = False) -> None:
        self._settling = settling
        _restore(self._state)

    def __call__(self, *inputs: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)  # of what is random beside dropout
        with Steady(alike=self._settling):
            # A value that may be worked on in place, as a leaf may not.
            found = self._module(*(item.clone() for item in inputs))
        parts = [_real(item) for item in flat(found) if not _integral(item)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part.reshape(-1) for part in parts])


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _integral(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


State = list[tuple[Tensor, Tensor]]


def _state(modules: Iterable[nn.Module]) -> State:
    """Return the buffers with their values, but for batch norms', which training does not read."""
    return [
        (buffer, buffer.clone())
        for module in modules
        for part in module.modules()
        if not isinstance(part, _NormBase)
        for buffer in part.buffers(recurse=False)
    ]


def _restore(state: State) -> None:
    with torch.no_grad():
        for buffer, value in state:
            buffer.copy_(value)


def _alike(parts: list[Tensor]) -> list[list[int]]:
    """Return the positions of parts in the order of their values, equal parts together."""
    weights = np.stack([projections(part, 2) for part in parts])
    order = sorted(range(len(parts)), key=lambda at: tuple(weights[at]))
    groups = [order[:1]]
    for at in order[1:]:
        alike = np.allclose(weights[at], weights[groups[-1][0]], rtol=_ROUNDING, atol=0)
        if alike:
            groups[-1].append(at)
        else:
            groups.append([at])
    return groups


_spare: defaultdict[Hashable, list[nn.Module]] = defaultdict(list)
"""Modules of earlier drawings: building one takes longer than running it."""


def _kind(vertex: Vertex) -> Hashable:
    """Return what is equal for vertices whose modules are alike; None if nothing tells."""
    make = vertex.make
    if isinstance(make, partial) and isinstance(make.func, Hashable):
        return make.func, repr(make.args), repr(make.keywords)
    return None


def _take(vertex: Vertex) -> nn.Module:
    kind = _kind(vertex)
    if kind is not None and _spare[kind]:
        return _spare[kind].pop()
    assert vertex.make is not None
    return vertex.make().double().train().requires_grad_()


def _leave(vertex: Vertex, module: nn.Module) -> None:
    kind = _kind(vertex)
    if kind is not None:
        _spare[kind].append(module)
