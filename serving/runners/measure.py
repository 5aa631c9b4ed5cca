"""Latency of a runner, measured as it serves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from serving.runners.inputs import random_input
from serving.runners.protocols import BlockRunner
from zoo.errors import InvalidInputError
from zoo.spec import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds per call of one batch; ``samples`` in the order measured.

    ``peak_bytes`` is the most that PyTorch's allocator held on a CUDA device during the
    timed calls, weights included; None on the CPU and for memory ONNX Runtime owns.
    """

    median_ms: float
    p95_ms: float
    samples: tuple[float, ...]
    peak_bytes: int | None = None


def measure(
    runner: BlockRunner,
    inputs: Sequence[TensorSpec],
    *,
    batch: int,
    warmup: int = 10,
    repeats: int = 50,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time ``repeats`` calls after ``warmup`` calls, each waited for until it is done.

    Inputs are seeded random values that already lie on the runner's device, so the time
    is that of computing.

    Raises:
        InvalidInputError: A count is below 1, or an input has a variable dimension.
    """
    for name, value in (("batch", batch), ("repeats", repeats)):
        if value < 1:
            raise InvalidInputError(f"{name} is {value}; it must be at least 1")
    if any(size is None for spec in inputs for size in spec.shape):
        raise InvalidInputError(
            f"inputs {[list(spec.shape) for spec in inputs]} have a variable dimension; "
            "give specs with every size set"
        )
    device = torch.device(runner.device)
    generator = torch.Generator().manual_seed(seed)
    tensors = [random_input(spec, batch, generator).to(device) for spec in inputs]
    for _ in range(warmup):
        runner.run(tensors)
    _synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    samples = []
    for _ in range(repeats):
        start = clock()
        runner.run(tensors)
        _synchronize(device)
        samples.append((clock() - start) * 1e3)
    traced = device.type == "cuda" and runner.runtime == "torch"
    return Timing(
        median_ms=_quantile(samples, 0.5),
        p95_ms=_quantile(samples, 0.95),
        samples=tuple(samples),
        peak_bytes=torch.cuda.max_memory_allocated(device) if traced else None,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _quantile(samples: Sequence[float], fraction: float) -> float:
    """Return the quantile, linear between the two nearest samples."""
    ordered = sorted(samples)
    position = fraction * (len(ordered) - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
