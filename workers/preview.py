"""What a search would span and cost, found out before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from workers.context import JobContext
from workers.supervisor import Limits
from zoo.canonical import Json, plain
from zoo.jobs import JobKind
from zoo.schemas import PreviewRequest, parse_request

PREVIEW_S = 600.0
"""Time limit of the whole preview."""


def run(context: JobContext) -> Mapping[str, Json]:
    """Sample the space, count and measure, and time a few training steps.

    Returns:
        ``{"size", "cost": {metric: {"min", "median", "max"}}, "feasible", "reason",
        "candidate_s", "device"}``; ``candidate_s`` estimates one candidate's training.
    """
    request = cast(PreviewRequest, parse_request(JobKind.PREVIEW, context.job.spec))
    search = request.search
    device = context.target(search.device)
    if not context.owns(device):
        return context.delegate(JobKind.PREVIEW, context.job.spec, device)
    context.session.progress(
        step=0, total=1, message=f"sampling {request.samples} architectures", phase="preview"
    )
    args = {
        "space": search.space.model_dump(),
        "data": search.data,
        "limits": [limit.model_dump() for limit in search.limits],
        "runtime": search.runtime,
        "batch": search.batch,
        "device": device.name,
        "recipe": search.recipe.model_dump(),
        "samples": request.samples,
        "seed": search.seed,
    }
    limits = Limits(timeout_s=PREVIEW_S, memory_bytes=search.max_memory_bytes)
    with context.session.device(device, "exclusive"):
        head = context.call("preview", args, limits=limits).head
    names = ("size", "cost", "feasible", "feasible_share", "reason", "candidate_s")
    return {**{name: plain(head[name]) for name in names}, "device": device.id}
