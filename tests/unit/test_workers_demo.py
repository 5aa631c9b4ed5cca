"""The demo's requests are ones that the job loop accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nas.data import load_dataset
from nas.plugins import MethodContext, make_method, make_space
from nas.protocols import Evaluator
from workers.__main__ import main
from workers.demo import gradient_search, pareto_search
from zoo.canonical import Json
from zoo.schemas import SearchRequest
from zoo.spec import Architecture, Evaluation


class Constant:
    """Scores every architecture alike."""

    def describe(self) -> dict[str, Json]:
        return {"name": "constant"}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        return Evaluation(metrics={"accuracy": 0.5, "latency_ms": 1.0}, cost_s=0.0)


@pytest.mark.parametrize("request_of", [gradient_search, pareto_search])
def test_the_demo_asks_for_methods_as_they_are(request_of: Any) -> None:
    request = SearchRequest.model_validate(request_of(0))
    evaluator: Evaluator = Constant()
    context = MethodContext(
        space=make_space(request.space.name, request.space.params),
        seed=request.seed,
        device=torch.device("cpu"),
        data=load_dataset(request.data, root=None, seed=0),
        evaluator=evaluator,
        objectives=request.objectives,
    )
    method = make_method(request.method.name, request.method.params, context)
    assert method.state_dict()


def test_a_demo_in_a_used_folder_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot make {tmp_path}")
