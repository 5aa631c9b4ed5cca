"""The DARTS space: encoding, counting, neighbours, genotypes and the networks it builds."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.protocols import SearchSpace
from nas.spaces.darts import DartsSpace, Genotype
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.spec import Architecture, TensorSpec, check_interfaces

TINY = DartsSpace(cells=3, channels=4, nodes=2, ops=("none", "skip_connect", "max_pool_3x3"))
IMAGES = TensorSpec(shape=(1, 16, 16))

PUBLISHED = (
    "normal: sep_conv_3x3(1) + skip_connect(0) | sep_conv_3x3(0) + dil_conv_3x3(1)"
    " | sep_conv_5x5(0) + sep_conv_3x3(1) | avg_pool_3x3(0) + dil_conv_3x3(1); "
    "reduce: sep_conv_5x5(1) + max_pool_3x3(0) | sep_conv_5x5(1) + sep_conv_5x5(2)"
    " | sep_conv_3x3(0) + sep_conv_3x3(3) | sep_conv_3x3(1) + sep_conv_3x3(2)"
)
"""The cell that PC-DARTS found on CIFAR-10, as published, the stronger edge first."""


def count(space: DartsSpace, architecture: Architecture, shape: tuple[int, ...]) -> int:
    with torch.device("meta"):
        module = space.build(architecture, inputs=TensorSpec(shape=shape), num_classes=10)
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_cifar_network_has_its_published_number_of_parameters() -> None:
    space = DartsSpace(cells=20, channels=36, nodes=4)
    assert count(space, space.parse(PUBLISHED), (3, 32, 32)) == 3_634_678


def test_it_is_a_search_space() -> None:
    assert isinstance(TINY, SearchSpace)


def test_every_tuple_within_the_cardinalities_is_a_distinct_genotype() -> None:
    architectures = [
        Architecture(space=TINY.describe(), choices=choices)
        for choices in product(*(range(options) for options in TINY.cardinalities()))
    ]
    genotypes = {TINY.decode(architecture) for architecture in architectures}
    assert len(genotypes) == len(architectures) == TINY.size() == (1 * 4 * 3 * 4) ** 2


def test_the_published_space_has_its_known_size() -> None:
    # Liu et al. count prod C(k+1, 2) * 7^2 for k = 1..4, squared for the two kinds of cell.
    assert DartsSpace().size() == (1 * 3 * 6 * 10 * 49**4) ** 2


def test_neighbours_are_all_that_differ_in_one_variable_each_once() -> None:
    origin = TINY.sample(random.Random(3))
    everything = product(*(range(options) for options in TINY.cardinalities()))
    wanted = {
        choices
        for choices in everything
        if sum(a != b for a, b in zip(choices, origin.choices, strict=True)) == 1
    }
    found = [neighbour.choices for neighbour in TINY.neighbours(origin)]
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_mutation_reaches_every_neighbour_and_nothing_else() -> None:
    rng = random.Random(0)
    origin = TINY.sample(rng)
    reached = {TINY.mutate(origin, rng) for _ in range(500)}
    assert reached == set(TINY.neighbours(origin))


def test_sampling_is_a_function_of_the_generator_and_covers_the_space() -> None:
    assert TINY.sample(random.Random(5)) == TINY.sample(random.Random(5))
    rng = random.Random(0)
    for at, options in enumerate(TINY.cardinalities()):
        assert {TINY.sample(rng).choices[at] for _ in range(60)} == set(range(options))


@given(seed=st.integers(0, 10_000), nodes=st.integers(1, 5))
def test_encoding_decoding_and_text_are_inverse(seed: int, nodes: int) -> None:
    space = DartsSpace(nodes=nodes)
    architecture = space.sample(random.Random(seed))
    assert space.encode(space.decode(architecture)) == architecture
    assert space.parse(space.summary(architecture)) == architecture
    assert Architecture.from_json(architecture.to_json()) == architecture


def test_the_order_of_a_nodes_edges_is_no_part_of_the_identity() -> None:
    space = DartsSpace(nodes=1, ops=("skip_connect", "max_pool_3x3"))
    texts = ("skip_connect(0) + max_pool_3x3(1)", "max_pool_3x3(1)+skip_connect(0)")
    first, second = (space.parse(f"normal: {text}; reduce: {text}") for text in texts)
    assert first == second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is not of the form"),
        ("normal: skip_connect(0) + what; reduce: x", "'skip_connect.0. . what' is not"),
        ("normal: skip_connect(0) + skip_connect(0); reduce: x(0)+x(1)", "two different ones"),
        ("normal: skip_connect(0) + skip_connect(7); reduce: x(0)+x(1)", r"states \[0, 7\]"),
        ("normal: skip_connect(0); reduce: x(0)+x(1)", r"states \[0\]"),
    ],
)
def test_a_wrong_genotype_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        DartsSpace(nodes=1).parse(text)


def test_an_operation_outside_the_space_and_none_are_refused() -> None:
    for op in ("none", "sep_conv_5x5"):
        text = f"{op}(0) + skip_connect(1)"
        with pytest.raises(UnknownNameError, match=op):
            DartsSpace(nodes=1, ops=("none", "skip_connect")).parse(
                f"normal: {text}; reduce: {text}"
            )


def test_a_genotype_of_another_number_of_nodes_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has 4 nodes; this space has 2"):
        DartsSpace(nodes=2).parse(PUBLISHED)


def test_check_names_what_is_wrong() -> None:
    good = TINY.sample(random.Random(0))
    TINY.check(good)
    TINY.check(Architecture.from_json(good.to_json()))
    with pytest.raises(InvalidInputError, match="belongs to"):
        TINY.check(replace(good, space=DartsSpace().describe()))
    with pytest.raises(InvalidInputError, match="has 3 choices; this space has 12"):
        TINY.check(replace(good, choices=good.choices[:3]))
    with pytest.raises(InvalidInputError, match="choice 1 is 9; .* from 0 to 1"):
        TINY.check(replace(good, choices=(0, 9, *good.choices[2:])))
    with pytest.raises(InvalidInputError, match="choice 0 is True"):
        TINY.check(replace(good, choices=(True, *good.choices[1:])))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cells": 0}, "cells is 0"),
        ({"channels": 2.5}, "channels is 2.5"),
        ({"nodes": True}, "nodes is True"),
        ({"ops": "none"}, "give a list"),
        ({"ops": ()}, "ops are empty"),
        ({"ops": ("none",)}, "at least one that is not none"),
        ({"ops": ("skip_connect", "skip_connect")}, "name each operation once"),
        ({"ops": ("warp",)}, "warp"),
    ],
)
def test_wrong_parameters_of_the_space_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        DartsSpace(**params)  # type: ignore[arg-type]


def test_a_space_of_one_architecture_cannot_mutate() -> None:
    space = DartsSpace(nodes=1, ops=("skip_connect",))
    only = space.sample(random.Random(0))
    assert space.size() == 1
    assert list(space.neighbours(only)) == []
    with pytest.raises(InvalidInputError, match="one architecture"):
        space.mutate(only, random.Random(0))


def test_describe_builds_the_space_again() -> None:
    described = TINY.describe()
    assert described["name"] == "darts"
    assert DartsSpace(**described["params"]) == TINY  # type: ignore[arg-type]


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 13, 7), (3, 1, 1)])
def test_the_blocks_chain_and_the_network_runs(cells: int, shape: tuple[int, int, int]) -> None:
    space = DartsSpace(cells=cells, channels=4, nodes=2)
    architecture = space.sample(random.Random(cells))
    inputs = TensorSpec(shape=shape)
    specs = space.blocks(architecture, inputs=inputs, num_classes=5)
    check_interfaces(specs)
    assert [spec.op for spec in specs] == ["darts.stem", *["darts.cell"] * cells, "darts.head"]
    assert [spec.params["reduction"] for spec in specs[1:-1]] == [
        at in (cells // 3, 2 * cells // 3) for at in range(cells)
    ]
    module = space.build(architecture, inputs=inputs, num_classes=5).eval()
    assert module(torch.randn(2, *shape)).shape == (2, 5)


def test_the_genotype_prints_as_one_line() -> None:
    space = DartsSpace(nodes=1, ops=("skip_connect", "max_pool_3x3"))
    architecture = Architecture(space=space.describe(), choices=(0, 0, 1, 0, 1, 1))
    assert space.summary(architecture) == (
        "normal: skip_connect(0) + max_pool_3x3(1); reduce: max_pool_3x3(0) + max_pool_3x3(1)"
    )
    assert Genotype.parse(space.summary(architecture)) == space.decode(architecture)


PC_DARTS_CIFAR = (
    "normal: sep_conv_3x3(1) + skip_connect(0) | sep_conv_3x3(0) + dil_conv_3x3(1) | "
    "sep_conv_5x5(0) + sep_conv_3x3(1) | avg_pool_3x3(0) + dil_conv_3x3(1); "
    "reduce: sep_conv_5x5(1) + max_pool_3x3(0) | sep_conv_5x5(1) + sep_conv_5x5(2) | "
    "sep_conv_3x3(0) + sep_conv_3x3(3) | sep_conv_3x3(1) + sep_conv_3x3(2)"
)
PC_DARTS_IMAGE = (
    "normal: skip_connect(1) + sep_conv_3x3(0) | sep_conv_3x3(0) + skip_connect(1) | "
    "sep_conv_3x3(1) + sep_conv_3x3(3) | sep_conv_3x3(1) + dil_conv_5x5(4); "
    "reduce: sep_conv_3x3(0) + skip_connect(1) | dil_conv_5x5(2) + max_pool_3x3(1) | "
    "sep_conv_3x3(2) + sep_conv_3x3(1) | sep_conv_5x5(0) + sep_conv_3x3(3)"
)


@pytest.mark.parametrize(
    ("genotype", "params"), [(PC_DARTS_CIFAR, 5_270_560), (PC_DARTS_IMAGE, 5_342_464)]
)
def test_published_cells_have_their_number_of_parameters_on_imagenet(
    genotype: str, params: int
) -> None:
    space = DartsSpace(cells=14, channels=48, stem="imagenet", stem_multiplier=1)
    image = TensorSpec(shape=(3, 224, 224))
    with torch.device("meta"):
        network = space.build(space.parse(genotype), inputs=image, num_classes=1000)
    assert sum(weight.numel() for weight in network.parameters()) == params


def test_a_space_with_another_stem_is_another_space() -> None:
    space = DartsSpace(cells=2, channels=4, nodes=1, stem="imagenet")
    assert "stem" not in DartsSpace().describe()["params"]  # type: ignore[operator]
    assert space.describe()["params"]["stem"] == "imagenet"  # type: ignore[index,call-overload]
    architecture = space.sample(random.Random(0))
    network = space.build(architecture, inputs=TensorSpec(shape=(3, 33, 40)), num_classes=4)
    assert network(torch.randn(2, 3, 33, 40)).shape == (2, 4)
    with pytest.raises(UnknownNameError, match="stem"):
        DartsSpace(stem="mnist")
