"""Measure one untrained architecture for a search that runs on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from workers.context import JobContext
from workers.latency import measure
from zoo.canonical import Json
from zoo.errors import EnvironmentUnfitError
from zoo.jobs import JobKind
from zoo.schemas import MeasureRequest, parse_request


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
