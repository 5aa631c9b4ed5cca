"""Hybrid networks searched on digits through the job loop, and kept as blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas.plugins import MethodContext, make_method, make_space
from tests import embedded, toys
from workers.embedded import EmbeddedWorker
from zoo.jobs import Arm, JobKind
from zoo.spec import Architecture, Evaluation
from zoo.store.protocols import Store
from zoo.weights import load_chain

SPACE: dict[str, Any] = {
    "widths": [8, 8], "depths": [[1, 2], [1, 2]], "strides": [2, 2], "multipliers": [1],
    "stem": 8, "stem_stride": 1, "attention_from": 2, "last": 16, "constraint": "asymmetric",
    "conv_settings": {"expand": 1}, "attention_settings": {"head_dim": 4, "expand": 1},
}  # fmt: skip


url, store, worker = embedded.FIXTURES


def test_a_winner_with_both_kinds_of_blocks_is_in_the_zoo(
    store: Store, worker: EmbeddedWorker
) -> None:
    spec = toys.search(candidates=3) | {
        "space": {"name": "hybrid", "params": SPACE},
        "method": {"name": "evolution", "params": {"candidates": 3, "population": 2}},
        "recipe": {"epochs": 1, "batch_size": 256},
        "objectives": ["accuracy", "flops"],
    }
    job = store.jobs.submit(JobKind.SEARCH, spec)
    result: Any = toys.succeeded(store, job.id).result
    space = make_space("hybrid", SPACE)
    chain = store.blocks.chain(result["winners"][0]["chain"])
    for candidate in store.jobs.candidates(job.id, arm=Arm.SEARCH):
        architecture = Architecture.from_json(candidate.architecture)
        space.check(architecture)
        priced = space.cost(  # type: ignore[attr-defined]
            architecture, inputs=chain.inputs[0], num_classes=10
        )
        assert candidate.metrics["flops"] == priced.macs
    kinds = {block.spec.op for block in chain.blocks}
    assert {"fused_mbconv.block", "transformer.block"} <= kinds
    network = load_chain(chain, store.files)
    with torch.inference_mode():
        logits = network(torch.zeros(3, *chain.inputs[0].shape))  # type: ignore[arg-type]
    assert logits.shape == (3, 10)  # type: ignore[union-attr]


class Table:
    """Prefers T."""

    def describe(self) -> dict[str, Any]:
        return {"evaluator": "table"}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        strings = make_space("hybrid", SPACE).strings(architecture)  # type: ignore[attr-defined]
        share = sum(string.count("T") for string in strings) / 4
        return Evaluation(metrics={"accuracy": share, "latency_ms": 1.0}, cost_s=0.0)


@pytest.mark.parametrize("name", ["random", "nsga2", "tpe", "evolution", "local-search"])
def test_every_sampling_method_finds_what_has_most_attention(name: str) -> None:
    space = make_space("hybrid", SPACE)
    context = MethodContext(space=space, seed=2, evaluator=Table(), objectives=("accuracy",))
    method = make_method(name, {"candidates": 30}, context)
    while not method.step().done:
        pass
    (best,) = method.best(1)
    space.check(best)
    assert sum(text.count("T") for text in space.strings(best)) == 3  # type: ignore[attr-defined]
