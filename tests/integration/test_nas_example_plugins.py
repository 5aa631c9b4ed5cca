"""The example package is installed for real, and a search runs through all three plug-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

SEARCH = """
import json
import torch
from nas.checkpoint import pack, unpack
from nas.data import load_dataset
from nas.evaluation import EvaluatorContext, train_and_score
from nas.plugins import MethodContext, catalogue, make_evaluator, make_method, make_space, space_of
from nas.training import FixedRecipe
from nas.cost.blocks import traced_cost
from zoo.builders import operations
from zoo.spec import TensorSpec

listed = {key: [item["name"] for item in items] for key, items in catalogue().items()}
data = load_dataset("digits", root=None, seed=0)
space = make_space("plain-conv", {"widths": [4, 8]})
recipe = FixedRecipe(epochs=1)
evaluator = make_evaluator(
    "linear-probe", {"ridge": 0.01}, EvaluatorContext(space=space, data=data, recipe=recipe)
)
context = MethodContext(
    space=space, seed=0, evaluator=evaluator, objectives=("accuracy", "num_params")
)

def search(name, stop):
    method = make_method(name, {"candidates": 8}, context)
    reports = []
    while not reports or not reports[-1].done:
        if len(reports) == stop:
            state = unpack(pack(method.state_dict()))
            method = make_method(name, {"candidates": 8}, context)
            method.load_state_dict(state)
        reports.append(method.step())
    scores = [report.scored[0].evaluation.metrics["accuracy"] for report in reports]
    return scores, [space.summary(item) for item in method.best(3)], method.best(1)[0]

hybrid = make_space("hybrid", {
    "widths": [4, 8], "depths": [[1, 2], [1, 1]], "strides": [1, 2], "stem": 4, "stem_stride": 1,
    "multipliers": [1], "last": 8, "attention_from": 1, "conv": "example.recurrent",
    "attention_settings": {"head_dim": 4},
})
task = {"inputs": TensorSpec(shape=(1, 8, 8)), "num_classes": 3}
mixed = hybrid.parse("CT-C")
logits = hybrid.build(mixed, **task)(torch.zeros(2, 1, 8, 8))
counted = sum(traced_cost(spec).macs for spec in hybrid.blocks(mixed, **task))
undisturbed, summaries, best = search("hill-climber", None)
trained = train_and_score(
    space_of(best), best, data, recipe, seed=0, device=torch.device("cpu")
)
print(json.dumps({
    "listed": listed,
    "operations": operations(),
    "scores": undisturbed,
    "resumed": search("hill-climber", 4)[0],
    "best": summaries,
    "sampled": search("nsga2", None)[0],
    "trained": trained["accuracy"],
    "hybrid": [list(logits.shape), counted, hybrid.cost(mixed, **task).macs],
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a copy of the package; pip builds beside its sources."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "docs" / "examples" / "plugins", folder / "source")
    target = folder / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--no-index", "--disable-pip-version-check"),
            *("--target", str(target), str(folder / "source")),
        ],
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture(scope="module")
def result(installed: Path) -> dict[str, Any]:
    paths = os.pathsep.join((str(installed), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", SEARCH],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=installed,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_names_are_in_the_catalogue(result: dict[str, Any]) -> None:
    assert "plain-conv" in result["listed"]["spaces"]
    assert "linear-probe" in result["listed"]["evaluators"]
    assert "hill-climber" in result["listed"]["methods"]
    assert {"example.conv", "example.head", "example.recurrent"} <= set(result["operations"])


def test_a_block_of_ones_own_stands_in_a_built_in_space(result: dict[str, Any]) -> None:
    shape, counted, priced = result["hybrid"]
    assert shape == [2, 3]
    assert counted == priced > 0


def test_the_method_climbs_and_resumes_exactly(result: dict[str, Any]) -> None:
    assert len(result["scores"]) == 8
    assert result["resumed"] == result["scores"]
    assert max(result["scores"]) > 0.8
    assert all("x" in summary for summary in result["best"])


def test_built_in_methods_search_the_space_and_the_trainer_trains_it(
    result: dict[str, Any],
) -> None:
    assert len(result["sampled"]) == 8
    assert result["trained"] > 0.12
