"""BossNAS on a GPU: bfloat16, and two devices where there are two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas.checkpoint import pack, unpack
from nas.data import DataSet, load_dataset
from nas.methods.bossnas import BossNAS
from nas.plugins import MethodContext
from nas.spaces.hytra import HytraSpace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SPACE = HytraSpace(widths=(64, 64, 32, 32), layers=(2, 2), stem=16, head_dim=8)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_dataset("digits", root=None, seed=0)


def search(data: DataSet, **params: Any) -> BossNAS:
    context = MethodContext(space=SPACE, seed=1, data=data, device=torch.device("cuda"))
    settings = {
        "epochs": 4, "warmup_epochs": 1, "batch_size": 128, "accumulate": 2, "features": 64,
        "hidden": 128, "projection": 32, "lr": 4.8,
    }  # fmt: skip
    return BossNAS(context, **(settings | params))


def finish(method: BossNAS) -> list[float]:
    losses = []
    report = method.step()
    while not report.done:
        losses += [report.metrics["loss"]] if "loss" in report.metrics else []
        report = method.step()
    return losses


def test_a_search_learns_in_bfloat16_and_goes_on_from_a_checkpoint(data: DataSet) -> None:
    method = search(data)
    for _ in range(method.total // 2):
        method.step()
    resumed = search(data)
    resumed.load_state_dict(unpack(pack(method.state_dict())))
    losses = finish(resumed)
    assert all(-4 <= loss <= 4 for loss in losses)
    assert all(item.dtype == torch.float32 for item in resumed.siamese.online.parameters())
    assert len(resumed.best(3)) == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_devices_share_a_batch_and_stay_equal(data: DataSet) -> None:
    method = search(data, num_devices=2)
    for _ in range(3):
        method.step()
    main, other = method.siamese.replicas
    for mine, copied in zip(main.online.parameters(), other.online.parameters(), strict=True):
        assert torch.equal(mine, copied.to(mine.device))
    finish(method)
