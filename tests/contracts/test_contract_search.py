"""What every search space, method and evaluator promises, over all of them.

The implementations are the registered ones and those of the example package.
"""

from __future__ import annotations

import random
import sys
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.checkpoint import pack, unpack
from nas.cost.analytic import ChainCosts, cost
from nas.data import DataSet, load_dataset
from nas.evaluation import EvaluatorContext, Latency
from nas.plugins import MethodContext, catalogue, make_evaluator, make_method, make_space
from nas.protocols import Evaluator, SearchMethod, SearchSpace, StepReport
from nas.training import FixedRecipe
from tests import tables
from zoo.canonical import canonical_json
from zoo.errors import ConflictError, InvalidInputError
from zoo.spec import METRICS, Architecture, Evaluation, TensorSpec, check_interfaces

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "plugins"
IMAGE = TensorSpec(shape=(1, 8, 8))
SMALL_DARTS = {
    "cells": 2,
    "channels": 4,
    "nodes": 1,
    "ops": ["none", "skip_connect", "max_pool_3x3"],
}

SMALL_MBCONV = {
    "preset": "cifar",
    "widths": [4, 6],
    "depths": [2, 1],
    "strides": [1, 2],
    "stem": 4,
    "first": 4,
    "last": 8,
    "kernels": [3, 5],
    "expands": [2],
}

SMALL_HYBRID = {
    "widths": [4, 8],
    "depths": [[1, 2], [1, 2]],
    "strides": [1, 2],
    "multipliers": [1, 2],
    "constraint": "non-decreasing",
    "attention_from": 2,
    "stem": 4,
    "stem_stride": 1,
    "last": 8,
    "conv_settings": {"expand": 2},
    "attention_settings": {"head_dim": 4, "expand": 2},
}

SMALL_NASNET = {
    "cells": 2,
    "channels": 4,
    "num_blocks": 2,
    "stem_channels": 4,
    "ops": ["identity", "conv_1x1", "max_pool_3x3"],
    "combines": ["add", "concat"],
}

SPACES: dict[str, dict[str, Any]] = {
    "darts": SMALL_DARTS,
    "hybrid": SMALL_HYBRID,
    "hytra": {"widths": [16, 16, 8, 8], "layers": [1, 2], "stem": 4, "head_dim": 2},
    "mbconv": SMALL_MBCONV,
    "mbconv-se": {
        "widths": [4, 6],
        "layers": [2, 1],
        "strides": [1, 2],
        "stem": 4,
        "first": 4,
        "last": 8,
        "features": 8,
    },
    "nas-bench-101": {"channels": 8, "cells": 1},
    "nas-bench-201": {"channels": 4, "cells": 1},
    "nas-bench-macro": {"channels": 4},
    "nasnet": SMALL_NASNET,
    "nats-bench-size": {"widths": [2, 4, 6]},
    "plain-conv": {"layers": 2},
}
SPACE_OF = {"bossnas": "hytra", "nasnet-ppo": "nasnet", "proxyless": "mbconv"}
METHODS: dict[str, dict[str, Any]] = {
    "bossnas": {
        "epochs": 2,
        "warmup_epochs": 1,
        "batch_size": 8,
        "accumulate": 2,
        "features": 8,
        "hidden": 8,
        "projection": 4,
    },
    "nsga2": {"candidates": 9},
    "tpe": {"candidates": 9},
    "random": {"candidates": 9},
    "hill-climber": {"candidates": 9},
    "evolution": {"candidates": 9, "population": 4},
    "local-search": {"candidates": 9},
    "pc-darts": {"epochs": 3, "warmup_epochs": 1, "batch_size": 8, "k": 2},
    "pc-darts-imagenet": {
        "epochs": 3,
        "warmup_epochs": 1,
        "batch_size": 8,
        "weight_share": 0.5,
        "arch_share": 0.25,
    },
    "darts": {"epochs": 3, "warmup_epochs": 1, "batch_size": 8, "order": 2},
    "sharp-darts": {
        "epochs": 3,
        "warmup_epochs": 1,
        "batch_size": 8,
        "lr_warmup_epochs": 1,
        "weighting": "max_w",
    },
    "nasnet-ppo": {
        "warmup_epochs": 1,
        "epochs": 3,
        "batch_size": 8,
        "controller_every": 2,
        "samples": 3,
        "reward_batch_size": 8,
        "final_samples": 5,
    },
    "proxyless": {
        "warmup_epochs": 1,
        "epochs": 3,
        "batch_size": 8,
        "arch_every": 2,
        "loss": "add#linear",
    },  # fmt: skip
    "snas": {"epochs": 3, "batch_size": 8},
    "rsps": {"epochs": 3, "batch_size": 8, "candidates": 20},
    "few-shot": {"checkpoint": 1, "final_epochs": 1, "base_params": {"batch_size": 8}},
    "gm-nas": {
        "base": "snas",
        "checkpoints": [1],
        "groups": [2],
        "final_epochs": 1,
        "batches": 12,
        "base_params": {"batch_size": 8},
    },
}
EVALUATORS = ("training", "tabular", "linear-probe")


def example(module: str, name: str) -> Any:
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return getattr(import_module(f"blockyard_example.{module}"), name)


def space_named(name: str) -> SearchSpace:
    if name == "plain-conv":
        space: SearchSpace = example("space", "PlainConvSpace")(**SPACES[name])
        return space
    return make_space(name, SPACES[name])


def method_named(name: str, context: MethodContext) -> SearchMethod:
    if name == "hill-climber":
        method: SearchMethod = example("method", "HillClimber")(context, **METHODS[name])
        return method
    return make_method(name, METHODS[name], context)


def evaluator_named(name: str, context: EvaluatorContext) -> Evaluator:
    if name == "linear-probe":
        evaluator: Evaluator = example("evaluator", "LinearProbe")(context)
        return evaluator
    return make_evaluator(name, {}, context)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).integers(0, 60, (60, 1, 8, 8))
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, images=(noise + 90 * labels[:, None, None, None]).astype("u1"), labels=labels)
    return load_dataset(f"npz:{path}", root=None, seed=0)


def test_every_registered_plug_in_is_held_to_its_contract() -> None:
    def names(kind: str) -> set[str]:
        listed: Any = catalogue()[kind]
        # Another test of this process may have installed the toys, which break on purpose.
        return {item["name"] for item in listed if not item["name"].startswith("toy")}

    assert names("spaces") <= SPACES.keys()
    assert names("methods") <= METHODS.keys()
    assert names("evaluators") <= set(EVALUATORS)


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return space_named(request.param)


def some(space: SearchSpace, count: int = 5) -> list[Architecture]:
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def test_a_space_describes_itself_completely(space: SearchSpace) -> None:
    assert isinstance(space, SearchSpace)
    described = space.describe()
    assert canonical_json(described)
    again = type(space)(**described["params"])  # type: ignore[arg-type]
    assert again.describe() == described
    assert again.cardinalities() == space.cardinalities()
    assert space.size() >= 1


def test_samples_belong_to_the_space_and_follow_the_generator(space: SearchSpace) -> None:
    for architecture in some(space):
        space.check(architecture)
        assert len(architecture.choices) == len(space.cardinalities())
        assert space.summary(architecture)
        assert "\n" not in space.summary(architecture)
    assert some(space) == some(space)


def test_neighbours_are_legal_distinct_and_others(space: SearchSpace) -> None:
    architecture = some(space)[0]
    neighbours = list(space.neighbours(architecture))
    assert len(set(neighbours)) == len(neighbours) > 0
    assert architecture not in neighbours
    for neighbour in neighbours:
        space.check(neighbour)


def test_a_mutant_is_a_neighbour(space: SearchSpace) -> None:
    rng = random.Random(1)
    for architecture in some(space):
        assert space.mutate(architecture, rng) in set(space.neighbours(architecture))


def test_what_is_not_in_the_space_is_refused(space: SearchSpace) -> None:
    options = space.cardinalities()
    for choices in (options, (-1, *options[1:]), (0,) * (len(options) + 1), ()):
        with pytest.raises(InvalidInputError):
            space.check(Architecture(space=space.describe(), choices=tuple(choices)))


def test_blocks_fit_each_other_and_the_network_maps_images_to_logits(space: SearchSpace) -> None:
    for architecture in some(space, 3):
        specs = space.blocks(architecture, inputs=IMAGE, num_classes=3)
        check_interfaces(specs)
        assert specs[0].inputs == (IMAGE,)
        assert specs[-1].outputs == (TensorSpec(shape=(3,)),)
        network = space.build(architecture, inputs=IMAGE, num_classes=3)
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
        assert len(list(network.children())) == len(specs)


def test_counting_blocks_costs_what_counting_the_network_costs(space: SearchSpace) -> None:
    """Each block once, in networks of which one is a mutant of the other."""
    costs = ChainCosts()
    first = some(space, 1)[0]
    for architecture in (first, space.mutate(first, random.Random(1)), first):
        chain = space.blocks(architecture, inputs=IMAGE, num_classes=10)
        network = space.build(architecture, inputs=IMAGE, num_classes=10)
        assert costs.cost(chain, IMAGE) == cost(network, IMAGE)


class Table:
    """Scores without training: the metrics are sums of choices."""

    def describe(self) -> dict[str, Any]:
        return {"evaluator": "table"}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        first = sum(architecture.choices)
        metrics = {"accuracy": first / 100, "latency_ms": 1.0 + first % 7}
        return Evaluation(metrics=metrics, cost_s=0.0)


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def searched_by(name: str) -> SearchSpace:
    return space_named(SPACE_OF.get(name, "darts"))


def fresh(name: str, data: DataSet) -> SearchMethod:
    space = searched_by(name)
    return method_named(name, MethodContext(space=space, seed=1, data=data, evaluator=Table()))


def drive(method: SearchMethod, steps: int | None = None) -> list[StepReport]:
    def reports() -> Any:
        while True:
            report = method.step()
            yield report
            if report.done:
                return

    return list(islice(reports(), steps))


def test_a_method_counts_its_steps_to_the_end(name: str, data: DataSet) -> None:
    method = fresh(name, data)
    assert isinstance(method, SearchMethod)
    reports = drive(method)
    assert [report.step for report in reports] == list(range(1, reports[0].total + 1))
    assert {report.total for report in reports} == {reports[0].total}
    assert all(report.message for report in reports)
    with pytest.raises(ConflictError):
        method.step()


def test_a_method_returns_distinct_legal_architectures(name: str, data: DataSet) -> None:
    method = fresh(name, data)
    drive(method)
    space = searched_by(name)
    best = method.best(3)
    assert 1 <= len(best) == len(set(best)) <= 3
    assert best[:1] == method.best(1)
    for architecture in best:
        space.check(architecture)


def test_a_resumed_method_repeats_bit_for_bit(name: str, data: DataSet) -> None:
    undisturbed = fresh(name, data)
    whole = drive(undisturbed)
    first = fresh(name, data)
    head = drive(first, 4)
    saved = pack(first.state_dict())
    drive(first, 1)
    second = fresh(name, data)
    second.load_state_dict(unpack(saved))
    assert head + drive(second) == whole
    assert second.best(3) == undisturbed.best(3)
    assert pack(second.state_dict()) == pack(undisturbed.state_dict())


def evaluator_space(name: str) -> SearchSpace:
    return make_space("nas-bench-201") if name == "tabular" else make_space("darts", SMALL_DARTS)


@pytest.fixture(params=EVALUATORS)
def evaluator(
    request: pytest.FixtureRequest, data: DataSet, tmp_path: Path
) -> tuple[Evaluator, Architecture]:
    def measure(architecture: Architecture) -> Latency:
        return Latency(median_ms=1.5, p95_ms=2.0, device="d1")

    tables.write_nasbench201(tmp_path)
    space = evaluator_space(request.param)
    context = EvaluatorContext(
        space=space,
        data=data,
        recipe=FixedRecipe(epochs=1, batch_size=8),
        measure=measure,
        data_root=tmp_path,
    )
    return evaluator_named(request.param, context), some(space)[0]


def test_an_evaluator_is_deterministic_and_reports_every_metric(
    evaluator: tuple[Evaluator, Architecture],
) -> None:
    scorer, architecture = evaluator
    assert isinstance(scorer, Evaluator)
    assert canonical_json(scorer.describe())
    first, second = scorer.evaluate(architecture), scorer.evaluate(architecture)
    assert first.metrics == second.metrics
    if getattr(scorer, "looks_up", False):
        assert {"accuracy", "flops", "num_params"} <= first.metrics.keys() <= METRICS.keys()
    else:
        assert METRICS.keys() - {"training_energy_kwh"} <= first.metrics.keys()
        assert first.device == "d1"
    assert 0 <= first.metrics["accuracy"] <= 1
    assert first.cost_s >= 0
    assert Evaluation.from_json(first.to_json()) == first
