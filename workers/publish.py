"""A winner becomes part of the zoo: trained, cut into blocks, exported, measured, described.

Everything is addressed by content and written in an order that leaves no dangling
reference: files, blocks, chain, profiles, the chain's card, lineage, and last the
winner's own record. Until it is measured the chain's card says that it is unfinished and
nothing else, so that no listing by task and no assembly finds it. Killed half-way and run
again, the same seed gives the same ids and completes what is there; blocks and files of a
run that got no further than them are collected as garbage.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from nas.protocols import SearchSpace
from workers.context import JobContext
from workers.duties import SPLIT_SEED
from workers.facts import Facts
from workers.fitting import Kept, log_curve, train_remotely
from workers.profile_job import BATCHES, RUNTIMES, profile_chain
from workers.supervisor import Limits
from workers.wire import Message
from zoo.canonical import Json, plain
from zoo.errors import NotFoundError
from zoo.jobs import Arm, Candidate, CandidateState
from zoo.schemas import SearchRequest
from zoo.spec import Architecture, Block, BlockSpec, Chain, Device, Profile
from zoo.store.protocols import UNFINISHED, Edge, Relation


@dataclass(frozen=True, kw_only=True)
class Published:
    """A chain that is in the zoo with all that belongs to it."""

    chain: Chain
    metrics: Mapping[str, float]
    latency: Profile


class Publisher:
    """Puts the winners of one search into the zoo."""

    def __init__(
        self,
        context: JobContext,
        request: SearchRequest,
        space: SearchSpace,
        facts: Facts,
        kept: Kept,
    ) -> None:
        self._context = context
        self._request = request
        self._space = space
        self._facts = facts
        self._kept = kept
        self._target = context.target(request.device)
        self._done = {
            item.architecture_id: item
            for item in context.store.jobs.candidates(context.job.id, arm=Arm.WINNER)
            if item.chain is not None
        }

    def publish(self, architecture: Architecture, number: int) -> dict[str, Json]:
        """Train and store one winner; return what the job's result says of it.

        Raises:
            TrainerError: Its training failed; nothing of it is in the zoo.
        """
        done = self._done.get(architecture.id)
        if done is None or done.number != number:
            done = self._publish(architecture, number)
        return {
            "candidate": number,
            "chain": done.chain,
            "architecture": architecture.to_json(),
            "summary": self._space.summary(architecture),
            "metrics": plain(done.metrics),
        }

    def _publish(self, architecture: Architecture, number: int) -> Candidate:
        request, session = self._request, self._context.session
        survived = session.faults
        fitted = self._fit(architecture, number)
        log_curve(session, fitted.head["curve"], arm=Arm.WINNER, number=number)
        card = data_card(self._facts) | {
            "recipe": plain(request.final_recipe.model_dump()),
            "seed": request.seed,
            "method": request.method.name,
            "architecture": architecture.to_json(),
            "genotype": self._space.summary(architecture),
        }
        published = publish_fitted(
            self._context,
            fitted,
            card,
            target=self._target,
            runtime=request.runtime,
            batch=request.batch,
            parents={self._context.job.id: "searched-by"},
            measuring=lambda: self._tell(
                number, f"winner {number + 1}: measuring its blocks", 0, 1
            ),
        )
        metrics = published.metrics
        record = Candidate(
            job=self._context.job.id,
            number=number,
            arm=Arm.WINNER,
            architecture=architecture.to_json(),
            architecture_id=architecture.id,
            state=CandidateState.EVALUATED,
            metrics=metrics,
            repeats=1,
            feasible=all(
                limit.metric in metrics and limit.holds(metrics[limit.metric])
                for limit in request.limits
            ),
            attempt=1 + session.faults - survived,
            cost_s=fitted.head["cost_s"],
            chain=published.chain.id,
        )
        self._context.store.jobs.put_candidate(record, session.token)
        self._kept.forget()
        session.log(
            f"winner {number + 1} is in the zoo as {published.chain.id[:12]}: "
            f"accuracy {metrics['accuracy']:.4f}, {published.latency.median_ms:.3f} ms",
            data={"chain": published.chain.id},
        )
        return record

    def _fit(self, architecture: Architecture, number: int) -> Message:
        """Train to the end."""
        request = self._request
        args = {
            "architecture": architecture.to_json(),
            "data": request.data,
            "recipe": request.final_recipe.model_dump(),
            "seed": request.seed,
            "device": self._context.training_device().name,
        }
        longer = max(1.0, request.final_recipe.epochs / request.recipe.epochs)
        limits = Limits(
            timeout_s=request.max_candidate_s * longer, memory_bytes=request.max_memory_bytes
        )
        pace = EpochPace()

        def progress(news: Mapping[str, Any]) -> None:
            message = f"winner {number + 1} of {request.winners}: {news['message']}"
            done, total = news["done"], news["total"]
            left = total - done + total * (request.winners - number - 1)
            self._tell(number, message, done, total, eta_s=pace.eta_s(done, left))

        self._tell(number, f"winner {number + 1} of {request.winners}: training", 0, 1)
        return train_remotely(
            self._context,
            "fit",
            args,
            key=f"{Arm.WINNER} {number} {architecture.id}",
            kept=self._kept,
            limits=limits,
            progress=progress,
        )

    def _tell(
        self, number: int, message: str, done: int, total: int, *, eta_s: float | None = None
    ) -> None:
        share = done / total if total else 0.0
        self._context.session.progress(
            step=round(100 * (number + share)),
            total=100 * self._request.winners,
            message=message,
            phase="winners",
            eta_s=eta_s,
        )


class EpochPace:
    """Estimates the time that a training still takes from the epochs seen in this run."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def eta_s(self, done: int, left: int) -> float | None:
        """Return the seconds that ``left`` epochs take, ``done`` being done now."""
        now = time.monotonic()
        if self._first is None or done <= self._first[1]:
            self._first = (now, done)
            return None
        since, before = self._first
        return (now - since) / (done - before) * left


def publish_fitted(
    context: JobContext,
    fitted: Message,
    card: Mapping[str, Json],
    *,
    target: Device,
    runtime: str,
    batch: int,
    parents: Mapping[str, Relation],
    measuring: Callable[[], None],
) -> Published:
    """Store what ``fit`` answered: blocks, chain, ONNX file, profiles, card and lineage.

    Args:
        context: Of the job.
        fitted: The trainer's answer.
        card: What the chain's card says beside its metrics and latency, job and versions.
        target: Where latency is measured.
        runtime: In which the latency is measured that the card states.
        batch: At which batch size.
        parents: What the chain comes from, each with its relation.
        measuring: Called once everything is stored that is to be measured.
    """
    store = context.store
    blocks = _store_blocks(context, fitted)
    metrics: dict[str, float] = dict(fitted.head["metrics"])
    onnx = store.files.put(fitted.blobs[-1])
    chain = Chain(blocks=blocks, card=UNFINISHED)
    _introduce(context, chain, onnx)
    measuring()
    profiles = profile_chain(context, chain, target, RUNTIMES, {*BATCHES, batch})
    latency = next(it for it in profiles if it.runtime == runtime and it.batch == batch)
    metrics |= {"latency_ms": latency.median_ms, "latency_p95_ms": latency.p95_ms}
    whole = {
        **card,
        "metrics": plain(metrics),
        "job": context.job.id,
        "versions": versions(),
        "latency": latency_card(latency, target.to_json()),
    }
    chain = dataclasses.replace(chain, card=whole)
    store.blocks.put_chain(chain, job=context.job.id, onnx=onnx)
    store.blocks.add_edges(
        [
            Edge(child=chain.id, parent=parent, relation=relation)
            for parent, relation in parents.items()
            if parent != chain.id
        ]
    )
    return Published(chain=chain, metrics=metrics, latency=latency)


def _store_blocks(context: JobContext, fitted: Message) -> tuple[Block, ...]:
    store = context.store
    blocks = []
    for item, weights in zip(fitted.head["blocks"], fitted.blobs, strict=False):
        block = Block(
            spec=BlockSpec.from_json(item["spec"]),
            weights=store.files.put(weights),
            num_params=item["num_params"],
            size_bytes=item["size_bytes"],
            signature=item["signature"],
        )
        store.blocks.put_block(block, job=context.job.id)
        blocks.append(block)
    return tuple(blocks)


def _introduce(context: JobContext, chain: Chain, onnx: str) -> None:
    """Put a chain that is yet to be measured; one that is known keeps its card."""
    blocks = context.store.blocks
    try:
        blocks.chain(chain.id)
    except NotFoundError:
        blocks.put_chain(chain, job=context.job.id, onnx=onnx)


def data_card(facts: Facts) -> dict[str, Json]:
    """Return what a card says of the data that a chain was trained on."""
    return {
        "task": facts.name,
        "data": facts.digest,
        "split_seed": SPLIT_SEED,
        "licence": facts.licence,
        "class_names": list(facts.class_names),
        "normalization": {"mean": list(facts.mean), "std": list(facts.std)},
    }


def latency_card(profile: Profile, device: Mapping[str, Json]) -> dict[str, Json]:
    """Return what a card says of a measured latency: where, how, and how much it varied."""
    return {
        "device": dict(device),
        "runtime": profile.runtime,
        "precision": profile.precision,
        "batch": profile.batch,
        "median_ms": profile.median_ms,
        "p95_ms": profile.p95_ms,
    }


def versions() -> dict[str, Json]:
    """Return the versions of what determines a network's weights."""
    return {"blockyard": version("blockyard"), "torch": str(torch.__version__)}
