"""What a search would span and cost, found out before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from nas.plugins import check_method
from workers.context import JobContext
from workers.facts import load_facts
from workers.latency import TabledLatencies, latencies_of
from workers.supervisor import Limits
from zoo.canonical import Json, plain
from zoo.jobs import JobKind
from zoo.schemas import PreviewRequest, SearchRequest, parse_request
from zoo.spec import Device, TensorSpec

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
    check_method(search.method.name, search.method.params)
    device = context.target(search.device)
    if not context.owns(device):
        return context.delegate(JobKind.PREVIEW, context.job.spec, device)
    context.session.progress(
        step=0, total=1, message=f"sampling {request.samples} architectures", phase="preview"
    )
    args = {
        "prices": _prices(context, search, device),
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


def _prices(
    context: JobContext, search: SearchRequest, device: Device
) -> dict[str, dict[str, float]] | None:
    """Return what latencies are summed from, or None if they are measured."""
    if search.latency.kind == "measured":
        return None
    facts = load_facts(context, search.data)
    source = latencies_of(
        context,
        search,
        device,
        data=facts.digest,
        inputs=TensorSpec.from_json(facts.inputs),
        num_classes=facts.num_classes,
        once=lambda _terms, _info, compute: compute(),
    )
    return source.space_prices() if isinstance(source, TabledLatencies) else None
