"""The functional hash of architectures: what it unites and what it keeps apart."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations

import pytest
import torch
from torch import nn

from nas.graph import Graph, drawing_key
from nas.identity import identify_program, network_signature
from nas.programs import Built
from nas.spaces.darts import DartsSpace, Genotype
from zoo.builders import build_chain
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.families.darts import Nodes
from zoo.spec import Architecture, TensorSpec

IMAGES = TensorSpec(shape=(1, 16, 16))
SPACE = DartsSpace(cells=3, channels=4, nodes=3)
WIDE = DartsSpace(cells=3, channels=4, nodes=4)
REDUCE = "max_pool_3x3(0) + sep_conv_3x3(1)"


def signature(space: DartsSpace, architecture: Architecture, inputs: TensorSpec = IMAGES) -> str:
    return network_signature(space, architecture, inputs=inputs, num_classes=10).key


def cells(space: DartsSpace, normal: str, reduce: str | None = None) -> Architecture:
    reduce = reduce or " | ".join([REDUCE] * space.nodes)
    return space.parse(f"normal: {normal}; reduce: {reduce}")


def relabelled(nodes: Nodes) -> list[Nodes]:
    """Return every legal renumbering of a cell's nodes."""
    result = []
    for order in permutations(range(len(nodes))):
        place = {0: 0, 1: 1} | {old + 2: new + 2 for new, old in enumerate(order)}
        moved = tuple(tuple((op, place[state]) for op, state in nodes[old]) for old in order)
        if all(state < at + 2 for at, edges in enumerate(moved) for _, state in edges):
            result.append(moved)
    return result


@pytest.mark.parametrize("seed", range(8))
def test_renumbered_nodes_are_the_same_network(seed: int) -> None:
    rng = random.Random(seed)
    genotype = WIDE.decode(WIDE.sample(rng))
    normal = rng.sample(drawn := relabelled(genotype.normal), min(3, len(drawn)))
    values = {signature(WIDE, WIDE.encode(Genotype(nodes, genotype.reduce))) for nodes in normal}
    assert len(values) == 1


def test_renumbering_ties_are_resolved() -> None:
    # Two nodes look alike but for who reads them; and then a fully symmetric cell.
    texts = (
        "sep_conv_3x3(0) + sep_conv_3x3(1) | sep_conv_3x3(0) + sep_conv_3x3(1)"
        " | dil_conv_3x3(2) + skip_connect(0)",
        "sep_conv_3x3(0) + sep_conv_3x3(1) | sep_conv_3x3(0) + sep_conv_3x3(1)"
        " | dil_conv_3x3(3) + skip_connect(0)",
    )
    assert len({signature(SPACE, cells(SPACE, text)) for text in texts}) == 1


def test_equal_looking_convolutions_have_weights_of_their_own() -> None:
    # One node read twice is not two nodes read once each.
    def text(first: int, second: int) -> str:
        return (
            "sep_conv_3x3(0) + sep_conv_3x3(1) | sep_conv_3x3(0) + sep_conv_3x3(1)"
            f" | max_pool_3x3({first}) + skip_connect(0) | avg_pool_3x3({second}) + skip_connect(0)"
        )

    values = {pair: signature(WIDE, cells(WIDE, text(*pair))) for pair in [(2, 2), (2, 3), (3, 2)]}
    assert values[2, 2] != values[2, 3]
    assert values[2, 3] == values[3, 2]


def test_a_skip_is_transparent_and_sums_may_be_nested_either_way() -> None:
    # 0 + 1 and the pool of 0: the third node is their sum, over one or the other.
    first = "skip_connect(0) + skip_connect(1) | max_pool_3x3(0) + skip_connect(1)"
    texts = (
        f"{first} | skip_connect(2) + max_pool_3x3(0)",
        f"{first} | skip_connect(3) + skip_connect(0)",
    )
    architectures = [cells(SPACE, text) for text in texts]
    assert architectures[0] != architectures[1]
    assert len({signature(SPACE, architecture) for architecture in architectures}) == 1


def test_united_networks_compute_the_same_once_their_weights_match() -> None:
    first = "skip_connect(0) + skip_connect(1) | max_pool_3x3(0) + skip_connect(1)"
    modules = [
        build_chain(
            SPACE.blocks(cells(SPACE, f"{first} | {third}"), inputs=IMAGES, num_classes=10), seed=0
        ).eval()
        for third in ("skip_connect(2) + max_pool_3x3(0)", "skip_connect(3) + skip_connect(0)")
    ]
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(modules[0](x), modules[1](x))


@pytest.mark.parametrize("seed", range(3))
def test_every_neighbour_differs(seed: int) -> None:
    # Without skips and pools no two genotypes of one node compute the same.
    space = DartsSpace(
        cells=3, channels=4, nodes=1,
        ops=("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"),
    )  # fmt: skip
    origin = space.sample(random.Random(seed))
    values = [signature(space, other) for other in (origin, *space.neighbours(origin))]
    assert len(set(values)) == len(values)


def test_no_two_of_many_random_architectures_are_united() -> None:
    rng = random.Random(0)
    ops = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
    space = DartsSpace(cells=3, channels=4, nodes=2, ops=ops)
    # Node 3 that ignores node 2 can be its twin: canonical drawings say which are alike.
    known: dict[tuple[object, ...], str] = {}
    for _ in range(25):
        architecture = space.sample(rng)
        genotype = space.decode(architecture)
        key = tuple(min(relabelled(cell)) for cell in (genotype.normal, genotype.reduce))
        ordered = tuple(tuple(tuple(sorted(edges)) for edges in cell) for cell in key)
        assert known.setdefault(ordered, signature(space, architecture)) == signature(
            space, architecture
        )
    assert len(set(known.values())) == len(known)


def test_width_depth_classes_and_image_size_are_seen() -> None:
    text = " | ".join(["sep_conv_3x3(0) + skip_connect(1)"] * 3)
    spaces = [SPACE, DartsSpace(cells=3, channels=8, nodes=3), DartsSpace(cells=4, channels=4, nodes=3)]  # fmt: skip # noqa: E501
    values = [signature(space, cells(space, text)) for space in spaces]
    values += [
        signature(SPACE, cells(SPACE, text), TensorSpec(shape=shape))
        for shape in [(3, 16, 16), (1, 32, 32), (1, 64, 64)]
    ]
    seven = network_signature(SPACE, cells(SPACE, text), inputs=IMAGES, num_classes=7)
    values.append(seven.key)
    assert len(set(values)) == len(values)


@pytest.mark.slow
def test_the_value_is_the_same_in_every_process() -> None:
    code = (
        "import random, sys, torch; torch.set_num_threads(int(sys.argv[1]))\n"
        "from nas.identity import network_signature\n"
        "from nas.spaces.darts import DartsSpace\n"
        "from zoo.spec import TensorSpec\n"
        "space = DartsSpace(cells=3, channels=4, nodes=3)\n"
        "print(network_signature(space, space.sample(random.Random(1)),"
        " inputs=TensorSpec(shape=(1, 16, 16)), num_classes=10).key)"
    )
    here = signature(SPACE, SPACE.sample(random.Random(1)))
    for threads, hash_seed in (("1", "1"), ("3", "2")):
        done = subprocess.run(
            [sys.executable, "-c", code, threads],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.get_rng_state()
    first = signature(SPACE, SPACE.sample(random.Random(2)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert signature(SPACE, SPACE.sample(random.Random(2))) == first


def test_images_that_the_network_cannot_take_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        signature(SPACE, SPACE.sample(random.Random(0)), TensorSpec(shape=(16,)))


# Graphs drawn by hand: dead branches, identities and zeros, which no DARTS cell has.

Draw = Callable[[Graph, int], None]


def conv(graph: Graph, source: int, op: str = "conv") -> int:
    return graph.apply(op, partial(nn.Conv2d, 2, 2, 3, padding=1), source)


def pool(graph: Graph, source: int) -> int:
    return graph.apply("pool", partial(nn.MaxPool2d, 3, 1, 1), source, parametric=False)


class Drawn:
    """A space of one network, drawn by a function."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        graph = Graph(TensorSpec(shape=(2, 6, 6)))
        self.draw(graph, graph.input())
        return graph


def drawn(draw: Draw) -> str:
    return network_signature(
        Drawn(draw),  # type: ignore[arg-type]
        Architecture(space={}, choices=()),
        inputs=IMAGES,
        num_classes=2,
    ).key


def test_dead_branches_identities_zeros_and_order_are_nothing() -> None:
    def plain(graph: Graph, x: int) -> None:
        graph.add(conv(graph, x), pool(graph, x))

    def cluttered(graph: Graph, x: int) -> None:
        conv(graph, x, "dead")
        b = pool(graph, graph.identity(x))
        dead = conv(graph, b)
        conv(graph, dead)
        a = conv(graph, x)
        nested = graph.add(graph.identity(b), graph.zero(like=x))
        graph.identity(graph.add(nested, graph.add(a)))

    assert drawn(plain) == drawn(cluttered)


def test_one_convolution_used_twice_is_not_two() -> None:
    def two(graph: Graph, x: int) -> None:
        graph.add(conv(graph, x), conv(graph, x))

    def one(graph: Graph, x: int) -> None:
        a = conv(graph, x)
        graph.add(a, a)

    def sum_first(graph: Graph, x: int) -> None:
        conv(graph, graph.add(x, pool(graph, x)))

    def sum_last(graph: Graph, x: int) -> None:
        graph.add(conv(graph, x), conv(graph, pool(graph, x)))

    values = [drawn(draw) for draw in (two, one, sum_first, sum_last)]
    assert len(set(values)) == 4


def test_repeated_operations_without_weights_are_one() -> None:
    def shared(graph: Graph, x: int) -> None:
        a = pool(graph, x)
        graph.add(conv(graph, a), a)

    def repeated(graph: Graph, x: int) -> None:
        graph.add(conv(graph, pool(graph, x)), pool(graph, x))

    assert drawn(shared) == drawn(repeated)


def test_drawings_that_differ_in_writing_alone_are_recognised() -> None:
    def build(order: Sequence[int], dead: bool) -> Graph:
        graph = Graph(TensorSpec(shape=(2, 6, 6)))
        x = graph.input()
        ends = []
        for at in order:
            end = graph.identity(conv(graph, x, f"conv {at}"))
            for _ in range(at):
                end = conv(graph, end)
            ends.append(end)
        if dead:
            conv(graph, x)
        graph.add(graph.zero(like=x), *ends)
        return graph

    drawings = [build(order, dead) for order in permutations(range(3)) for dead in (False, True)]
    assert len({drawing_key(drawing) for drawing in drawings}) == 1
    assert drawing_key(build(range(2), False)) != drawing_key(drawings[0])


# Spaces that cannot draw themselves fall back to the built module.


class TwoBranch(nn.Module):
    def __init__(self, choices: Sequence[int]) -> None:
        super().__init__()
        kernel, swapped, dead = choices
        if dead:
            self.unused = nn.Linear(3, 3)
        self.a = nn.Conv2d(1, 4, 2 * kernel + 1, padding=kernel)
        self.b = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4, 10)
        self.swapped = bool(swapped)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        terms = [self.a(x).relu(), self.b(x).relu()]
        terms = terms[::-1] if self.swapped else terms
        return self.head((terms[0] + terms[1]).mean((2, 3)))


class PlainSpace:
    """A user's space: nothing but a built module."""

    def describe(self) -> dict[str, Json]:
        return {"name": "plain", "params": {}}

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        return TwoBranch(architecture.choices)

    def summary(self, architecture: Architecture) -> str:
        return str(architecture.choices)


def plain(choices: tuple[int, ...], inputs: TensorSpec = IMAGES) -> str:
    return network_signature(
        PlainSpace(),  # type: ignore[arg-type]
        Architecture(space={"name": "plain"}, choices=choices),
        inputs=inputs,
        num_classes=10,
    ).key


def test_a_space_without_a_graph_is_hashed_by_its_module() -> None:
    assert plain((1, 0, 0)) == plain((1, 0, 0))
    assert plain((1, 0, 0)) != plain((2, 0, 0))
    assert plain((1, 0, 0)) == plain((1, 1, 0)) == plain((1, 0, 1))
    before = torch.get_rng_state()
    plain((1, 0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_that_rejects_the_images_is_named() -> None:
    with pytest.raises(
        InvalidInputError, match=r"\(1, 0, 0\) does not run on images of \[3, 8, 8\]"
    ):
        plain((1, 0, 0), TensorSpec(shape=(3, 8, 8)))


# Built modules: what matters is the tensors of parameters, not who holds them.


class ByHand(nn.Module):
    """Convolution, batch norm and dense layer from parameters of its own, in another order."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.dead = nn.Parameter(torch.zeros(7))
        self.dense = nn.Parameter(torch.zeros(5, 4))
        self.bias = nn.Parameter(torch.zeros(5))
        self.shift = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.zeros(4))
        self.kernel = nn.Parameter(torch.zeros(4, 1, 3, 3))
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, self.kernel, padding=1)
        x = nn.functional.batch_norm(x, None, None, self.scale, self.shift, training=True)
        x = x.relu().mean((2, 3)) + 0 * self.dead[0]
        return x @ self.dense.T + (2 if self.twice else 1) * self.bias


def of_module(module: nn.Module, **kwargs: object) -> str:
    found = identify_program(Built(module), TensorSpec(shape=(1, 6, 6)), **kwargs)  # type: ignore[arg-type]
    return found.signature.key


def by_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def test_modules_of_the_same_parameters_are_one_however_they_are_coded() -> None:
    assert of_module(by_layers()) == of_module(ByHand())
    assert of_module(ByHand()) != of_module(ByHand(twice=True))


def test_seed_and_order_of_the_data_are_part_of_the_hash() -> None:
    values = [
        of_module(by_layers()),
        of_module(by_layers(), seed=1),
        of_module(by_layers(), order=(1, 0)),
        of_module(by_layers(), order=(0,)),
    ]
    assert len(set(values)) == 4


def test_an_activation_and_a_probability_of_dropout_are_seen() -> None:
    def layers(*middle: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), *middle, nn.Linear(8, 3))

    found = [
        of_module(layers(*middle))
        for middle in ((nn.GELU(),), (nn.SiLU(),), (nn.SiLU(), nn.Dropout(0.5)))
    ]
    assert len(set(found)) == 3
    assert of_module(layers(nn.SiLU(), nn.Dropout(0.5))) == found[2]


def test_equal_branches_may_be_registered_in_any_order() -> None:
    class Branches(nn.Module):
        def __init__(self, order: Sequence[int]) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(36, 36) for _ in range(3))
            self.order = order

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            a, b, c = (self.branches[at] for at in self.order)
            return a(x).tanh() + b(c(x).tanh()).tanh()

    assert len({of_module(Branches(order)) for order in permutations(range(3))}) == 1


def test_an_offset_behind_a_zero_path_is_a_constant_that_is_learned() -> None:
    class ZeroPath(nn.Module):
        def __init__(self, affine: bool | None) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)
            self.norm = None if affine is None else nn.BatchNorm2d(2, affine=affine)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return (y if self.norm is None else y + self.norm(0 * y)).flatten(1)

    none, fixed, learned = (of_module(ZeroPath(affine)) for affine in (None, False, True))
    assert none == fixed != learned
