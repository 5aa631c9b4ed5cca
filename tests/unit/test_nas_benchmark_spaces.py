"""The benchmark spaces: sizes, string forms, identity of NAS-Bench-101 cells, networks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.plugins import make_space
from nas.spaces.categorical import CategoricalSpace
from nas.spaces.nasbench101 import Cell, NasBench101Space
from nas.spaces.nasbench201 import NasBench201Space, cell_text, parse_cell
from nas.spaces.nats_size import NatsSizeSpace
from serving.runners.onnx_export import export_onnx
from zoo.builders import build, build_chain
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families import nasbench101, nasbench201, nasbench_macro
from zoo.families.nasbench101 import OPERATIONS, vertex_channels
from zoo.spec import BlockSpec, TensorSpec

NAMES = ("nas-bench-101", "nas-bench-201", "nas-bench-macro", "nats-bench-size")
IMAGE = TensorSpec(shape=(3, 9, 7))


@pytest.fixture(params=NAMES)
def space(request: pytest.FixtureRequest) -> CategoricalSpace:
    made = make_space(request.param)
    assert isinstance(made, CategoricalSpace)
    return made


def test_the_spaces_have_their_published_sizes() -> None:
    assert make_space("nas-bench-201").size() == 5**6 == 15_625
    assert make_space("nats-bench-size").size() == 8**5 == 32_768
    assert make_space("nas-bench-macro").size() == 3**8 == 6_561


def test_what_a_space_writes_it_reads(space: CategoricalSpace) -> None:
    rng = random.Random(0)
    for _ in range(20):
        architecture = space.sample(rng)
        text = space.summary(architecture)
        again = space.parse(f" {text}\n")
        assert space.summary(again) == text
        if not isinstance(space, NasBench101Space):
            assert again == architecture


@pytest.mark.parametrize("text", ["", "x", "|none~0|", "9:9:9:9:9", "99999999", "output(0"])
def test_other_texts_are_refused(space: CategoricalSpace, text: str) -> None:
    with pytest.raises(InvalidInputError):
        space.parse(text)


def test_every_neighbour_differs_in_one_choice(space: CategoricalSpace) -> None:
    architecture = space.sample(random.Random(3))
    for neighbour in space.neighbours(architecture):
        pairs = zip(architecture.choices, neighbour.choices, strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_mutants_reach_every_neighbour(space: CategoricalSpace) -> None:
    rng = random.Random(0)
    architecture = space.sample(rng)
    neighbours = set(space.neighbours(architecture))
    assert {space.mutate(architecture, rng) for _ in range(1500)} == neighbours


def test_the_usual_string_form_is_that_of_the_published_index() -> None:
    space = NasBench201Space()
    text = (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
        "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )
    assert space.parse(text).choices == (4, 2, 1, 2, 1, 1)
    for choices in product(range(5), repeat=6):
        operations = [nasbench201.OPERATIONS[choice] for choice in choices]
        assert parse_cell(cell_text(operations)) == tuple(operations)


@pytest.mark.parametrize(
    "text",
    [
        "|none~0|+|none~1|none~0|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|",
        "none~0+none~0|none~1+none~0|none~1|none~2",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|+|none~0|",
        "|none~0||+|none~0|none~1|+|none~0|none~1|none~2|",
    ],
)
def test_a_malformed_cell_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is not of the form"):
        parse_cell(text)


def test_an_unknown_operation_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="avg_pool_3x3, none"):
        parse_cell("|zero~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    with pytest.raises(UnknownNameError, match="maxpool3x3"):
        NasBench101Space().parse("conv5x5(0) output(1)")


def legal_choices(space: NasBench101Space) -> Iterator[tuple[int, ...]]:
    for choices in product(*(range(options) for options in space.cardinalities())):
        if space._fault(choices) is None:
            yield choices


@pytest.mark.parametrize(("vertices", "cells"), [(3, 7), (4, 91)])
def test_small_nasbench101_spaces_are_counted_and_hashed_exhaustively(
    vertices: int, cells: int
) -> None:
    """1, 6 and 84 cells of two, three and four vertices are the published counts."""
    space = NasBench101Space(vertices=vertices, channels=8)
    found = [space.architecture(choices) for choices in legal_choices(space)]
    assert len(found) == space.size()
    assert len({space.model_hash(architecture) for architecture in found}) == cells


def test_the_ecnas_space_has_its_size_by_both_ways_of_counting() -> None:
    space = NasBench101Space()
    wirings = [
        bits for bits in product((0, 1), repeat=10) if space._fault((*bits, 0, 0, 0)) is None
    ]
    assert space.size() == len(wirings) * 27 == 22_680
    assert NasBench101Space(edges=10).size() == space.size() + 27


def test_hashes_of_all_ecnas_cells_are_the_published_ones(data_root: Path) -> None:
    import pyarrow.parquet as pq

    columns = ["model_hash", "adjacency", "labels"]
    path = data_root / "tables" / "ecnas_nb101_4v5v_4epochs.parquet"
    rows = pq.read_table(path, columns=columns).to_pylist()
    space = NasBench101Space()
    for row in rows[:: 1 + len(rows) // 900]:
        matrix, labels = json.loads(row["adjacency"]), json.loads(row["labels"])
        edges = tuple(
            (source, target)
            for source, line in enumerate(matrix)
            for target, edge in enumerate(line)
            if edge
        )
        cell = Cell(tuple(OPERATIONS[label] for label in labels[1:-1]), edges)
        architecture = space.encode(cell)
        assert space.model_hash(architecture) == row["model_hash"]
        assert space.model_hash(space.parse(space.summary(architecture))) == row["model_hash"]


def test_a_relabelled_and_a_padded_cell_have_the_hash_of_the_cell() -> None:
    space = NasBench101Space()
    one = space.parse("conv3x3-bn-relu(0) maxpool3x3(0) output(1,2)")
    other = space.parse("maxpool3x3(0) conv3x3-bn-relu(0) output(1,2)")
    padded = space.parse("conv3x3-bn-relu(0) maxpool3x3(0) conv1x1-bn-relu(1) output(1,2)")
    different = space.parse("conv3x3-bn-relu(0) maxpool3x3(1) output(1,2)")
    assert space.model_hash(one) == space.model_hash(other) == space.model_hash(padded)
    assert space.model_hash(different) != space.model_hash(one)
    assert space.summary(padded) == space.summary(one)


def test_channels_are_divided_as_published() -> None:
    """Three vertices share 128 channels; a fourth is as wide as the widest that reads it."""
    edges = ((0, 1), (1, 2), (1, 3), (0, 4), (2, 5), (3, 5), (4, 5))
    assert vertex_channels(128, 6, edges) == [0, 43, 43, 43, 42, 0]
    with pytest.raises(InvalidInputError, match="2 channels"):
        vertex_channels(2, 6, edges)


def test_networks_of_odd_images_and_of_dead_cells_compute(space: CategoricalSpace) -> None:
    rng = random.Random(1)
    for architecture in [space.sample(rng) for _ in range(2)]:
        network = space.build(architecture, inputs=IMAGE, num_classes=4).eval()
        assert network(torch.zeros(2, 3, 9, 7)).shape == (2, 4)


def test_a_cell_without_any_edge_is_zero() -> None:
    cell = nasbench201.Cell(2, 3, ["none"] * 6)
    assert torch.equal(cell(torch.ones(1, 2, 4, 4)), torch.zeros(1, 3, 4, 4))


def test_a_cell_adds_its_edges() -> None:
    names = ["skip_connect", "none", "skip_connect", "skip_connect", "avg_pool_3x3", "skip_connect"]
    x = torch.rand(1, 2, 5, 5)
    pooled = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(nasbench201.Cell(2, 2, names)(x), 2 * x + pooled)


def test_a_nasbench101_cell_concatenates_and_adds_the_projected_input() -> None:
    edges = ((0, 1), (0, 2), (1, 3), (2, 3), (0, 3))
    cell = nasbench101.Cell(4, 6, ["maxpool3x3", "maxpool3x3"], edges).eval()
    x = torch.rand(1, 4, 5, 5)
    pool = torch.nn.MaxPool2d(3, 1, 1)
    parts = [pool(cell.projections[key](x)) for key in ("1", "2")]
    expected = torch.cat(parts, dim=1) + cell.projections["3"](x)
    torch.testing.assert_close(cell(x), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NasBench201Space(channels=0), "channels is 0"),
        (lambda: NasBench101Space(vertices=8), "from 3 to 7"),
        (lambda: NatsSizeSpace(widths=()), "ascending"),
        (lambda: NatsSizeSpace(widths=(8, 4)), "ascending"),
        (lambda: nasbench201.cell_spec(IMAGE, channels=3, operations=["none"]), "6 operations"),
        (
            lambda: nasbench101.cell_spec(
                IMAGE, channels=3, operations=["maxpool3x3"], edges=((0, 2),)
            ),
            "leads nowhere",
        ),
        (
            lambda: nasbench_macro.layer_spec(IMAGE, channels=3, stride=1, operation="conv"),
            "mbconv_k3_e3",
        ),
    ],
)
def test_wrong_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


@pytest.mark.parametrize(
    "spec",
    [
        nasbench201.cell_spec(IMAGE, channels=3, operations=["none"] * 6),
        nasbench101.reduction_spec(IMAGE),
        nasbench_macro.layer_spec(IMAGE, channels=3, stride=2, operation="identity"),
    ],
)
def test_a_spec_that_promises_another_shape_is_refused(spec: BlockSpec) -> None:
    assert build(spec)
    wrong = TensorSpec(shape=(3, 1, 1))
    with pytest.raises(IncompatibleShapeError, match="but its spec says"):
        build(BlockSpec(op=spec.op, params=spec.params, inputs=spec.inputs, outputs=(wrong,)))


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("nas-bench-101", {"channels": 9, "cells": 1}, "maxpool3x3(0) output(0,1)"),
        (
            "nas-bench-201",
            {"channels": 4, "cells": 1},
            "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        ),
        ("nas-bench-macro", {"channels": 4}, "00021010"),
        ("nats-bench-size", {"widths": [4, 6]}, "4:6:4:6:6"),
    ],
)
def test_networks_train_and_can_be_exported(name: str, params: Any, text: str) -> None:
    """Also the NAS-Bench-201 cell of no operation at all, whose logits are constant."""
    space = make_space(name, params)
    assert isinstance(space, CategoricalSpace)
    architecture = space.parse(text)
    inputs = TensorSpec(shape=(1, 8, 8))
    specs = space.blocks(architecture, inputs=inputs, num_classes=3)
    network = build_chain(specs, seed=0).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    logits = network(images)
    assert isinstance(logits, torch.Tensor)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    # The export is checked against PyTorch before it is returned.
    assert export_onnx(network.eval(), specs[0].inputs, specs[-1].outputs)
