"""A process that serves: its threads, its lanes, and that they are those of the fingerprint."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from serving.hosting import SWITCH_S, host_engine
from serving.runners.devices import SERVING_THREADS, local_devices, serving_threads


@pytest.fixture(autouse=True)
def _process() -> Iterator[None]:
    """Give the process back as it was."""
    threads, switch_s = torch.get_num_threads(), sys.getswitchinterval()
    yield
    torch.set_num_threads(threads)
    sys.setswitchinterval(switch_s)


def test_a_cpu_server_computes_with_the_threads_that_were_measured() -> None:
    torch.set_num_threads(3)
    engine = host_engine("cpu")
    try:
        assert torch.get_num_threads() == SERVING_THREADS
        assert local_devices()[0].info["threads"] == SERVING_THREADS
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    finally:
        engine.close()


def test_a_measurement_borrows_the_threads_of_a_server() -> None:
    torch.set_num_threads(3)
    with serving_threads():
        assert torch.get_num_threads() == SERVING_THREADS
    assert torch.get_num_threads() == 3
