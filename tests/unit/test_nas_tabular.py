"""Tabular evaluators: the tables' own optima, exact look-ups, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.cost import cost
from nas.data import DataSet, load_dataset
from nas.evaluation import EvaluatorContext
from nas.plugins import make_evaluator, make_space
from nas.protocols import SearchSpace
from nas.spaces.nasbench101 import NasBench101Space
from nas.tabular import Table, TabularEvaluator, open_table
from nas.training import FixedRecipe
from tests import tables
from zoo.canonical import canonical_json
from zoo.errors import InvalidInputError, MissingDataError, UnknownNameError
from zoo.spec import TensorSpec

CIFAR = TensorSpec(shape=(3, 32, 32))
PUBLISHED = {
    # space: rows, best searchable accuracy, best final accuracy, the best network
    "nas-bench-201": (15_625, 0.84892, 0.943733, None),
    "nats-bench-size": (32_768, 0.9365, 0.9365, "64:64:56:64:24"),
    "nas-bench-macro": (6_561, 0.93127, 0.93127, "22212202"),
    "nas-bench-101": (2_532, 0.77013, 0.76252, None),
}


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits", root=None, seed=0)


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def context_of(space: SearchSpace, data: DataSet, root: Path | None) -> EvaluatorContext:
    return EvaluatorContext(
        space=space, data=data, recipe=FixedRecipe(epochs=1, batch_size=8), data_root=root
    )


def test_the_optimum_of_an_exhaustive_look_up_is_the_published_one(
    name: str, data_root: Path
) -> None:
    rows, best, final, text = PUBLISHED[name]
    space = make_space(name)
    table = open_table(space, data_root)
    assert len(table) == rows
    scores = [table.scores(table.architecture(row))["accuracy"] for row in range(0, len(table), 1)]
    assert max(scores) == pytest.approx(best, abs=1e-5)
    assert int(np.argmax(scores)) == table.optimum()
    assert table.truth.max() == pytest.approx(final, abs=1e-5)
    if text is not None:
        assert space.summary(table.architecture(table.optimum())) == text


def test_rows_and_architectures_are_one_to_one(name: str, data_root: Path) -> None:
    table = open_table(make_space(name), data_root)
    rows = range(0, len(table), 37)
    assert [table.row(table.architecture(row)) for row in rows] == list(rows)


def test_the_front_is_that_of_pairwise_comparison(data_root: Path) -> None:
    table = open_table(make_space("nas-bench-101"), data_root)
    found = set(table.front(["accuracy", "training_energy_kwh"]).tolist())
    good = np.stack([table.metrics["accuracy"], -table.metrics["training_energy_kwh"]], axis=1)
    for row in range(0, len(table), 5):
        worse = (good >= good[row]).all(axis=1) & (good > good[row]).any(axis=1)
        assert (row in found) == (not worse.any())


def test_counts_equal_those_of_the_networks(name: str, data_root: Path) -> None:
    """The tables' own parameters and multiply-adds, or ours, against the built network."""
    space = make_space(name)
    table = open_table(space, data_root)
    rng = random.Random(name)
    for row in rng.sample(range(len(table)), 2):
        architecture = table.architecture(row)
        counted = cost(space.build(architecture, inputs=CIFAR, num_classes=10), CIFAR)
        assert table.metrics["num_params"][row] == counted.num_params
        if "flops" in table.metrics:
            # NAS-Bench-201 counts the classifier's ten biases as well.
            assert table.metrics["flops"][row] - counted.flops in (0, 10)


def test_every_architecture_of_the_ecnas_space_is_in_its_table(data_root: Path) -> None:
    space = NasBench101Space()
    table = open_table(space, data_root)
    rng = random.Random(0)
    assert {table.row(space.sample(rng)) for _ in range(300)} <= set(range(2_532))


def test_repeated_trainings_are_averaged(data_root: Path) -> None:
    import pyarrow.parquet as pq

    raw = pq.read_table(data_root / "tables" / "ecnas_nb101_4v5v_4epochs.parquet").to_pandas()
    space = NasBench101Space()
    architecture = space.parse("maxpool3x3(0) maxpool3x3(0,1) output(2)")
    ours = raw[raw.model_hash == space.model_hash(architecture)]
    assert len(ours) == 4
    scores = open_table(space, data_root).scores(architecture)
    assert scores["accuracy"] == pytest.approx(ours.val_acc.mean())
    assert scores["training_energy_kwh"] == pytest.approx(ours.energy_kwh.mean())


@pytest.mark.parametrize(
    ("params", "accuracy", "flops"),
    [
        ({}, 0.63364, 15_647_370),
        ({"accuracy": "test-12"}, 0.6955, 15_647_370),
        ({"accuracy": "test-200"}, 0.858633, 15_647_370),
        ({"data": "imagenet16-120"}, 0.184667, 3_919_480),
    ],
)
def test_the_first_official_cell_has_its_official_numbers(
    params: dict[str, Any], accuracy: float, flops: int, data_root: Path, digits: DataSet
) -> None:
    space = make_space("nas-bench-201")
    evaluator = TabularEvaluator(context_of(space, digits, data_root), device="pixel3", **params)
    text = (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
        "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )
    metrics = evaluator.evaluate(space.parse(text)).metrics  # type: ignore[attr-defined]
    assert metrics["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert metrics["flops"] == flops
    assert metrics["latency_ms"] == pytest.approx(3.60585, abs=1e-4)


def test_without_the_data_the_error_says_what_to_put_where(
    name: str, tmp_path: Path, digits: DataSet
) -> None:
    space = make_space(name)
    with pytest.raises(MissingDataError, match="set BLOCKYARD_DATA"):
        make_evaluator("tabular", {}, context_of(space, digits, None))
    with pytest.raises(MissingDataError, match=r"tables/\w+\.parquet"):
        make_evaluator("tabular", {}, context_of(space, digits, tmp_path))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tables.write_nasbench201(tmp_path)
    return tmp_path


def opened(root: Path, **options: Any) -> Table:
    return open_table(make_space("nas-bench-201"), root, **options)


def test_another_space_other_parameters_and_other_columns_are_refused(small: Path) -> None:
    with pytest.raises(UnknownNameError, match="nas-bench-201"):
        open_table(make_space("darts"), small)
    with pytest.raises(InvalidInputError, match="channels 16, not 8"):
        open_table(make_space("nas-bench-201", {"channels": 8}), small)
    with pytest.raises(UnknownNameError, match="imagenet16-120"):
        opened(small, data="mnist")
    with pytest.raises(UnknownNameError, match="validation-12"):
        opened(small, accuracy="validation-200")
    with pytest.raises(UnknownNameError, match="pixel3"):
        opened(small, device="pixel9")
    with pytest.raises(UnknownNameError, match="accuracy, flops, num_params"):
        opened(small).optimum("latency_ms")
    with pytest.raises(InvalidInputError, match="no column 'valacc_cifar100_ep12'"):
        opened(small, data="cifar100")


def test_what_is_no_table_is_refused(small: Path) -> None:
    (small / "tables" / "nasbench201.parquet").write_bytes(b"not a table")
    with pytest.raises(InvalidInputError, match="no parquet table"):
        opened(small)


def test_a_changed_file_is_read_anew_and_is_another_evaluator(small: Path, digits: DataSet) -> None:
    space = make_space("nas-bench-201")
    context = context_of(space, digits, small)
    first = TabularEvaluator(context)
    path = small / "tables" / "nasbench201.parquet"
    changed = tables.pq.read_table(path).slice(0, 100)
    tables.pq.write_table(changed, path)
    second = TabularEvaluator(context)
    assert first.describe()["table"] != second.describe()["table"]
    last = space.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|")  # type: ignore[attr-defined]
    assert first.evaluate(last).metrics["accuracy"] > 0
    with pytest.raises(InvalidInputError, match="not among the 100 networks"):
        second.evaluate(last)


def test_the_description_holds_all_that_determines_scores_and_nothing_else(
    small: Path, digits: DataSet
) -> None:
    context = context_of(make_space("nas-bench-201"), digits, small)
    described = [
        canonical_json(TabularEvaluator(context, **params).describe())
        for params in ({}, {"accuracy": "test-200"}, {"device": "pixel3"})
    ]
    described.append(canonical_json(make_evaluator("training", {}, context).describe()))
    assert len(set(described)) == len(described)
    assert canonical_json(TabularEvaluator(replace(context, seed=5)).describe()) == described[0]
