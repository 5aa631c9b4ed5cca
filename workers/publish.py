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
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from nas.protocols import SearchSpace
from workers.context import JobContext
from workers.duties import SPLIT_SEED
from workers.facts import Facts
from workers.profile_job import BATCHES, RUNTIMES, profile_chain
from workers.scoring import log_curve
from workers.supervisor import Limits
from workers.wire import Message
from zoo.canonical import Json, plain
from zoo.errors import NotFoundError
from zoo.jobs import Arm, Candidate, CandidateState
from zoo.schemas import SearchRequest
from zoo.spec import Architecture, Block, BlockSpec, Chain, Profile
from zoo.store.protocols import Edge

UNFINISHED: Mapping[str, Json] = {"unfinished": True}
"""The card of a chain that is stored but not yet measured."""


class Publisher:
    """Puts the winners of one search into the zoo."""

    def __init__(
        self, context: JobContext, request: SearchRequest, space: SearchSpace, facts: Facts
    ) -> None:
        self._context = context
        self._request = request
        self._space = space
        self._facts = facts
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
        record = Candidate(
            job=self._context.job.id,
            number=number,
            arm=Arm.WINNER,
            architecture=architecture.to_json(),
            architecture_id=architecture.id,
        )
        survived = self._context.session.faults
        fitted = self._fit(architecture, number)
        log_curve(self._context.session, record, fitted.head["curve"])
        blocks = self._store_blocks(fitted)
        store = self._context.store
        metrics: dict[str, float] = dict(fitted.head["metrics"])
        onnx = store.files.put(fitted.blobs[-1])
        chain = Chain(blocks=blocks, card=UNFINISHED)
        self._introduce(chain, onnx)
        self._tell(number, f"winner {number + 1}: measuring its blocks", 0, 1)
        profiles = profile_chain(
            self._context, chain, self._target, RUNTIMES, {*BATCHES, self._request.batch}
        )
        latency = self._latency(profiles)
        metrics |= {"latency_ms": latency.median_ms, "latency_p95_ms": latency.p95_ms}
        card = self._card(architecture, metrics, latency)
        store.blocks.put_chain(
            dataclasses.replace(chain, card=card), job=self._context.job.id, onnx=onnx
        )
        store.blocks.add_edges(
            [Edge(child=chain.id, parent=self._context.job.id, relation="searched-by")]
        )
        record = dataclasses.replace(
            record,
            state=CandidateState.EVALUATED,
            metrics=metrics,
            repeats=1,
            feasible=all(
                limit.metric in metrics and limit.holds(metrics[limit.metric])
                for limit in self._request.limits
            ),
            attempt=1 + self._context.session.faults - survived,
            cost_s=fitted.head["cost_s"],
            chain=chain.id,
        )
        store.jobs.put_candidate(record, self._context.session.token)
        self._context.session.log(
            f"winner {number + 1} is in the zoo as {chain.id[:12]}: "
            f"accuracy {metrics['accuracy']:.4f}, {latency.median_ms:.3f} ms",
            data={"chain": chain.id},
        )
        return record

    def _introduce(self, chain: Chain, onnx: str) -> None:
        """Put a chain that is yet to be measured; one that is known keeps its card."""
        blocks = self._context.store.blocks
        try:
            blocks.chain(chain.id)
        except NotFoundError:
            blocks.put_chain(chain, job=self._context.job.id, onnx=onnx)

    def _fit(self, architecture: Architecture, number: int) -> Message:
        """Train to the end."""
        request = self._request
        device = self._context.training_device()
        args = {
            "architecture": architecture.to_json(),
            "data": request.data,
            "recipe": request.final_recipe.model_dump(),
            "seed": request.seed,
            "device": device.name,
        }
        longer = max(1.0, request.final_recipe.epochs / request.recipe.epochs)
        limits = Limits(
            timeout_s=request.max_candidate_s * longer, memory_bytes=request.max_memory_bytes
        )

        started = time.monotonic()

        def progress(news: Mapping[str, Any]) -> None:
            message = f"winner {number + 1} of {request.winners}: {news['message']}"
            done, total = news["done"], news["total"]
            each = (time.monotonic() - started) / max(1, done)
            left = total - done + total * (request.winners - number - 1)
            self._tell(number, message, done, total, eta_s=each * left if done else None)

        self._tell(number, f"winner {number + 1} of {request.winners}: training", 0, 1)
        with self._context.session.device(device, "shared"):
            return self._context.call("fit", args, limits=limits, progress=progress)

    def _store_blocks(self, fitted: Message) -> tuple[Block, ...]:
        store = self._context.store
        blocks = []
        for item, weights in zip(fitted.head["blocks"], fitted.blobs, strict=False):
            block = Block(
                spec=BlockSpec.from_json(item["spec"]),
                weights=store.files.put(weights),
                num_params=item["num_params"],
                size_bytes=item["size_bytes"],
                signature=item["signature"],
            )
            store.blocks.put_block(block, job=self._context.job.id)
            blocks.append(block)
        return tuple(blocks)

    def _latency(self, profiles: list[Profile]) -> Profile:
        """Return the whole chain's profile under the request's runtime and batch size."""
        return next(
            profile
            for profile in profiles
            if profile.runtime == self._request.runtime and profile.batch == self._request.batch
        )

    def _card(
        self, architecture: Architecture, metrics: Mapping[str, float], latency: Profile
    ) -> dict[str, Json]:
        request, facts = self._request, self._facts
        return {
            "task": request.data,
            "data": facts.digest,
            "split_seed": SPLIT_SEED,
            "licence": facts.licence,
            "class_names": list(facts.class_names),
            "normalization": {"mean": list(facts.mean), "std": list(facts.std)},
            "metrics": plain(metrics),
            "recipe": plain(request.final_recipe.model_dump()),
            "seed": request.seed,
            "method": request.method.name,
            "architecture": architecture.to_json(),
            "genotype": self._space.summary(architecture),
            "job": self._context.job.id,
            "versions": versions(),
            "latency": latency_card(latency, self._target.to_json()),
        }

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
