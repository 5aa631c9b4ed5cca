"""Measure one untrained architecture, for a search here or one that runs elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from workers.context import JobContext
from workers.supervisor import Limits
from zoo.canonical import Json
from zoo.errors import EnvironmentUnfitError
from zoo.jobs import JobKind
from zoo.schemas import MeasureRequest, parse_request
from zoo.spec import Device

MEASURE_S = 300.0
"""Time limit of one latency measurement, export included."""


def run(context: JobContext) -> Mapping[str, Json]:
    """Return ``{"median_ms", "p95_ms", "cost_s", "device"}``.

    Raises:
        EnvironmentUnfitError: This worker does not own the device; another must claim it.
    """
    request = cast(MeasureRequest, parse_request(JobKind.MEASURE, context.job.spec))
    device = context.target(request.device)
    if not context.owns(device):
        raise EnvironmentUnfitError(
            f"this worker does not own {request.device}; submit the job with device={device.id}"
        )
    args = request.model_dump(include={"architecture", "data", "runtime", "batch"})
    return {**measure(context, args, device), "device": device.id}


def measure(context: JobContext, args: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """Measure an untrained architecture on ``device``, here or wherever its owner is.

    Args:
        context: The job that wants to know.
        args: ``architecture``, ``data``, ``runtime`` and ``batch``.
        device: Held exclusively meanwhile, so that nothing trains beside the measurement.

    Returns:
        ``median_ms``, ``p95_ms`` and ``cost_s``, the device time that it took.
    """
    if not context.owns(device):
        spec = {**args, "device": device.id}
        result: Any = context.delegate(JobKind.MEASURE, spec, device)
        return {"cost_s": 0.0, **result}
    with context.session.device(device, "exclusive"):
        head = context.call(
            "measure", {**args, "device": device.name}, limits=Limits(timeout_s=MEASURE_S)
        ).head
    return {name: head[name] for name in ("median_ms", "p95_ms")} | {
        "cost_s": sum(head["samples"]) / 1e3
    }
