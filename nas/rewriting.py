"""Pairs of drawings that are known to compute the same, and pairs that are known not to.

They hold the functional hash to its promise, for every space that draws its networks. Equal
pairs come from rules that rewrite a graph; near misses from a neighbour, or a single change,
that alters the operations with weights on which the output depends, or else the
``expansion`` of the output, in which instances of an operation are not told apart: networks
of different expansions compute different functions.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import gcd

from torch import Tensor, nn

from nas.graph import CONCAT, IDENTITY, INPUT, SUM, ZERO, Graph, Vertex, reached
from nas.identity import GraphSpace
from nas.protocols import SearchSpace
from zoo.spec import Architecture, TensorSpec

LINEAR = ("avg_pool",)
"""What the names of linear operations without weights start with."""

_REWRITES = 6
_ATTEMPTS = 50

Rule = Callable[[Graph, random.Random], Graph | None]
"""Returns a changed copy, or None where the rule does not apply."""


def equal_pairs(
    space: SearchSpace, count: int, *, inputs: TensorSpec, num_classes: int, seed: int = 0
) -> Iterator[tuple[Graph, Graph]]:
    """Yield ``count`` drawings of random architectures, and each rewritten a few times."""
    rng = random.Random(seed)
    for _ in range(count):
        graph = _drawing(space, rng, inputs, num_classes)
        other = graph
        for rule in rng.choices(EQUAL_RULES, k=_REWRITES):
            other = rule(other, rng) or other
        yield graph, reordered(other, rng)


def near_misses(
    space: SearchSpace, count: int, *, inputs: TensorSpec, num_classes: int, seed: int = 0
) -> Iterator[tuple[Graph, Graph]]:
    """Yield ``count`` pairs of drawings that differ in one small thing, and in function."""
    rng = random.Random(seed)
    for _ in range(count):
        yield next(_near(space, rng, inputs, num_classes))


def _near(
    space: SearchSpace, rng: random.Random, inputs: TensorSpec, num_classes: int
) -> Iterator[tuple[Graph, Graph]]:
    def draw(architecture: Architecture) -> Graph:
        assert isinstance(space, GraphSpace)
        return space.graph(architecture, inputs=inputs, num_classes=num_classes)

    def neighbour(_: Graph, rng: random.Random) -> Graph:
        return draw(space.mutate(architecture, rng))

    rules: tuple[Rule, ...] = (*NEAR_RULES, neighbour, neighbour)
    while True:
        architecture = space.sample(rng)
        graph = draw(architecture)
        for _ in range(_ATTEMPTS):
            other = rng.choice(rules)(graph, rng)
            if other is not None and differ(graph, other):
                yield graph, reordered(other, rng)
                break


def differ(first: Graph, second: Graph) -> bool:
    """Return whether two networks certainly compute different functions."""
    return _weights(first) != _weights(second) or expansion(first) != expansion(second)


def expansion(graph: Graph) -> str:
    """Return a digest of the output, written out down to the input.

    A value is a sum of terms, each some linear operations on an atom: the input, or another
    operation on a value. What only scales (all but convolutions, which are normalised with
    an eps) is written without a common factor.
    """
    values: list[Counter[tuple[str, ...]]] = []
    for vertex in graph.vertices:
        inputs = [values[at] for at in vertex.inputs]
        total: Counter[tuple[str, ...]] = Counter()
        for value in inputs:
            total.update(value)
        if vertex.op == INPUT:
            values.append(Counter({("input",): 1}))
        elif vertex.op in (SUM, IDENTITY):
            values.append(total)
        elif vertex.op == ZERO:
            values.append(Counter())
        elif _linear(vertex):
            values.append(Counter({(*term, vertex.op): n for term, n in total.items()}))
        else:
            values.append(_atom(vertex, inputs))
    return _digest(values[-1])


def _atom(vertex: Vertex, inputs: list[Counter[tuple[str, ...]]]) -> Counter[tuple[str, ...]]:
    factor = 1
    if not vertex.parametric and vertex.op != CONCAT:
        factor = gcd(*(n for value in inputs for n in value.values())) or 1
        inputs = [Counter({t: n // factor for t, n in value.items()}) for value in inputs]
    parts = [_digest(value) for value in inputs]
    if vertex.op == CONCAT:
        parts.sort()
    elif not any(inputs):
        return Counter()  # neither a convolution without bias nor pooling makes zeros anything
    return Counter({(_digest(Counter({(vertex.op, *parts): 1})),): factor})


def _digest(value: Counter[tuple[str, ...]]) -> str:
    return hashlib.sha256(repr(sorted(value.items())).encode()).hexdigest()


def _drawing(space: SearchSpace, rng: random.Random, inputs: TensorSpec, num_classes: int) -> Graph:
    assert isinstance(space, GraphSpace)
    return space.graph(space.sample(rng), inputs=inputs, num_classes=num_classes)


def _weights(graph: Graph) -> Counter[str]:
    """Count the operations with weights of which the output may be a function."""
    vertices = [replace(v, inputs=()) if v.op == ZERO else v for v in graph.vertices]
    live = reached(vertices)
    zero: set[int] = set()
    for at, vertex in enumerate(vertices):
        if vertex.op == ZERO or (vertex.inputs and zero.issuperset(vertex.inputs)):
            zero.add(at)
    return Counter(
        vertex.op
        for at, vertex in enumerate(vertices)
        if vertex.parametric and at in live and at not in zero
    )


def reordered(graph: Graph, rng: random.Random) -> Graph:
    """Return the same network, drawn in another order."""
    waiting = {at: set(vertex.inputs) for at, vertex in enumerate(graph.vertices)}
    last = len(graph.vertices) - 1
    order: list[int] = []
    while waiting:
        ready = [at for at, needed in waiting.items() if not needed and at != last]
        chosen = rng.choice(ready) if ready else last
        del waiting[chosen]
        order.append(chosen)
        for needed in waiting.values():
            needed.discard(chosen)
    place = {old: new for new, old in enumerate(order)}
    moved = [
        replace(graph.vertices[old], inputs=tuple(place[at] for at in graph.vertices[old].inputs))
        for old in order
    ]
    return Graph(graph.inputs, moved)


def _edit(graph: Graph, at: int, build: Callable[[Graph, Vertex], int]) -> Graph:
    """Return a copy in which vertex ``at`` is what ``build`` draws in its place."""
    made = Graph(graph.inputs)
    place: list[int] = []
    for position, vertex in enumerate(graph.vertices):
        moved = replace(vertex, inputs=tuple(place[source] for source in vertex.inputs))
        if position == at:
            place.append(build(made, moved))
        else:
            place.append(made.put(moved))
    return made


def _pick(
    graph: Graph, rng: random.Random, fits: Callable[[Vertex], bool], *, live: bool = False
) -> int | None:
    allowed = reached(graph.vertices) if live else set(range(len(graph.vertices)))
    found = [at for at, vertex in enumerate(graph.vertices) if at in allowed and fits(vertex)]
    return rng.choice(found) if found else None


# Rules that change nothing.


def _commute(graph: Graph, rng: random.Random) -> Graph | None:
    """Shuffle the terms of a sum or the parts of a concatenation."""
    at = _pick(graph, rng, lambda vertex: vertex.op in (SUM, CONCAT) and len(vertex.inputs) > 1)

    def build(made: Graph, vertex: Vertex) -> int:
        return made.put(
            replace(vertex, inputs=tuple(rng.sample(vertex.inputs, len(vertex.inputs))))
        )

    return None if at is None else _edit(graph, at, build)


def _nest(graph: Graph, rng: random.Random) -> Graph | None:
    """Re-associate a sum: some of its terms are summed first."""
    at = _pick(graph, rng, lambda vertex: vertex.op == SUM and len(vertex.inputs) > 2)

    def build(made: Graph, vertex: Vertex) -> int:
        terms = rng.sample(vertex.inputs, len(vertex.inputs))
        size = rng.randrange(2, len(terms))
        return made.add(made.add(*terms[:size]), *terms[size:])

    return None if at is None else _edit(graph, at, build)


def _pass_through(graph: Graph, rng: random.Random) -> Graph | None:
    """Put an identity after a vertex."""
    at = _pick(graph, rng, lambda vertex: True)

    def build(made: Graph, vertex: Vertex) -> int:
        return made.identity(made.put(vertex))

    return None if at is None else _edit(graph, at, build)


def _add_zero(graph: Graph, rng: random.Random) -> Graph | None:
    """Add nothing to a vertex: zeros, or a parameterless operation on them."""
    at = _pick(graph, rng, lambda vertex: vertex.op == SUM)

    def build(made: Graph, vertex: Vertex) -> int:
        zero = made.zero(like=vertex.inputs[0])
        return made.put(replace(vertex, inputs=(*vertex.inputs, zero)))

    return None if at is None else _edit(graph, at, build)


def _add_nothing(graph: Graph, rng: random.Random) -> Graph | None:
    """Let a vertex be a sum: of itself and zeros."""
    at = _pick(graph, rng, lambda vertex: True)

    def build(made: Graph, vertex: Vertex) -> int:
        same = made.put(vertex)
        return made.add(*rng.sample((same, made.zero(like=same)), 2))

    return None if at is None else _edit(graph, at, build)


def _add_dead_branch(graph: Graph, rng: random.Random) -> Graph | None:
    """Put a vertex again and let nobody read it."""
    at = _pick(graph, rng, lambda vertex: vertex.make is not None)

    def build(made: Graph, vertex: Vertex) -> int:
        made.put(vertex)
        return made.put(vertex)

    if at is None or at == len(graph.vertices) - 1:
        return None
    return _edit(graph, at, build)


def _linear(vertex: Vertex) -> bool:
    """Say whether a vertex pools and does nothing else: no convolution, no normalisation."""
    return vertex.op.startswith(LINEAR) and not vertex.parametric


def _distribute(graph: Graph, rng: random.Random) -> Graph | None:
    """Pool the terms of a sum rather than the sum."""
    at = _pick(
        graph,
        rng,
        lambda vertex: _linear(vertex) and graph.vertices[vertex.inputs[0]].op == SUM,
    )

    def build(made: Graph, vertex: Vertex) -> int:
        terms = made.vertices[vertex.inputs[0]].inputs
        return made.add(*(made.put(replace(vertex, inputs=(term,))) for term in terms))

    return None if at is None else _edit(graph, at, build)


def _factor(graph: Graph, rng: random.Random) -> Graph | None:
    """Pool a sum rather than two of its terms that are pooled alike."""
    vertices = graph.vertices

    def pooled(vertex: Vertex) -> list[int]:
        kinds = Counter(vertices[at].op for at in vertex.inputs if _linear(vertices[at]))
        op = next((op for op, n in kinds.items() if n > 1), None)
        return [place for place, at in enumerate(vertex.inputs) if vertices[at].op == op]

    at = _pick(graph, rng, lambda vertex: vertex.op == SUM and bool(pooled(vertex)))
    if at is None:
        return None
    first, second = pooled(vertices[at])[:2]

    def build(made: Graph, vertex: Vertex) -> int:
        a, b = (made.vertices[vertex.inputs[place]] for place in (first, second))
        both = made.put(replace(a, inputs=(made.add(*a.inputs, *b.inputs),)))
        rest = [t for place, t in enumerate(vertex.inputs) if place not in (first, second)]
        return made.add(both, *rest)

    return _edit(graph, at, build)


# Rules that change the function by little.


def _change_operation(graph: Graph, rng: random.Random) -> Graph | None:
    """Give a vertex the operation of another one that fits in its place."""
    at = _pick(graph, rng, lambda v: v.make is not None and len(v.inputs) == 1, live=True)
    if at is None:
        return None
    own = graph.vertices[at]
    kin = [
        v
        for v in graph.vertices
        if v.make is not None and v.op != own.op and _interface(v) == _interface(own)
    ]
    if not kin:
        return None
    other = rng.choice(kin)
    return _edit(graph, at, lambda made, v: made.put(replace(other, inputs=v.inputs)))


def _interface(vertex: Vertex) -> str:
    """Return what must agree for one operation to stand in for another: all but its name."""
    return " ".join(vertex.op.split(" ")[1:]) if " " in vertex.op else ""


def _change_activation(graph: Graph, rng: random.Random) -> Graph | None:
    """Put a bent line before an operation: an activation that nobody drew."""
    at = _pick(graph, rng, lambda v: v.make is not None and v.parametric, live=True)

    def build(made: Graph, vertex: Vertex) -> int:
        bent = made.apply("bend", Bend, vertex.inputs[0], parametric=False)
        return made.put(replace(vertex, inputs=(bent, *vertex.inputs[1:])))

    return None if at is None else _edit(graph, at, build)


class Bend(nn.Module):
    """Bent everywhere, so that no probe can miss it: SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x)


def _rewire(graph: Graph, rng: random.Random) -> Graph | None:
    """Let a vertex read another vertex of the same kind of value."""
    at = _pick(graph, rng, lambda v: bool(v.inputs) and v.op != CONCAT, live=True)
    if at is None:
        return None
    vertex = graph.vertices[at]
    where = rng.randrange(len(vertex.inputs))
    kin = [source for source in _alike(graph, vertex.inputs[where]) if source < at]
    if not kin:
        return None
    source = rng.choice(kin)
    moved = (*vertex.inputs[:where], source, *vertex.inputs[where + 1 :])
    changed = list(graph.vertices)
    changed[at] = replace(vertex, inputs=moved)
    return Graph(graph.inputs, changed)


def _alike(graph: Graph, at: int) -> list[int]:
    """Return the vertices that surely have values of the same shape as ``at``: summed with it."""
    groups = [
        {*vertex.inputs, place}
        for place, vertex in enumerate(graph.vertices)
        if vertex.op in (SUM, IDENTITY, ZERO)
    ]
    return sorted({other for group in groups if at in group for other in group} - {at})


def _share(graph: Graph, rng: random.Random) -> Graph | None:
    """Use one operation where there were two alike: not the same, they had weights each."""
    live = reached(graph.vertices)
    seen: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for at in sorted(live):
        vertex = graph.vertices[at]
        if vertex.parametric:
            seen.setdefault((vertex.op, vertex.inputs), []).append(at)
    twins = [group for group in seen.values() if len(group) > 1]
    if not twins:
        return None
    first, second = sorted(rng.sample(rng.choice(twins), 2))
    shared = [
        replace(v, inputs=tuple(first if source == second else source for source in v.inputs))
        for v in graph.vertices
    ]
    return Graph(graph.inputs, shared)


def _split(graph: Graph, rng: random.Random) -> Graph | None:
    """Use two operations where one was read twice."""
    uses = Counter(source for vertex in graph.vertices for source in vertex.inputs)
    many = [at for at, n in uses.items() if n > 1 and graph.vertices[at].parametric]
    if not many:
        return None
    at = rng.choice(many)
    reader = rng.choice([i for i, v in enumerate(graph.vertices) if at in v.inputs])

    def build(made: Graph, vertex: Vertex) -> int:
        where = graph.vertices[reader].inputs.index(at)
        twin = made.put(made.vertices[vertex.inputs[where]])
        return made.put(
            replace(vertex, inputs=(*vertex.inputs[:where], twin, *vertex.inputs[where + 1 :]))
        )

    return _edit(graph, reader, build)


def _merge_convolutions(graph: Graph, rng: random.Random) -> Graph | None:
    """Turn conv(a) + conv(b) into conv(a + b)."""
    vertices = graph.vertices

    def alike(vertex: Vertex) -> tuple[int, int] | None:
        seen: dict[str, int] = {}
        for place, source in enumerate(vertex.inputs):
            op = vertices[source].op
            if vertices[source].parametric and op in seen:
                return seen[op], place
            seen.setdefault(op, place)
        return None

    at = _pick(graph, rng, lambda v: v.op == SUM and alike(v) is not None, live=True)
    places = None if at is None else alike(vertices[at])
    if at is None or places is None:
        return None
    first, second = places

    def build(made: Graph, vertex: Vertex) -> int:
        a, b = (made.vertices[vertex.inputs[place]] for place in (first, second))
        both = made.put(replace(a, inputs=(made.add(*a.inputs, *b.inputs),)))
        rest = [t for place, t in enumerate(vertex.inputs) if place not in (first, second)]
        return made.add(both, *rest)

    return _edit(graph, at, build)


def _repeat_term(graph: Graph, rng: random.Random) -> Graph | None:
    """Count one term of a sum twice."""
    at = _pick(graph, rng, lambda vertex: vertex.op == SUM, live=True)

    def build(made: Graph, vertex: Vertex) -> int:
        return made.put(replace(vertex, inputs=(*vertex.inputs, rng.choice(vertex.inputs))))

    return None if at is None else _edit(graph, at, build)


EQUAL_RULES: tuple[Rule, ...] = (
    _commute,
    _nest,
    _pass_through,
    _add_zero,
    _add_nothing,
    _add_dead_branch,
    _distribute,
    _factor,
)

NEAR_RULES: tuple[Rule, ...] = (
    _change_operation,
    _change_activation,
    _rewire,
    _share,
    _split,
    _merge_convolutions,
    _repeat_term,
)
