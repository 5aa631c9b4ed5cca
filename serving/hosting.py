"""How a process that serves sets itself up; servers and their benchmarks do it alike."""

from __future__ import annotations

import sys

import torch

from serving.engine import Engine, EngineLimits
from serving.engine.types import Runtime
from serving.runners.devices import SERVING_THREADS, usable_cores

SWITCH_S = 0.0005
"""How long one thread may keep Python from the others; its default is ten times as much."""


def host_engine(
    device: torch.device | str,
    *,
    limits: EngineLimits | None = None,
    runtime: Runtime = "torch",
    lanes: int | None = None,
) -> Engine:
    """Settle this process for serving and return its engine.

    On a CPU each batch is computed by ``SERVING_THREADS``, as it was measured, and half
    of the cores compute batches, since reading requests and answering them needs as
    many. A GPU gets one lane.

    Args:
        device: Where blocks run.
        limits: Bounds, in rows.
        runtime: ``"torch"`` or ``"onnx"``.
        lanes: How many batches run at once, if not as above.
    """
    on_cpu = torch.device(device).type == "cpu"
    sys.setswitchinterval(SWITCH_S)
    if on_cpu:
        torch.set_num_threads(SERVING_THREADS)
    if lanes is None:
        lanes = max(1, usable_cores() // 2) if on_cpu else 1
    return Engine(
        device=device, limits=limits, runtime=runtime, lanes=lanes, threads=SERVING_THREADS
    )
