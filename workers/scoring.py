"""The evaluator of sampling methods: no function is evaluated twice, whoever asks for it.

A candidate's scores are kept under two keys. Training is keyed by what the network
computes (its functional signature) and everything that determines its scores; latency by
what is built (its blocks), the device, the runtime and the batch size, or by the digest of
the table that prices it (``workers.latency``). So a search for another
device reuses all training, and a measurement is never repeated. Networks that compute the
same may differ in cost, since a branch that changes nothing is run all the same: of a hit
only what training found is taken, and its cost is counted anew. Scores that an evaluator
looks up are kept by architecture, and nothing is measured beside them.

How often a function is evaluated, and which proposals are refused, is the request's policy
(``nas.dedup``). What it decides depends on the candidates of this search alone: the n-th
evaluation of a function has the same key and seed in every job, so that another job's work
changes what a search costs and never what it finds.

What is found under a signature but was made of another architecture is used only if the
hit is confirmed; else the candidate is told apart, by its architecture behind its signature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.dedup import Deduping, Policy
from workers.cache import Cache, Found, UnconfirmedError, scope_of
from workers.confirmation import Known
from workers.context import JobContext
from workers.facts import Facts
from workers.fitting import Kept, log_curve, train_remotely
from workers.latency import PREDICTED, Latencies, TabledLatencies, latencies_of
from workers.ledger import Ledger
from workers.session import numbers
from workers.supervisor import Limits
from zoo.canonical import Json
from zoo.certificates import Signature
from zoo.errors import (
    CorruptArtifactError,
    InvalidInputError,
    RunnerError,
    TrainerCrashError,
    TrainerError,
    TrainerTimeoutError,
)
from zoo.jobs import Arm, Candidate, CandidateState
from zoo.rng import derive_seed
from zoo.schemas import Limit, SearchRequest
from zoo.spec import Architecture, Device, Evaluation, TensorSpec

COUNTED = ("flops", "num_params", "size_bytes", "peak_bytes")
"""Metrics of what is built, whatever it computes: counted."""

TIMED = ("latency_ms", "latency_p95_ms", PREDICTED)
"""Metrics of what is built, whatever it computes: measured or priced."""


@dataclass(frozen=True, kw_only=True)
class _Share:
    """An evaluation's part in a candidate's scores: what it cost, or what it spared."""

    evaluation: Evaluation
    spared: bool
    cost_s: float


def _share(found: Found, *, paid: bool) -> _Share:
    cost_s = found.evaluation.cost_s
    return _Share(evaluation=found.evaluation, spared=found.reused and not paid, cost_s=cost_s)


class Scorer:
    """Scores candidates of one arm of a search, recording each under its number.

    A candidate that is on record from before an interruption is answered from there, so
    a search that replays its last steps repeats no evaluation and changes no record.

    Args:
        context: The job.
        request: Its request.
        facts: What there is to know of its data.
        ledger: What its candidates have shown.
        arm: Whose candidates are scored.
        next_number: The first candidate's.
        memory: What ``state_dict`` returned when that was the next one.
    """

    def __init__(
        self,
        context: JobContext,
        request: SearchRequest,
        facts: Facts,
        ledger: Ledger,
        kept: Kept,
        *,
        arm: Arm = Arm.SEARCH,
        next_number: int = 0,
        memory: Mapping[str, Any] | None = None,
    ) -> None:
        self.next_number = next_number
        self._digest = facts.digest
        self.spent_s = 0.0
        self._context = context
        self._kept = kept
        self._request = request
        self._arm = arm
        self._target = context.target(request.device)
        self._training = context.training_device()
        self._seed = request.seed if request.evaluation_seed is None else request.evaluation_seed
        self._args: dict[str, Any] = {
            "evaluator": request.evaluator.model_dump(),
            "space": request.space.model_dump(),
            "data": request.data,
            "recipe": request.recipe.model_dump(),
            "device": self._training.name,
        }
        with context.session.device(self._training, "shared"):
            head = context.call("evaluator", self._args | {"seed": self._seed}).head
        self._described: dict[str, Json] = {
            "evaluator": request.evaluator.model_dump(),
            "terms": head["describe"],
        }
        self._looks_up = bool(head["looks_up"])
        if self._looks_up and request.latency.kind != "measured":
            raise InvalidInputError(
                f"evaluator {request.evaluator.name!r} looks latency up with all other scores; "
                "search without a latency table"
            )
        self._cache = Cache(context, scope=scope_of(context.job, reuse=request.reuse))
        # What is no candidate's, such as an operation's time, is shared whatever is asked of them.
        parts = Cache(context, scope=scope_of(context.job, reuse=True))
        self.latencies = latencies_of(
            context,
            request,
            self._target,
            data=facts.digest,
            inputs=TensorSpec.from_json(facts.inputs),
            num_classes=facts.num_classes,
            once=lambda terms, info, make: parts.once(terms, info, None, make).evaluation,
        )
        self._ledger = ledger
        self._memory = Deduping[Architecture](
            self._hash,
            policy_of(request, noisy=bool(head["noisy"])),
            seed=derive_seed(request.seed, "dedup", str(arm)),
        )
        if memory is not None:
            self._memory.load_state_dict(memory)
        ledger.memories[arm] = self._memory
        recorded = context.store.jobs.candidates(context.job.id, arm=arm)
        self._recorded = {item.number: item for item in recorded}

    @property
    def target(self) -> Device:
        """Where latency is measured."""
        return self._target

    def describe(self) -> dict[str, Json]:
        """Return all that determines the scores; see ``Evaluator.describe``."""
        return {**self._described, "latency": self.latencies.terms()}

    def fresh(self, propose: Callable[[], Architecture]) -> Architecture:
        """Draw proposals until one is new, or as many as the policy allows; return the last.

        Raises:
            JobStoppedError: The job was told to stop.
        """
        return self._memory.fresh(propose)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered of the candidates before ``next_number``."""
        return self._memory.state_dict()

    def evaluate(self, architecture: Architecture) -> Evaluation:
        """Score one architecture under the next number; see ``Evaluator.evaluate``.

        Raises:
            TrainerError: It failed; the candidate is on record with the reason.
            JobStoppedError: The job was told to stop.
        """
        self._context.session.check()
        self._context.help()
        number = self.next_number
        known = self._recorded.get(number)
        if known is None or known.architecture_id != architecture.id:
            known = Candidate(
                job=self._context.job.id,
                number=number,
                arm=self._arm,
                architecture=architecture.to_json(),
                architecture_id=architecture.id,
            )
        if known.state is CandidateState.RUNNING:
            known = self._score(known, architecture)
            self._recorded[number] = known
        elif known.state is CandidateState.EVALUATED:
            self._remember(known, architecture)
        self.next_number = number + 1
        if known.state is CandidateState.FAILED:
            raise TrainerError(known.reason or "failed")
        self.spent_s += known.cost_s + known.saved_s
        return Evaluation(
            metrics=known.metrics,
            cost_s=known.cost_s,
            repeats=known.repeats,
            job=known.reused_from or known.job,
            device=self._target.id,
        )

    def latency_ms(self, architecture: Architecture) -> float:
        """Return an untrained architecture's latency, found once for all who ask.

        It is measured also where candidates are priced from a table of the same device.

        Raises:
            TrainerError: It cannot be measured.
            JobStoppedError: The job was told to stop.
        """
        self._context.session.check()
        known, signature = self._known(architecture), self._signature(architecture)
        source: Latencies = self.latencies
        if isinstance(source, TabledLatencies) and source.of_target:
            source = source.measured
        found = self._timed(architecture, known, signature, source=source)
        return found.evaluation.metrics["latency_ms"]

    def _score(self, candidate: Candidate, architecture: Architecture) -> Candidate:
        session = self._context.session
        begun = candidate.attempt + 1 - session.faults
        candidate = dataclasses.replace(candidate, attempt=candidate.attempt + 1)
        self._put(candidate)
        known: Known | None = None
        try:
            known, signature = self._known(architecture), self._signature(architecture)
            candidate = dataclasses.replace(candidate, signature=signature)
            if (why := self._ledger.why_refused(signature, known)) is not None:
                raise TrainerError(f"computes the same as one that failed: {why}")
            try:
                done = self._scored(candidate, architecture, known)
            except UnconfirmedError:
                own = self._told_apart(architecture)
                candidate = dataclasses.replace(candidate, signature=own)
                done = self._scored(candidate, architecture, known)
        except (TrainerError, InvalidInputError, RunnerError, CorruptArtifactError) as error:
            passing = isinstance(error, TrainerCrashError | TrainerTimeoutError)
            if passing and candidate.signature:  # one of less cost may well end in time
                own = self._told_apart(architecture)
                candidate = dataclasses.replace(candidate, signature=own)
            done = dataclasses.replace(
                candidate, state=CandidateState.FAILED, reason=str(error), feasible=False
            )
            session.log(f"candidate {candidate.number} failed: {error}", level="warning")
            if known is not None and candidate.signature:
                self._ledger.proofs.setdefault(candidate.signature, known)
        done = dataclasses.replace(done, attempt=begun + session.faults)
        self._put(done)
        self._ledger.add(done)
        return done

    def _scored(self, candidate: Candidate, architecture: Architecture, known: Known) -> Candidate:
        """Score a candidate as the policy says, and book what was paid and what was spared.

        What an arm finds of a function that no arm had scored, in an evaluation of this very
        job, the job had paid for before it was interrupted.
        """
        totals = [memory.total(architecture) for memory in self._ledger.memories.values()]
        # What the mean rests on must be surely of the same network, and all must have ended
        # well, before anything is counted.
        used = [
            self._sample(candidate, architecture, known, number)
            for number in self._memory.remembered(architecture)
        ]
        number = self._memory.wanted(architecture)
        if number is None:
            spared_s = sum(it.evaluation.cost_s for it in used) / len(used)
            trained = _Share(evaluation=used[0].evaluation, spared=True, cost_s=spared_s)
        else:
            found = self._sample(candidate, architecture, known, number)
            trained = _share(found, paid=found.by(candidate.job) and number >= max(totals))
            used.append(found)
        counted = self._counted(architecture, known, used)
        shares = [trained]
        measured: Mapping[str, float] = {}
        if "latency_ms" not in trained.evaluation.metrics and not self._looks_up:
            signature, unique = str(candidate.signature), self._unique(candidate)
            timed = self._timed(architecture, known, signature, unique=unique)
            measured = timed.evaluation.metrics
            shares.append(_share(timed, paid=timed.by(candidate.job) and not any(totals)))
        recalled = self._memory.score(architecture, lambda *_: trained.evaluation.metrics)
        metrics = {**recalled.metrics, **counted, **measured}
        spread = {**recalled.spread, **dict.fromkeys(counted, 0.0)}
        return dataclasses.replace(
            candidate,
            state=CandidateState.EVALUATED,
            metrics=metrics,
            spread=spread if recalled.repeats > 1 else {},
            repeats=recalled.repeats,
            feasible=within(self._request.limits, metrics),
            reused_from=trained.evaluation.job if trained.spared else None,
            saved_s=sum(share.cost_s for share in shares if share.spared),
            cost_s=sum(share.cost_s for share in shares if not share.spared),
        )

    def _sample(
        self, candidate: Candidate, architecture: Architecture, known: Known, number: int
    ) -> Found:
        """Return the evaluation ``number`` of what a candidate computes."""
        info = self._info(known, str(candidate.signature))
        return self._cache.once(
            self._terms(candidate, number),
            info | {"recipe": self._args["recipe"], "kind": "training"},
            known,
            lambda: self._train(candidate, architecture, number),
        )

    def _counted(
        self, architecture: Architecture, known: Known, used: Sequence[Found]
    ) -> dict[str, float]:
        """Return the cost of a candidate's own network, of which evaluations report some.

        It is in those that were made of the candidate; else it is counted.
        """
        reported = [name for name in COUNTED if name in used[0].evaluation.metrics]
        if not reported or known.network is None:
            return {}
        costs = self._ledger.costs
        if known.network not in costs:
            own = next((it.evaluation.metrics for it in used if it.own), None)
            costs[known.network] = self.cost(architecture) if own is None else own
        return {name: costs[known.network][name] for name in reported}

    def cost(self, architecture: Architecture) -> Mapping[str, float]:
        """Return what is counted of an architecture, under the names of ``COUNTED``."""
        args = {"architecture": architecture.to_json(), "data": self._request.data}
        with self._context.session.device(self._training, "shared"):
            head = self._context.call("cost", args, limits=self._limits()).head
        return numbers(head["metrics"])

    def _remember(self, candidate: Candidate, architecture: Architecture) -> None:
        """Have the memory learn again what a candidate on record had taught it."""

        def evaluate(_: Architecture, number: int) -> Mapping[str, float]:
            found = self._cache.get(self._terms(candidate, number))
            if found is not None:
                return found.metrics
            # Such as after an upgrade whose evaluations have other keys.
            self._context.session.log(
                f"the evaluation of {self._arm} candidate {candidate.number} is gone; what the "
                "candidate has on record stands for it",
                level="warning",
            )
            timed = () if self._looks_up else TIMED
            return {name: it for name, it in candidate.metrics.items() if name not in timed}

        self._memory.score(architecture, evaluate)

    def _terms(self, candidate: Candidate, number: int) -> dict[str, Json]:
        """Return all that determines the scores of a function's evaluation ``number``."""
        repeat: dict[str, Json] = {"repeat": number} if number else {}
        signature: Json = candidate.signature
        unique = self._unique(candidate)
        return {"scores": self._described, "signature": signature, **repeat, **unique}

    def _unique(self, candidate: Candidate) -> dict[str, Json]:
        """Return what tells candidates apart that take nothing from each other."""
        apart: dict[str, Json] = {"arm": str(self._arm), "number": candidate.number}
        return {} if self._request.reuse else apart

    def _timed(
        self,
        architecture: Architecture,
        known: Known,
        signature: str,
        *,
        source: Latencies | None = None,
        unique: Mapping[str, Json] | None = None,
    ) -> Found:
        asked = source or self.latencies
        return self._cache.once(
            {"latency": asked.terms(), "network": known.network, **(unique or {})},
            self._info(known, signature) | asked.info() | {"kind": "latency"},
            None,
            lambda: asked.of(architecture),
        )

    def _info(self, known: Known, signature: str) -> dict[str, Any]:
        return {**known.info(signature), "data": self._digest}

    def _hash(self, architecture: Architecture) -> str:
        """Return what the policy counts by: the function, or each candidate for itself."""
        if not self._request.reuse:
            return f"{self._arm}-{self.next_number}"
        try:
            return self._signature(architecture)
        except (TrainerError, InvalidInputError):  # scored, it fails with the reason
            return f"architecture-{architecture.id}"

    def _signature(self, architecture: Architecture) -> str:
        """Return the signature under which an architecture's evaluations are kept."""
        if architecture.id not in self._ledger.signatures:
            found = self._cache.signature(self._known(architecture))
            self._ledger.signatures[architecture.id] = found
        return self._ledger.signatures[architecture.id]

    def _told_apart(self, architecture: Architecture) -> str:
        """Return a signature of its own for an architecture, whatever else computes the same."""
        signature, name = self._signature(architecture), f"-{architecture.id}"
        own = signature if signature.endswith(name) else f"{signature}{name}"
        self._ledger.signatures[architecture.id] = own
        return own

    def _known(self, architecture: Architecture) -> Known:
        if self._looks_up:
            exact = Signature(key=f"architecture-{architecture.id}")
            return Known(architecture_id=architecture.id, signature=exact)
        found = self._ledger.identities.get(architecture.id)
        if found is None:
            args = {"architecture": architecture.to_json(), "data": self._request.data}
            with self._context.session.device(self._training, "shared"):
                head = self._context.call("signature", args, limits=self._limits()).head
            found = Known.from_json(architecture.id, head)
            self._ledger.identify(found)
        return found

    def _train(self, candidate: Candidate, architecture: Architecture, number: int) -> Evaluation:
        """Evaluate a function the ``number``-th time, under a seed of that time's own."""
        session = self._context.session
        seed = derive_seed(self._seed, "repeat", number) if number else self._seed
        head = train_remotely(
            self._context,
            "evaluate",
            self._args | {"architecture": architecture.to_json(), "seed": seed},
            key=f"{self._arm} {candidate.number} {architecture.id} {seed}",
            kept=self._kept,
            limits=self._limits(),
        ).head
        self._kept.forget()
        log_curve(session, head["curve"], arm=self._arm, number=candidate.number)
        return Evaluation(
            metrics=numbers(head["metrics"]), cost_s=head["cost_s"], job=session.job.id
        )

    def _limits(self) -> Limits:
        return Limits(
            timeout_s=self._request.max_candidate_s, memory_bytes=self._request.max_memory_bytes
        )

    def _put(self, candidate: Candidate) -> None:
        self._context.store.jobs.put_candidate(candidate, self._context.session.token)


def policy_of(request: SearchRequest, *, noisy: bool) -> Policy:
    """Return how often a search evaluates a function; see ``docs/decisions``.

    Args:
        request: What was asked for.
        noisy: Whether the evaluator scores one function differently from time to time.
    """
    usual = Policy().repeats if noisy else 1
    return Policy(
        repeats=usual if request.max_duplicates is None else request.max_duplicates,
        forget=request.forget,
        attempts=request.max_proposal_attempts,
        tabu=request.tabu,
    )


def within(limits: Iterable[Limit], metrics: Mapping[str, float]) -> bool:
    """Say whether every limited metric is there and within its bounds."""
    return all(it.metric in metrics and it.holds(metrics[it.metric]) for it in limits)
