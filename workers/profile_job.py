"""Measure stored blocks and chains through the runners that serve them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from workers.context import JobContext
from workers.supervisor import Limits
from zoo.canonical import Json, plain
from zoo.errors import NotFoundError
from zoo.jobs import JobKind
from zoo.schemas import ProfileRequest, parse_request
from zoo.spec import Block, Chain, Device, Profile

BATCHES = (1, 8)
"""Batch sizes at which every winner is measured."""

RUNTIMES = ("torch", "onnx")

PROFILE_S = 600.0
"""Time limit of measuring one subject."""


def run(context: JobContext) -> Mapping[str, Json]:
    """Measure every subject anew; a chain's blocks too, where they were not yet.

    Raises:
        NotFoundError: A subject is neither a block nor a chain.
    """
    request = cast(ProfileRequest, parse_request(JobKind.PROFILE, context.job.spec))
    device = context.target(request.device)
    if not context.owns(device):
        return context.delegate(JobKind.PROFILE, context.job.spec, device)
    profiles: list[Profile] = []
    for position, ref in enumerate(request.subjects):
        context.session.progress(
            step=position,
            total=len(request.subjects),
            message=f"measuring {ref[:12]}",
            phase="profile",
        )
        subject = _subject(context, ref)
        if isinstance(subject, Chain):
            profile_blocks(context, subject.blocks, device, request.runtimes, request.batches)
        profiles += measure_subject(context, subject, device, request.runtimes, request.batches)
    return {"profiles": [plain(profile.to_json()) for profile in profiles]}


def profile_chain(
    context: JobContext,
    chain: Chain,
    device: Device,
    runtimes: Collection[str],
    batches: Collection[int],
) -> list[Profile]:
    """Measure a stored chain whole, and each of its blocks that was not yet measured.

    Returns:
        The profiles of the whole chain on ``device``.
    """
    if not context.owns(device):
        spec = ProfileRequest.model_validate(
            {
                "subjects": [chain.id],
                "device": device.id,
                "runtimes": sorted(runtimes),
                "batches": sorted(batches),
            }
        )
        result: Any = context.delegate(JobKind.PROFILE, spec.model_dump(mode="json"), device)
        return [Profile.from_json(item) for item in result["profiles"]]
    profile_blocks(context, chain.blocks, device, runtimes, batches)
    return measure_subject(context, chain, device, runtimes, batches)


def profile_blocks(
    context: JobContext,
    blocks: Sequence[Block],
    device: Device,
    runtimes: Collection[str],
    batches: Collection[int],
) -> None:
    """Measure the blocks that lack a profile in one of the runtimes and batch sizes."""
    wanted = {(runtime, batch) for runtime in runtimes for batch in batches}
    for block in {block.id: block for block in blocks}.values():
        known = {
            (profile.runtime, profile.batch)
            for profile in context.store.blocks.profiles(block.id, device=device.id)
        }
        missing = wanted - known
        if missing:
            measure_subject(
                context,
                block,
                device,
                sorted({runtime for runtime, _ in missing}),
                sorted({batch for _, batch in missing}),
            )


def measure_subject(
    context: JobContext,
    subject: Block | Chain,
    device: Device,
    runtimes: Collection[str],
    batches: Collection[int],
) -> list[Profile]:
    """Measure one stored block or chain here, alone on the device, and record its profiles."""
    profiles = time_blocks(context, subject, device, runtimes, batches)
    for profile in profiles:
        context.store.blocks.put_profile(profile)
    return profiles


def time_blocks(
    context: JobContext,
    subject: Block | Chain,
    device: Device,
    runtimes: Collection[str],
    batches: Collection[int],
) -> list[Profile]:
    """Have the trainer time blocks whose weights are in the files; nothing is recorded."""
    files = context.store.files
    blocks = subject.blocks if isinstance(subject, Chain) else (subject,)
    blobs = [files.get(block.weights) for block in blocks]
    onnx = _stored_onnx(context, subject) if "onnx" in runtimes else None
    if onnx is not None:
        blobs.append(files.get(onnx))
    args = {
        "specs": [block.spec.to_json() for block in blocks],
        "onnx": onnx is not None,
        "runtimes": sorted(runtimes),
        "batches": sorted(batches),
        "device": device.name,
    }
    limits = Limits(timeout_s=PROFILE_S)
    with context.session.device(device, "exclusive"):
        head = context.call("profile", args, tuple(blobs), limits=limits).head
    return [
        Profile(
            subject=subject.id,
            device=device.id,
            runtime=item["runtime"],
            precision=item["precision"],
            batch=item["batch"],
            median_ms=item["median_ms"],
            p95_ms=item["p95_ms"],
            samples=tuple(item["samples"]),
            peak_bytes=item["peak_bytes"],
        )
        for item in head["timings"]
    ]


def _stored_onnx(context: JobContext, subject: Block | Chain) -> str | None:
    if isinstance(subject, Block):
        return None
    try:
        return context.store.blocks.onnx(subject.id)
    except NotFoundError:
        return None  # a recombination that is not stored yet


def _subject(context: JobContext, ref: str) -> Block | Chain:
    try:
        return context.store.blocks.chain(ref)
    except NotFoundError:
        return context.store.blocks.block(ref)
