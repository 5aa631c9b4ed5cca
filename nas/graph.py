"""Networks as graphs of operations.

A drawing says which operations there are and what each one reads. The functional hash runs
it as it is drawn (``nas.identity``); ``drawing_key`` recognises drawings that differ in
nothing but how they were written, so that one of them need not be run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

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
    over the channels. Operations must not change what they read. The network's output is the
    last vertex.

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


def drawing_key(graph: Graph) -> str:
    """Return a digest of the simplified drawing; of equal ones the networks are equal.

    Identities, nested sums, zeros in sums, repeated operations without weights and what does
    not reach the output are left out, and vertices are ordered by what they read. Networks of
    different digests may still be equal: this memoises, it does not decide.
    """
    vertices = _live(_simplify(graph.vertices))
    colours, depths = _colours(vertices), _depths(vertices)
    order = sorted(range(len(vertices)), key=lambda at: (depths[at], colours[at], at))
    place = {old: new for new, old in enumerate(order)}
    text = [repr(graph.inputs)]
    for old in order:
        vertex = vertices[old]
        inputs = [place[at] for at in vertex.inputs]
        text.append(f"{vertex.op} {sorted(inputs) if vertex.op in _COMMUTATIVE else inputs}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


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


def _depths(vertices: Sequence[Vertex]) -> list[int]:
    depths: list[int] = []
    for vertex in vertices:
        depths.append(1 + max((depths[at] for at in vertex.inputs), default=-1))
    return depths


def _colours(vertices: Sequence[Vertex]) -> list[bytes]:
    """Return a digest of every vertex by its operation and the digests of its inputs."""
    colours: list[bytes] = []
    for vertex in vertices:
        inputs = [colours[at] for at in vertex.inputs]
        if vertex.op in _COMMUTATIVE:
            inputs.sort()
        parts = b"\0".join([vertex.op.encode(), *inputs])
        colours.append(hashlib.blake2b(parts, digest_size=16).digest())
    return colours
