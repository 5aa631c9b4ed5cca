"""Assemble the best chain from the zoo, with real measurements and real data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from workers.context import JobContext
from workers.profile_job import RUNTIMES, measure_subject, profile_blocks, time_blocks
from workers.publish import latency_card, versions
from workers.supervisor import Limits
from zoo.assembly import Assembly, Metrics, assemble
from zoo.canonical import Json, plain
from zoo.errors import InvalidInputError, NotFoundError, TrainerError
from zoo.jobs import JobKind
from zoo.schemas import AssembleRequest, parse_request
from zoo.spec import Block, Chain, Device, Profile
from zoo.store.protocols import UNFINISHED, ChainQuery, Edge

EVALUATE_S = 600.0
"""Time limit of running one recombination on held-out data."""

MAX_PROFILED = 64
"""Blocks measured beforehand because nobody did; chains of others are measured whole."""


def run(context: JobContext) -> Mapping[str, Json]:
    """Choose, store what is new, name it, and return chain, metrics and reasons.

    Raises:
        InfeasibleError: Nothing keeps the limits; the message names the nearest.
    """
    request = cast(AssembleRequest, parse_request(JobKind.ASSEMBLE, context.job.spec))
    device = context.target(request.device)
    if not context.owns(device):
        return context.delegate(JobKind.ASSEMBLE, context.job.spec, device)
    return _Assembler(context, request, device).run()


class _Assembler:
    def __init__(self, context: JobContext, request: AssembleRequest, device: Device) -> None:
        self._context = context
        self._request = request
        self._device = device
        self._measured: dict[str, Profile] = {}

    def run(self) -> Mapping[str, Json]:
        chains = self._chains()
        self._tell(f"{len(chains)} chains; measuring blocks that nobody measured yet")
        chosen = assemble(
            chains,
            self._profiles(chains),
            self._request.limits,
            self._request.objective,
            measure=self._measure,
            evaluate=self._evaluate,
        )
        chain = self._store(chosen, chains) if chosen.parents else chosen.chain
        self._context.store.blocks.put_profile(self._measured[chain.id])
        if self._request.name is not None:
            self._context.store.blocks.set_alias(
                self._request.name, chain.id, owner=self._context.job.owner, guard=True
            )
        return {
            "chain": chain.id,
            "metrics": plain(chosen.metrics),
            "explanation": plain(chosen.explanation),
            "device": self._device.id,
        }

    def _chains(self) -> list[Chain]:
        query = ChainQuery(task=self._request.task)
        chains: list[Chain] = []
        cursor = None
        while True:
            page = self._context.store.blocks.chains(query, limit=500, cursor=cursor)
            chains += (chain for chain in page.items if chain.card != UNFINISHED)
            cursor = page.next
            if cursor is None:
                return chains

    def _profiles(self, chains: Sequence[Chain]) -> dict[str, float]:
        """Return id → median latency of every chain and block known on the target."""
        blocks = {block.id: block for chain in chains for block in chain.blocks}
        known = {
            subject: latency
            for subject in (*blocks, *(chain.id for chain in chains))
            if (latency := self._known(subject)) is not None
        }
        missing: list[Block] = [blocks[i] for i in blocks if i not in known][:MAX_PROFILED]
        profile_blocks(
            self._context, missing, self._device, (self._request.runtime,), (self._request.batch,)
        )
        for block in missing:
            latency = self._known(block.id)
            if latency is not None:
                known[block.id] = latency
        return known

    def _known(self, subject: str) -> float | None:
        for profile in self._context.store.blocks.profiles(subject, device=self._device.id):
            if (profile.runtime, profile.batch) == (self._request.runtime, self._request.batch):
                return profile.median_ms
        return None

    def _measure(self, chain: Chain) -> Metrics:
        self._tell(f"measuring finalist {len(self._measured) + 1}: {chain.id[:12]}")
        runtime, batch = self._request.runtime, self._request.batch
        (profile,) = time_blocks(self._context, chain, self._device, (runtime,), (batch,))
        self._measured[chain.id] = profile
        return {"latency_ms": profile.median_ms, "latency_p95_ms": profile.p95_ms}

    def _evaluate(self, chain: Chain) -> Metrics:
        """Run a recombination on the data of its parents' card."""
        parent = self._parent_card(chain)
        self._tell(f"evaluating a recombination on held-out {parent['task']}")
        device = self._context.training_device()
        args = {
            "specs": [block.spec.to_json() for block in chain.blocks],
            "data": parent["task"],
            "splits": ["val", "test"],
            "device": device.name,
        }
        blobs = tuple(self._context.store.files.get(block.weights) for block in chain.blocks)
        with self._context.session.device(device, "shared"):
            head = self._context.call(
                "accuracy", args, blobs, limits=Limits(timeout_s=EVALUATE_S)
            ).head
        if head["digest"] != parent["data"]:
            raise TrainerError(
                f"{parent['task']} is no longer the data that these blocks were trained on"
            )
        return {"val_accuracy": head["scores"]["val"], "accuracy": head["scores"]["test"]}

    def _parent_card(self, chain: Chain) -> Mapping[str, Json]:
        """Return the card of a stored chain that has this chain's last block."""
        last = chain.blocks[-1].id
        page = self._context.store.blocks.chains(
            ChainQuery(task=self._request.task, block=last), limit=1
        )
        if not page.items:
            raise NotFoundError(f"block {last} is in no chain any more; assemble again")
        return page.items[0].card

    def _store(self, chosen: Assembly, chains: Sequence[Chain]) -> Chain:
        """Keep a recombination: exported, with its own scores and its parents."""
        store = self._context.store
        cards = [chain.card for chain in chains if chain.id in chosen.parents]
        card: dict[str, Json] = {
            name: plain(cards[0].get(name))
            for name in ("task", "data", "split_seed", "class_names", "normalization")
        }
        card |= {
            "licence": _one_licence(cards),
            "metrics": plain(chosen.metrics),
            "method": "assembly",
            "assembled_from": list(chosen.parents),
            "job": self._context.job.id,
            "versions": versions(),
            "latency": latency_card(self._measured[chosen.chain.id], self._device.to_json()),
        }
        chain = Chain(blocks=chosen.chain.blocks, card=card)
        args = {"specs": [block.spec.to_json() for block in chain.blocks]}
        blobs = tuple(store.files.get(block.weights) for block in chain.blocks)
        with self._context.session.device(self._context.training_device(), "shared"):
            onnx = store.files.put(self._context.call("export", args, blobs).blobs[0])
        store.blocks.put_chain(chain, job=self._context.job.id, onnx=onnx)
        others = [runtime for runtime in RUNTIMES if runtime != self._request.runtime]
        measure_subject(self._context, chain, self._device, others, (self._request.batch,))
        store.blocks.add_edges(
            [
                Edge(child=chain.id, parent=parent, relation="assembled-from")
                for parent in chosen.parents
            ]
        )
        return chain

    def _tell(self, message: str) -> None:
        self._context.session.progress(
            step=len(self._measured),
            total=len(self._measured) + 1,
            message=message,
            phase="assemble",
        )


def _one_licence(cards: Sequence[Mapping[str, Json]]) -> Json:
    """Return the licence that all parents share.

    Raises:
        InvalidInputError: They have different ones, so none covers what is made of both.
    """
    licences = {str(card.get("licence")) for card in cards}
    if len(licences) > 1:
        raise InvalidInputError(
            f"the blocks come under different licences ({', '.join(sorted(licences))}); "
            "assemble chains of one of them"
        )
    return licences.pop()
