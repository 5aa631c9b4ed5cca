"""Many hashes at once: the cells of NAS-Bench-201, and the traps among them."""

from __future__ import annotations

import json
import random
from itertools import islice, product

import pytest

from nas.graph import Graph
from nas.hashing import Hasher, read_architecture
from nas.identity import graph_signature, identify
from nas.plugins import make_space
from nas.rewriting import differ, equal_pairs, near_misses
from nas.spaces.nasbench201 import NasBench201Space
from nas.spaces.nasbench201_functions import cell_function, published_form
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, TensorSpec

INPUTS = TensorSpec(shape=(3, 32, 32))
CELLS = NasBench201Space()
SHORT = {
    "0": "none",
    "x": "skip_connect",
    "1": "nor_conv_1x1",
    "3": "nor_conv_3x3",
    "p": "avg_pool_3x3",
}

SPACES = {
    "darts": {"cells": 2, "channels": 4, "nodes": 2},
    "nas-bench-101": {},
    "nas-bench-201": {},
}


def cell(text: str) -> Architecture:
    """Read six letters, in the order of the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3."""
    names = [SHORT[letter] for letter in text]
    return CELLS.parse("|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*names))


def key(text: str) -> str:
    return identify(CELLS, cell(text), inputs=INPUTS, num_classes=10).signature.key


@pytest.mark.parametrize(
    "texts",
    [
        ("3000x0", "03000x", "000300"),  # where the one convolution stands
        ("31000x", "01000x", "000100"),  # a branch that nobody reads
        ("0x300x", "0x000x", "000x00"),  # a convolution of zeros
        ("3100pp", "1300pp"),  # renumbered nodes
        ("3xx00p", "300pp0"),  # pooling a sum, and its terms
    ],
)
def test_equal_cells_have_one_hash(texts: tuple[str, ...]) -> None:
    assert len({cell_function(CELLS.operations(cell(text))) for text in texts}) == 1
    assert len({key(text) for text in texts}) == 1


@pytest.mark.parametrize(
    "texts",
    [
        ("3000x0", "1000x0", "p000x0", "x000x0", "0000x0"),  # operations and kernels
        ("3000x0", "30x0xx", "3300xx"),  # one convolution, used twice, and two
        ("0x0003", "xxx003"),  # of x and of 2x: the normalisation's eps
        ("p00330", "pxx003"),  # conv(a) + conv(b), conv(a + b)
        ("3010x0", "303000", "30300x", "30100x"),  # wiring
    ],
)
def test_cells_that_compute_something_else_are_told_apart(texts: tuple[str, ...]) -> None:
    functions = [cell_function(CELLS.operations(cell(text))) for text in texts]
    assert len({key(text) for text in texts}) == len(set(functions)) > 1


def test_one_hash_a_function_on_a_sample_with_and_without_memo() -> None:
    rng = random.Random(0)
    sample = [CELLS.sample(rng) for _ in range(150)]
    sample += [cell("".join(text)) for text in islice(product("03p", repeat=6), 0, 729, 11)]
    functions = [cell_function(CELLS.operations(item)) for item in sample]
    for memo in (True, False):
        with Hasher(CELLS, inputs=INPUTS, num_classes=10, memo=memo) as hasher:
            hashes = hasher.hashes(sample)
        assert (
            len(set(hashes)) == len(set(functions)) == len(set(zip(functions, hashes, strict=True)))
        )


def test_the_published_form_is_finer_here_and_coarser_there() -> None:
    # Finer: it does not know that pooling is linear. Coarser: it writes one convolution that
    # is read twice like two.
    def forms(text: str) -> tuple[object, str]:
        operations = CELLS.operations(cell(text))
        return cell_function(operations), published_form(operations)

    (pooled, _), (terms, _) = forms("3xx00p"), forms("300pp0")
    assert pooled == terms
    assert forms("3xx00p")[1] != forms("300pp0")[1]
    assert forms("30x0xx")[0] != forms("3300xx")[0]
    assert forms("30x0xx")[1] == forms("3300xx")[1]


@pytest.mark.full
def test_every_cell_of_nas_bench_201_has_the_hash_of_its_function() -> None:
    architectures = [
        Architecture(space=CELLS.describe(), choices=choices)
        for choices in product(range(5), repeat=6)
    ]
    operations = [CELLS.operations(item) for item in architectures]
    functions = [cell_function(item) for item in operations]
    assert len({published_form(item) for item in operations}) == 6466
    with Hasher(CELLS, inputs=INPUTS, num_classes=10, processes=2) as hasher:
        hashes = hasher.hashes(architectures)
    assert len(set(functions)) == len(set(hashes)) == 5044
    assert len(set(zip(functions, hashes, strict=True))) == 5044


def test_a_normalised_zero_path_is_marked() -> None:
    def marked(text: str) -> bool:
        found = identify(CELLS, cell(text), inputs=INPUTS, num_classes=10)
        return found.proof.learns_constant

    # Node 1 is zero; a convolution of it is zero, but for the offset that it would learn.
    assert key("0x000x") == key("0x300x")
    assert marked("0x300x")
    assert not marked("0x000x")
    assert not marked("30000x")


def test_lines_are_read_as_text_or_choices_and_named_where_wrong() -> None:
    text = CELLS.summary(cell("3x000x"))
    choices = json.dumps(list(cell("3x000x").choices))
    with Hasher(CELLS, inputs=INPUTS, num_classes=10) as hasher:
        first, second = hasher.lines([f"{text}\n", choices])
        assert first == second == key("3x000x")
        with pytest.raises(InvalidInputError, match="line 2"):
            list(hasher.lines([text, "|nor_conv_7x7~0|"]))
    with pytest.raises(InvalidInputError):
        read_architecture(CELLS, "[0, 1]")


SOME = pytest.param(200, marks=pytest.mark.slow)
ALL = pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(7200)])


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("count", [SOME, ALL])
def test_rewritten_drawings_are_found_and_near_misses_are_not(name: str, count: int) -> None:
    space = make_space(name, SPACES[name])

    def united(pair: tuple[Graph, Graph]) -> bool:
        first, second = map(graph_signature, pair)
        return first.among({second.key}) == second.key

    equal = equal_pairs(space, count, inputs=INPUTS, num_classes=10, seed=1)
    assert sum(map(united, equal)) >= 0.995 * count
    near = near_misses(space, count, inputs=INPUTS, num_classes=10, seed=1)
    assert not any(map(united, near))


def test_pairs_are_what_they_are_said_to_be() -> None:
    for first, second in equal_pairs(CELLS, 20, inputs=INPUTS, num_classes=10):
        assert not differ(first, second)
    for first, second in near_misses(CELLS, 20, inputs=INPUTS, num_classes=10):
        assert differ(first, second)
