"""The search on a GPU: graphs and bfloat16 against plain steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from nas.checkpoint import pack, unpack
from nas.cuda_graphs import WARMUP_STEPS, GraphedStep
from nas.data import DataSet, load_dataset
from nas.methods.few_shot import GmNas
from nas.methods.pc_darts import PCDarts
from nas.plugins import MethodContext
from nas.spaces.darts import DartsSpace
from nas.spaces.nasbench201 import NasBench201Space

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SPACE = DartsSpace(cells=3, channels=8, nodes=2)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_dataset("digits", root=None, seed=0)


def search(data: DataSet, **params: Any) -> PCDarts:
    context = MethodContext(space=SPACE, seed=1, data=data, device=torch.device("cuda"))
    return PCDarts(context, **({"epochs": 6, "warmup_epochs": 1, "batch_size": 64} | params))


@pytest.mark.parametrize("order", [1, 2])
def test_replayed_steps_are_the_plain_ones(data: DataSet, order: int) -> None:
    plain, graphed = (search(data, order=order, precision="float32") for _ in range(2))
    plain._update_weights, plain._update_arch = plain.updates.weights, plain.updates.architecture
    for _ in range(plain.steps_per_epoch + WARMUP_STEPS + 3):
        plain.step()
        graphed.step()
    assert isinstance(graphed._update_arch, GraphedStep)
    assert graphed._update_arch._graph is not None
    for (name, ours), theirs in zip(
        graphed.arch.named_parameters(), plain.arch.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4, msg=name)


def test_a_search_learns_in_bfloat16_and_goes_on_from_a_checkpoint(data: DataSet) -> None:
    method = search(data, report_every=1)
    first = method.step()
    for _ in range(method.total // 2):
        method.step()
    state = unpack(pack(method.state_dict()))
    resumed = search(data, report_every=1)
    resumed.load_state_dict(copy.deepcopy(state))
    report = resumed.step()
    while not report.done:
        report = resumed.step()
    assert report.metrics["loss"] < first.metrics["loss"]
    assert all(value.dtype == torch.float32 for value in resumed.supernet.parameters())
    resumed.best(2)


@pytest.mark.parametrize(("base", "params"), [("darts", {"precision": "float32"}), ("rsps", {})])
def test_trained_together_sub_supernets_come_out_as_in_turns(
    data: DataSet, base: str, params: dict[str, Any]
) -> None:
    space = NasBench201Space(channels=4, cells=1)
    context = MethodContext(space=space, seed=1, data=data, device=torch.device("cuda"))
    terms: dict[str, Any] = {
        "base": base, "checkpoints": [1], "groups": [2], "final_epochs": 1, "restart": True,
        "batches": 1, "candidates": 1, "base_params": params | {"batch_size": 128},
    }  # fmt: skip
    beside, alone = (GmNas(context, **terms, together=together) for together in (True, False))
    for search in (beside, alone):
        while search.step().metrics.get("held_out_accuracy") is None:
            pass
    assert beside.decisions == alone.decisions
    for ours, theirs in zip(beside.state_dict()["nets"], alone.state_dict()["nets"], strict=True):
        for name, value in theirs["state"]["supernet"].items():
            found = ours["state"]["supernet"][name].cpu()
            torch.testing.assert_close(found, value.cpu(), rtol=1e-2, atol=1e-3, msg=name)


def test_nothing_waits_for_the_device_between_reports(data: DataSet) -> None:
    method = search(data, report_every=1000)
    for _ in range(method.steps_per_epoch + WARMUP_STEPS + 1):
        method.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            method.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
