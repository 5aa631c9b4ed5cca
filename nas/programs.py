"""Networks whose weights can be set and that can be run: drawn as graphs, or built.

A *site* is one tensor of parameters. Its content is all that tells it from others before
anything is run: its shape and, in a drawing, the operation that it belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nas.graph import CONCAT, INPUT, SUM, ZERO, Graph, Vertex
from zoo.signature import projections

_ROUNDING = 2.0**-32


@dataclass(frozen=True)
class Site:
    """Weights that belong together, and what they are for; not where they stand."""

    content: str
    tensor: nn.Parameter


class Program(Protocol):
    """A network in training mode on the CPU, in float64.

    ``silent`` are, after a run, values that are zero here but for an offset that the real
    network would learn.
    """

    sites: list[Site]
    silent: list[Tensor]

    def __call__(self, images: Tensor) -> Tensor: ...

    def forget(self) -> None:
        """Order the parts of concatenations anew in the next run, and then keep the order."""


class Drawing:
    """A graph, run vertex by vertex in the order in which it was drawn."""

    def __init__(self, graph: Graph) -> None:
        self._vertices = graph.vertices
        self._modules = [_take(vertex) if vertex.make else None for vertex in graph.vertices]
        self._orders: dict[int, list[list[int]]] = {}
        self.silent: list[Tensor] = []
        self.sites = [
            Site(f"{vertex.op}/{name}/{list(tensor.shape)}", tensor)
            for vertex, module in zip(graph.vertices, self._modules, strict=True)
            if module is not None
            for name, tensor in module.named_parameters()
        ]

    def close(self) -> None:
        """Leave the modules to drawings to come."""
        for vertex, module in zip(self._vertices, self._modules, strict=True):
            if module is not None:
                _spare[_kind(vertex)].append(module)
        self._modules = []

    def forget(self) -> None:
        self._orders.clear()

    def __call__(self, images: Tensor) -> Tensor:
        values: list[Tensor] = []
        self.silent = []
        for at, (vertex, module) in enumerate(zip(self._vertices, self._modules, strict=True)):
            inputs = [values[source] for source in vertex.inputs]
            if module is not None:
                values.append(module(*inputs))
                if vertex.offset and not values[-1].detach().any():
                    self.silent.append(values[-1])
            elif vertex.op == INPUT:
                values.append(images)
            elif vertex.op == SUM:
                values.append(reduce(add, inputs))
            elif vertex.op == CONCAT:
                values.append(self._concat(at, inputs))
            elif vertex.op == ZERO:
                values.append(torch.zeros_like(inputs[0]))
            else:
                values.append(inputs[0])
        return values[-1]

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
    """A module as it is; every parameter is a site, whatever holds it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module.cpu().double().train().requires_grad_()
        self.silent: list[Tensor] = []
        self.sites = [Site(f"{list(p.shape)}", p) for p in self._module.parameters()]

    def forget(self) -> None: ...

    def __call__(self, images: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)  # of dropout
        result: Tensor = self._module(images)
        return result


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
    make = vertex.make
    if isinstance(make, partial):
        return vertex.op, make.func, repr(make.args), repr(make.keywords)
    return vertex.op, make


def _take(vertex: Vertex) -> nn.Module:
    spare = _spare[_kind(vertex)]
    if spare:
        return spare.pop()
    assert vertex.make is not None
    return vertex.make().double().train().requires_grad_()
