"""One network trained to the end and put into the zoo: an architecture, or a chain again.

The job's checkpoint is the state of its training, so that a killed one goes on from the last
epoch that was kept; what follows is published as the winner of a search is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nas import checkpoint
from nas.plugins import make_space, space_of
from nas.protocols import SearchSpace
from workers.context import JobContext
from workers.facts import Facts, load_facts
from workers.fitting import kept_training, log_curve, train_remotely, training_of
from workers.publish import EpochPace, data_card, publish_fitted
from workers.session import numbers
from workers.supervisor import Limits, Progress
from zoo.canonical import Json, plain
from zoo.errors import (
    CorruptArtifactError,
    IncompatibleShapeError,
    InvalidInputError,
    NotFoundError,
)
from zoo.jobs import Arm, Candidate, CandidateState, JobKind
from zoo.schemas import TrainRequest, parse_request
from zoo.spec import Architecture, BlockSpec, Chain, TensorSpec
from zoo.store.protocols import Relation

METRICS_S = 2.0
"""What the training reports goes into the job's log at most this often."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained: arguments and weights for the trainer, and where it comes from.

    ``architecture`` and ``genotype`` are known unless it is a chain that tells neither.
    """

    key: str
    args: Mapping[str, Any]
    weights: tuple[str, ...] = ()
    architecture: Mapping[str, Json] | None = None
    genotype: str | None = None
    parents: Mapping[str, Relation] = field(default_factory=dict)


def run(context: JobContext) -> Mapping[str, Json]:
    """Train, publish, and return the chain's id, what it is, and its metrics.

    Raises:
        JobStoppedError: It was told to stop; the next run goes on from the last epoch kept.
        TrainerError: The training failed.
        InvalidInputError: The network is not what the request says, or does not fit the data.
    """
    request = cast(TrainRequest, parse_request(JobKind.TRAIN, context.job.spec))
    facts = load_facts(context, request.data)
    return _TrainJob(context, request, facts, subject_of(context, request, facts)).run()


def subject_of(context: JobContext, request: TrainRequest, facts: Facts) -> Subject:
    """Find what a request names.

    Raises:
        NotFoundError: There is no such chain, or no job of the owner has met such an architecture.
        InvalidInputError: It does not belong to its space.
        IncompatibleShapeError: A chain does not take the images of the data.
    """
    if request.chain is not None:
        chain = context.store.blocks.chain(request.chain)
        return _chain_subject(chain, facts, from_scratch=request.from_scratch)
    if request.space is not None:
        architecture = _in_space(make_space(request.space.name, request.space.params), request)
    elif isinstance(request.architecture, str):
        found = context.store.jobs.architecture(request.architecture, owner=context.job.owner)
        architecture = Architecture.from_json(found)
    else:
        try:
            architecture = Architecture.from_json(request.architecture or {})
        except (KeyError, TypeError) as error:
            raise InvalidInputError(
                f"architecture {request.architecture!r:.200} is not of the form "
                '{"space": …, "choices": […]}'
            ) from error
    return Subject(
        key=architecture.id,
        args={"architecture": architecture.to_json()},
        architecture=architecture.to_json(),
        genotype=space_of(architecture).summary(architecture),
    )


def _in_space(space: SearchSpace, request: TrainRequest) -> Architecture:
    if request.choices is not None:
        return Architecture(space=space.describe(), choices=request.choices)
    parse = getattr(space, "parse", None)
    if parse is None:
        raise InvalidInputError(
            f"space {space.describe()['name']} reads no genotypes; give choices instead"
        )
    architecture: Architecture = parse(request.genotype)
    return architecture


def _chain_subject(chain: Chain, facts: Facts, *, from_scratch: bool) -> Subject:
    """Describe a chain to train again; for other classes it gets a fresh last block."""
    images = TensorSpec.from_json(facts.inputs)
    if len(chain.inputs) != 1 or not chain.inputs[0].accepts(images):
        raise IncompatibleShapeError(
            f"chain {chain.id[:12]} takes {[list(it.shape) for it in chain.inputs]}, but the "
            f"images of {facts.name} are {list(images.shape)}; choose other data"
        )
    specs = [block.spec for block in chain.blocks]
    specs[-1] = with_classes(specs[-1], facts.num_classes)
    same_head = specs[-1].id == chain.blocks[-1].spec.id
    given = chain.blocks if same_head else chain.blocks[:-1]
    weights = () if from_scratch else tuple(block.weights for block in given)
    card = chain.card
    architecture: Any = card.get("architecture")
    return Subject(
        key=chain.id,
        args={"specs": [spec.to_json() for spec in specs], "weights": len(weights)},
        weights=weights,
        architecture=architecture if isinstance(architecture, Mapping) else None,
        genotype=str(card["genotype"]) if card.get("genotype") else None,
        parents={chain.id: "trained-from"},
    )


def with_classes(head: BlockSpec, num_classes: int) -> BlockSpec:
    """Return the spec of a chain's last block for another number of classes.

    Raises:
        IncompatibleShapeError: The block does not return one vector of logits.
    """
    if len(head.outputs) != 1 or len(head.outputs[0].shape) != 1:
        raise IncompatibleShapeError(
            f"the last block, {head.op}, returns {[list(it.shape) for it in head.outputs]}; "
            "only a chain that ends in logits can be trained"
        )
    if head.outputs[0].shape == (num_classes,):
        return head
    logits = dataclasses.replace(head.outputs[0], shape=(num_classes,))
    return dataclasses.replace(head, outputs=(logits,))


class _TrainJob:
    """One job; keeps its training's state as its checkpoint (``workers.fitting.Kept``)."""

    def __init__(
        self, context: JobContext, request: TrainRequest, facts: Facts, subject: Subject
    ) -> None:
        self._context = context
        self._session = context.session
        self._request = request
        self._facts = facts
        self._subject = subject
        self._step, self._kept = self._newest()

    def run(self) -> Mapping[str, Json]:
        request, subject = self._request, self._subject
        survived = self._session.faults
        fitted = train_remotely(
            self._context,
            "fit",
            {
                **subject.args,
                "data": request.data,
                "recipe": request.recipe.model_dump(),
                "seed": request.seed,
                "device": self._context.training_device().name,
            },
            tuple(self._context.store.files.get(digest) for digest in subject.weights),
            key=subject.key,
            kept=self,
            limits=Limits(timeout_s=request.max_train_s, memory_bytes=request.max_memory_bytes),
            progress=self._progress(),
        )
        curve = fitted.head["curve"]
        log_curve(self._session, curve, arm=Arm.WINNER, number=0, of="the network")
        published = publish_fitted(
            self._context,
            fitted,
            self._card(),
            target=self._context.target(request.device),
            runtime=request.runtime,
            batch=request.batch,
            parents={self._context.job.id: "trained-by", **subject.parents},
            measuring=lambda: self._tell("measuring its blocks", 1, 1),
        )
        if request.alias is not None:
            self._context.store.blocks.set_alias(
                request.alias, published.chain.id, owner=self._context.job.owner, guard=True
            )
        attempt = 1 + self._session.faults - survived
        self._record(published.chain, published.metrics, fitted.head["cost_s"], attempt)
        return {
            "chain": published.chain.id,
            "architecture": plain(subject.architecture),
            "summary": subject.genotype,
            "metrics": plain(published.metrics),
        }

    def load(self, key: str) -> bytes | None:
        return kept_training(self._kept, key)

    def save(self, key: str, state: bytes) -> None:
        self._step += 1
        self._kept = training_of(key, state)
        data = checkpoint.pack({"training": self._kept, "step": self._step})
        digest = self._context.store.files.put(data)
        job = self._context.job.id
        self._context.store.jobs.save_checkpoint(job, self._session.token, digest, self._step)

    def forget(self) -> None:
        self._kept = None

    def _newest(self) -> tuple[int, Mapping[str, Any] | None]:
        """Return the step and the training in the newest checkpoint that can be read."""
        store = self._context.store
        for step, digest in store.jobs.checkpoints(self._context.job.id):
            try:
                state = checkpoint.unpack(store.files.get(digest))
            except (CorruptArtifactError, NotFoundError) as error:
                self._session.log(f"checkpoint {step} is unusable: {error}", level="warning")
                continue
            return step, state["training"]
        return 0, None

    def _progress(self) -> Progress:
        """Return what hears of the epochs: shows them at once, logs them now and then."""
        pace, logged_at = EpochPace(), 0.0
        self._tell("training", 0, self._request.recipe.epochs)

        def progress(news: Mapping[str, Any]) -> None:
            nonlocal logged_at
            done, total = news["done"], news["total"]
            eta_s, metrics = pace.eta_s(done, total - done), numbers(news["metrics"])
            self._tell(news["message"], done, total, eta_s=eta_s, metrics=metrics)
            now = time.monotonic()
            if metrics and now - logged_at > METRICS_S:
                logged_at = now
                data: dict[str, Json] = {"kind": "metrics", "phase": "train", "step": done}
                data |= {"eta_s": None if eta_s is None else round(eta_s, 1)}
                self._session.log(news["message"], data=data | {"metrics": dict(metrics)})

        return progress

    def _tell(
        self,
        message: str,
        done: int,
        total: int,
        *,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self._session.progress(
            step=done, total=total, message=message, phase="train", eta_s=eta_s, metrics=metrics
        )

    def _card(self) -> dict[str, Json]:
        request, subject = self._request, self._subject
        card = data_card(self._facts) | {
            "recipe": plain(request.recipe.model_dump()),
            "seed": request.seed,
            "method": "training",
        }
        if subject.architecture is not None:
            card["architecture"] = plain(subject.architecture)
        if subject.genotype is not None:
            card["genotype"] = subject.genotype
        if subject.parents:
            card["trained_from"] = list(subject.parents)
            card["from_scratch"] = request.from_scratch
        return card

    def _record(
        self, chain: Chain, metrics: Mapping[str, float], cost_s: float, attempt: int
    ) -> None:
        """Record the network as the job's one winner, if its architecture is known."""
        known = self._subject.architecture
        if known is None:
            return
        architecture = Architecture.from_json(known)
        record = Candidate(
            job=self._context.job.id,
            number=0,
            arm=Arm.WINNER,
            architecture=architecture.to_json(),
            architecture_id=architecture.id,
            state=CandidateState.EVALUATED,
            metrics=metrics,
            repeats=1,
            attempt=attempt,
            cost_s=cost_s,
            chain=chain.id,
        )
        self._context.store.jobs.put_candidate(record, self._session.token)
