"""Networks as graphs of operations, and one canonical order for all drawings of a graph.

Two drawings of one network differ in the order of vertices and of a sum's terms, in dead
vertices, in identities put in and sums nested. ``canonical`` removes all of that:

- identities vanish, nested sums are flattened, zeros leave sums;
- equal operations without parameters on equal inputs are one vertex;
- vertices that do not reach the output are dropped;
- the rest is ordered by Weisfeiler-Lehman colours of ancestors and descendants; ties
  are broken by singling out the vertex that gives the least colouring.

Where vertices tie although no symmetry exchanges them, the order may depend on the
drawing: two drawings of one network may then look different, but never two different
networks alike.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from zoo.canonical import content_id
from zoo.spec import TensorSpec

INPUT, SUM, CONCAT, ZERO, IDENTITY = "input", "sum", "concat", "zero", "identity"

_COMMUTATIVE = frozenset({SUM, CONCAT})


@dataclass(frozen=True)
class Vertex:
    """An operation on earlier vertices.

    ``op`` names all that it computes but its weights. ``make`` builds its module; it is
    None for the structural operations. ``parametric`` operations have weights of their own.
    ``offset``: in the real network its last step is a normalisation with a learned offset
    that the drawing leaves out.
    """

    op: str
    inputs: tuple[int, ...] = ()
    make: Callable[[], nn.Module] | None = None
    parametric: bool = False
    offset: bool = False


@dataclass
class Graph:
    """A network under construction; methods return the position of a new vertex.

    The order of a concatenation's parts is free, so whatever reads it must be dense
    over the channels. The network's output is the last vertex.

    A drawing may be smaller than its network, to be run faster: ``inputs`` are the images
    that the drawing takes. The true sizes must then be part of the vertices' ``op``.
    """

    inputs: TensorSpec
    vertices: list[Vertex] = field(default_factory=list)

    def input(self) -> int:
        return self.put(Vertex(INPUT))

    def zero(self, like: int) -> int:
        """Put zeros of the shape of ``like``: no connection."""
        return self.put(Vertex(ZERO, (like,)))

    def identity(self, vertex: int) -> int:
        return self.put(Vertex(IDENTITY, (vertex,)))

    def add(self, *terms: int) -> int:
        return self.put(Vertex(SUM, terms))

    def concat(self, *parts: int) -> int:
        return self.put(Vertex(CONCAT, parts))

    def apply(
        self,
        op: str,
        make: Callable[[], nn.Module],
        *inputs: int,
        parametric: bool = True,
        offset: bool = False,
    ) -> int:
        return self.put(Vertex(op, inputs, make, parametric, offset))

    def put(self, vertex: Vertex) -> int:
        """Put a vertex as it is."""
        self.vertices.append(vertex)
        return len(self.vertices) - 1


@dataclass(frozen=True)
class CanonicalVertex:
    """A vertex in canonical order.

    ``key`` is its content: operation and colour of its ancestors, numbered where
    several vertices have the same. Equal drawings give equal keys.
    """

    vertex: Vertex
    key: str


def canonical(graph: Graph) -> list[CanonicalVertex]:
    """Return the live vertices in canonical order; the last one is the output."""
    vertices = _live(_simplify(graph.vertices))
    ancestry = _ancestry(vertices, [b""] * len(vertices))
    colours = _single_out(vertices, _refine(vertices, [b""] * len(vertices)))
    depth = _depth(vertices)
    order = sorted(range(len(vertices)), key=lambda at: (depth[at], colours[at]))
    place = {old: new for new, old in enumerate(order)}
    seen: Counter[bytes] = Counter()
    result = []
    for old in order:
        vertex = vertices[old]
        inputs = [place[at] for at in vertex.inputs]
        if vertex.op in _COMMUTATIVE:
            inputs.sort()
        key = f"{ancestry[old].hex()}/{seen[ancestry[old]]}"
        seen[ancestry[old]] += 1
        moved = replace(vertex, inputs=tuple(inputs))
        result.append(CanonicalVertex(moved, key))
    return result


def drawing_key(graph: Graph) -> str:
    """Return a digest of the canonical drawing; of equal ones the networks are equal.

    Networks of different digests may still be equal: this memoises, it does not decide.
    """
    order = [[item.vertex.op, list(item.vertex.inputs)] for item in canonical(graph)]
    return content_id([graph.inputs.to_json(), order])


def _simplify(vertices: Sequence[Vertex]) -> list[Vertex]:
    """Return vertices without identities, nested sums, and repeats without parameters."""
    result: list[Vertex] = []
    known: dict[tuple[str, tuple[int, ...]], int] = {}
    place: list[int] = []
    for vertex in vertices:
        inputs = tuple(place[at] for at in vertex.inputs)
        if vertex.op == SUM:
            # A sum of zeros alone is the first of them.
            inputs = tuple(sorted(_terms(inputs, result))) or inputs[:1]
        if vertex.op == IDENTITY or (vertex.op == SUM and len(inputs) == 1):
            place.append(inputs[0])
            continue
        signature = (vertex.op, inputs)
        if vertex.parametric or vertex.op == INPUT or signature not in known:
            known[signature] = len(result)
            result.append(replace(vertex, inputs=inputs))
            place.append(len(result) - 1)
        else:
            place.append(known[signature])
    # The output comes last, also where it was an identity of an earlier vertex.
    return result[: place[-1] + 1]


def _terms(inputs: tuple[int, ...], vertices: Sequence[Vertex]) -> list[int]:
    terms: list[int] = []
    for at in inputs:
        if vertices[at].op == SUM:
            terms.extend(vertices[at].inputs)
        elif vertices[at].op != ZERO:
            terms.append(at)
    return terms


def reached(vertices: Sequence[Vertex]) -> set[int]:
    """Return the positions from which an edge leads on to the output, and the output's."""
    found = {len(vertices) - 1}
    for at in range(len(vertices) - 1, -1, -1):
        if at in found:
            found.update(vertices[at].inputs)
    return found


def _live(vertices: Sequence[Vertex]) -> list[Vertex]:
    place = {old: new for new, old in enumerate(sorted(reached(vertices)))}
    return [
        replace(vertices[old], inputs=tuple(place[at] for at in vertices[old].inputs))
        for old in place
    ]


def _depth(vertices: Sequence[Vertex]) -> list[int]:
    depth: list[int] = []
    for vertex in vertices:
        depth.append(1 + max((depth[at] for at in vertex.inputs), default=-1))
    return depth


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def _ancestry(vertices: Sequence[Vertex], marks: Sequence[bytes]) -> list[bytes]:
    """Return the colour of every vertex by its mark, its operation and those of its inputs."""
    colours: list[bytes] = []
    for vertex, mark in zip(vertices, marks, strict=True):
        inputs = [colours[at] for at in vertex.inputs]
        if vertex.op in _COMMUTATIVE:
            inputs.sort()
        colours.append(_hash(mark, vertex.op.encode(), *inputs))
    return colours


def _refine(vertices: Sequence[Vertex], marks: Sequence[bytes]) -> list[bytes]:
    """Return colours by ancestors and descendants, refined until no class splits further."""
    colours = list(marks)
    classes = 0
    while True:
        colours = _ancestry(vertices, colours)
        users: defaultdict[int, list[bytes]] = defaultdict(list)
        for at in range(len(vertices) - 1, -1, -1):
            vertex = vertices[at]
            colours[at] = _hash(colours[at], *sorted(users[at]))
            for position, source in enumerate(vertex.inputs):
                role = 0 if vertex.op in _COMMUTATIVE else position
                users[source].append(_hash(colours[at], str(role).encode()))
        if len(set(colours)) == classes:
            return colours
        classes = len(set(colours))


def _single_out(vertices: Sequence[Vertex], colours: list[bytes]) -> list[bytes]:
    """Return colours that are all different, tied vertices singled out one at a time."""
    while True:
        sizes = Counter(colours)
        tied = [colour for colour, size in sizes.items() if size > 1]
        if not tied:
            return colours
        tie = min(tied)
        trials = []
        for at, colour in enumerate(colours):
            if colour == tie:
                marks = list(colours)
                marks[at] = _hash(colour, b"singled out")
                trials.append(_refine(vertices, marks))
        colours = min(trials, key=sorted)
