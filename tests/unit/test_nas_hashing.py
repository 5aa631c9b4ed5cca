"""Many hashes at once: the cells of NAS-Bench-201, and the traps among them."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice, product
from typing import Any

import pytest
from torch import nn

from nas.dedup import Deduping, DedupingEvaluator, Policy
from nas.graph import Graph, drawing_key
from nas.hashing import Hasher, read_architecture
from nas.identity import GraphSpace, graph_signature, identify, identify_module
from nas.module_rewriting import equal_modules, near_modules
from nas.plugins import MethodContext, catalogue, make_method, make_space
from nas.rewriting import differ, equal_pairs, near_misses
from nas.spaces.nasbench201 import NasBench201Space
from nas.spaces.nasbench201_functions import cell_function, published_form
from nas.spaces.nasbench_macro import NasBenchMacroSpace
from zoo.canonical import Json
from zoo.certificates import Signature
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import Architecture, Evaluation, TensorSpec

INPUTS = TensorSpec(shape=(3, 32, 32))
CELLS = NasBench201Space()
SHORT = {
    "0": "none",
    "x": "skip_connect",
    "1": "nor_conv_1x1",
    "3": "nor_conv_3x3",
    "p": "avg_pool_3x3",
}

SMALL: dict[str, dict[str, Any]] = {
    "darts": {"cells": 2, "channels": 4, "nodes": 2},
    "mbconv": {"widths": [24, 40], "depths": [2, 1], "strides": [2, 2]},
    "nasnet": {"cells": 1, "reductions": 1, "channels": 4, "num_blocks": 2, "stem_channels": 4},
}
SPACES = [item["name"] for item in catalogue()["spaces"]]


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


def found(first: Signature, second: Signature) -> bool:
    return first.among({second.key}) == second.key


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("count", [SOME, ALL])
def test_rewritten_networks_are_found_and_near_misses_are_not(name: str, count: int) -> None:
    space = make_space(name, SMALL.get(name, {}))
    if not isinstance(space, GraphSpace):
        pytest.skip("this space does not draw its networks; its modules are rewritten below")
    known: dict[str, Signature] = {}

    def united(pair: tuple[Graph, Graph]) -> bool:
        key = drawing_key(pair[0])  # the first is an architecture as it is drawn, often again
        if key not in known:
            known[key] = graph_signature(pair[0])
        return found(known[key], graph_signature(pair[1]))

    equal = equal_pairs(space, count, inputs=INPUTS, num_classes=10, seed=1)
    assert sum(map(united, equal)) >= 0.995 * count
    near = near_misses(space, count, inputs=INPUTS, num_classes=10, seed=1)
    assert not any(map(united, near))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nas-bench-201", {"channels": 4, "cells": 1}),
        ("darts", {"cells": 2, "channels": 4, "nodes": 2}),
    ],
)
def test_rewritten_modules_are_found_and_near_misses_are_not(
    name: str, settings: dict[str, Any]
) -> None:
    space, images = make_space(name, settings), TensorSpec(shape=(3, 8, 8))

    def united(pair: tuple[nn.Module, nn.Module]) -> bool:
        return found(*(identify_module(module, (images,)).signature for module in pair))

    assert all(map(united, equal_modules(space, 6, inputs=images, num_classes=3)))
    assert not any(map(united, near_modules(space, 6, inputs=images, num_classes=3)))


@pytest.mark.parametrize("kind", [nn.ReLU, partial(nn.Hardtanh, 0.0, 20.0)])
def test_an_mbconv_network_without_the_bound_of_its_activations_is_another(
    kind: Callable[[], nn.Module],
) -> None:
    space, images = make_space("mbconv", SMALL["mbconv"]), TensorSpec(shape=(3, 8, 8))
    network = space.build(space.sample(random.Random(0)), inputs=images, num_classes=3)
    bounded = [name for name, part in network.named_modules() if isinstance(part, nn.ReLU6)]
    origin = identify_module(network, (images,))
    for changed in (bounded, bounded[:1], bounded[-1:]):
        other = copy.deepcopy(network)
        for name in changed:
            owner, _, last = name.rpartition(".")
            setattr(other.get_submodule(owner), last, kind())
        identity = identify_module(other, (images,))
        assert not found(origin.signature, identity.signature)
        assert not origin.proof.compare(identity.proof).confirmed


def test_near_misses_of_modules_change_activations_in_large_values_only() -> None:
    space, images = make_space("mbconv", SMALL["mbconv"]), TensorSpec(shape=(3, 8, 8))

    def kinds(module: nn.Module) -> Counter[type]:
        return Counter(type(part) for part in module.modules())

    pairs = list(near_modules(space, 12, inputs=images, num_classes=3, seed=0))
    changed = [pair for pair in pairs if kinds(pair[0])[nn.ReLU6] > kinds(pair[1])[nn.ReLU6]]
    assert len(changed) > 1
    for pair in changed:
        first, second = (identify_module(module, (images,)).signature for module in pair)
        assert not found(first, second)


@pytest.mark.parametrize(
    "name", ["hybrid", "hytra", "mbconv", "mbconv-se", "nas-bench-macro", "nats-bench-size"]
)
def test_every_choice_of_a_chain_is_seen(name: str) -> None:
    space = make_space(name, SMALL.get(name, {}))
    origin = space.sample(random.Random(0))
    keys = {
        item.choices: identify(space, item, inputs=INPUTS, num_classes=10).signature.key
        for item in (origin, *islice(space.neighbours(origin), 8))
    }
    blocks = {
        choices: tuple(
            spec.id
            for spec in space.blocks(
                Architecture(space=space.describe(), choices=choices),
                inputs=INPUTS,
                num_classes=10,
            )
            if spec.params.get("operation") != "identity" or spec.inputs != spec.outputs
        )
        for choices in keys
    }
    assert len(set(keys.values())) == len(set(blocks.values())) > 1


def test_an_identity_of_nas_bench_macro_may_stand_anywhere_in_its_stage() -> None:
    space = make_space("nas-bench-macro")
    assert isinstance(space, NasBenchMacroSpace)

    def hashed(digits: str) -> str:
        found = identify(space, space.parse(digits), inputs=INPUTS, num_classes=10)
        return found.signature.key

    assert hashed("11101101") == hashed("11110101")  # the second stage: 101 and 110
    assert hashed("11101101") != hashed("11112101")
    assert hashed("01101101") != hashed("11101101")  # a strided identity has weights


class OfItsFunction:
    """Scores a cell by what it computes, and by nothing else."""

    def describe(self) -> dict[str, Json]:
        return {"evaluator": "of its function"}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        text = repr(cell_function(CELLS.operations(architecture)))
        scores = {name: derive_seed(0, name, text) / 2**63 for name in ("accuracy", "latency_ms")}
        return Evaluation(metrics=scores, cost_s=1.0)


@pytest.mark.parametrize(
    ("method", "params"),
    [("evolution", {"population": 20, "tournament": 5}), ("nsga2", {}), ("random", {})],
)
def test_a_search_proposes_and_finds_the_same_with_the_cache(
    method: str, params: dict[str, int]
) -> None:
    with Hasher(CELLS, inputs=INPUTS, num_classes=10) as hasher:
        deduping = Deduping[Architecture](
            lambda item: hasher.hashes([item])[0], Policy(repeats=1), seed=0
        )
        cached = DedupingEvaluator(lambda _: OfItsFunction(), deduping)
        histories, bests = [], []
        for evaluator in (OfItsFunction(), cached):
            context = MethodContext(space=CELLS, seed=0, evaluator=evaluator)
            stepper = make_method(method, {"candidates": 80, **params}, context)
            steps = [stepper.step().scored[0] for _ in range(80)]
            histories.append(
                [(item.architecture, item.evaluation and item.evaluation.metrics) for item in steps]
            )
            bests.append(stepper.best(80))
    assert histories[0] == histories[1]
    assert bests[0] == bests[1]
    functions = {cell_function(CELLS.operations(item)) for item, _ in histories[0]}
    assert deduping.counts["miss"] == len(functions) < 80


def test_pairs_are_what_they_are_said_to_be() -> None:
    for first, second in equal_pairs(CELLS, 20, inputs=INPUTS, num_classes=10):
        assert not differ(first, second)
    for first, second in near_misses(CELLS, 20, inputs=INPUTS, num_classes=10):
        assert differ(first, second)
