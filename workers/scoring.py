"""The evaluator of sampling methods: each candidate once, whoever asked for it first.

A candidate's scores are kept under two keys. Training is keyed by what the network
computes (its functional signature) and everything that determines its scores; latency by
the same signature, the device, the runtime and the batch size, or by the digest of the table
that prices it (``workers.latency``). So a search for another
device reuses all training, and a measurement is never repeated. Scores that an evaluator
looks up are kept by architecture, and nothing is measured beside them.

What is found under a signature but was made of another architecture is used only if the
hit is confirmed; else the candidate is told apart, by its architecture behind its signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.confirmation import Known, compare
from workers.context import JobContext
from workers.latency import Latencies, TabledLatencies, latencies_of
from workers.session import Session, numbers
from workers.supervisor import Limits
from zoo.canonical import Json, content_id, plain
from zoo.certificates import Signature
from zoo.errors import (
    CorruptArtifactError,
    InvalidInputError,
    RunnerError,
    StaleTokenError,
    TrainerError,
)
from zoo.jobs import Arm, Candidate, CandidateState
from zoo.schemas import SearchRequest
from zoo.spec import Architecture, Device, Evaluation, TensorSpec
from zoo.store.protocols import Claimed


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the worker needs to know of a data set that only the trainer holds."""

    name: str
    digest: str
    num_classes: int
    class_names: tuple[str, ...]
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inputs: Mapping[str, Any]


def load_facts(context: JobContext, data: str) -> Facts:
    """Have the trainer load a data set and describe it.

    Raises:
        MissingDataError: It is not there.
        UnknownNameError: No data set has this name.
    """
    with context.session.device(context.training_device(), "shared"):
        head = context.call("facts", {"data": data}).head
    return Facts(
        name=head["name"],
        digest=head["digest"],
        num_classes=head["num_classes"],
        class_names=tuple(head["class_names"]),
        licence=head["licence"],
        mean=tuple(head["mean"]),
        std=tuple(head["std"]),
        inputs=head["inputs"],
    )


@dataclass(frozen=True)
class Ledger:
    """What a job's candidates have shown so far, shared by its arms.

    ``scored`` are signatures, of which the job's first candidate paid for what this job
    evaluated; ``poison`` is signature → who failed, and ``proofs`` is what is known of those.
    """

    scored: set[str]
    poison: dict[str, Candidate]
    proofs: dict[str, Known]

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Ledger:
        """Return what is on record."""
        ledger = cls(set(), {}, {})
        for candidate in candidates:
            ledger.add(candidate)
        return ledger

    def add(self, candidate: Candidate) -> None:
        """Learn how a candidate ended."""
        if candidate.signature is None:
            return
        if candidate.state is CandidateState.EVALUATED:
            self.scored.add(candidate.signature)
        if candidate.state is CandidateState.FAILED:
            self.poison.setdefault(candidate.signature, candidate)

    def why_refused(self, signature: str, known: Known) -> str | None:
        """Return why a network failed that is surely the same, or None if none did."""
        failed = self.poison.get(signature)
        if failed is None:
            return None
        other = self.proofs.get(signature)
        same = failed.architecture_id == known.architecture_id
        if not same and other is not None and other.proof is not None:
            same = compare(known.proof, other.proof.to_json()).confirmed
        return (failed.reason or "failed") if same else None


class _UnconfirmedError(Exception):
    """What was found under a signature is not surely of the same network."""


class Scorer:
    """Scores candidates of one arm of a search, recording each under its number.

    A candidate that is on record from before an interruption is answered from there, so
    a search that replays its last steps repeats no evaluation and changes no record.
    """

    def __init__(
        self,
        context: JobContext,
        request: SearchRequest,
        facts: Facts,
        ledger: Ledger,
        *,
        arm: Arm = Arm.SEARCH,
        next_number: int = 0,
    ) -> None:
        self.next_number = next_number
        self._digest = facts.digest
        self.spent_s = 0.0
        self._context = context
        self._request = request
        self._arm = arm
        self._target = context.target(request.device)
        self._training = context.training_device()
        self.latencies = latencies_of(
            context,
            request,
            self._target,
            data=facts.digest,
            inputs=TensorSpec.from_json(facts.inputs),
            num_classes=facts.num_classes,
            once=lambda terms, info, compute: self._once(terms, info, None, compute)[0],
        )
        self._args: dict[str, Any] = {
            "evaluator": request.evaluator.model_dump(),
            "space": request.space.model_dump(),
            "data": request.data,
            "recipe": request.recipe.model_dump(),
            "seed": request.seed,
            "device": self._training.name,
        }
        with context.session.device(self._training, "shared"):
            head = context.call("evaluator", self._args).head
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
        self._ledger = ledger
        recorded = context.store.jobs.candidates(context.job.id, arm=arm)
        self._recorded = {item.number: item for item in recorded}

    @property
    def target(self) -> Device:
        """Where latency is measured."""
        return self._target

    def describe(self) -> dict[str, Json]:
        """Return all that determines the scores; see ``Evaluator.describe``."""
        return {**self._described, "latency": self.latencies.terms()}

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
        self.next_number = number + 1
        if known.state is CandidateState.FAILED:
            raise TrainerError(known.reason or "failed")
        self.spent_s += known.cost_s + known.saved_s
        return Evaluation(
            metrics=known.metrics,
            cost_s=known.cost_s,
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
        known = self._known(architecture)
        signature = known.found_in(self._context.store.evaluations)
        source: Latencies = self.latencies
        if isinstance(source, TabledLatencies) and source.of_target:
            source = source.measured
        try:
            timed = self._timed(architecture, signature, known, source=source)[0]
        except _UnconfirmedError:
            own = f"{signature}-{architecture.id}"
            timed = self._timed(architecture, own, known, source=source)[0]
        return timed.metrics["latency_ms"]

    def _score(self, candidate: Candidate, architecture: Architecture) -> Candidate:
        session = self._context.session
        begun = candidate.attempt + 1 - session.faults
        candidate = dataclasses.replace(candidate, attempt=candidate.attempt + 1)
        self._put(candidate)
        known: Known | None = None
        try:
            known = self._known(architecture)
            signature = known.found_in(self._context.store.evaluations)
            candidate = dataclasses.replace(candidate, signature=signature)
            if (why := self._ledger.why_refused(signature, known)) is not None:
                raise TrainerError(f"computes the same as one that failed: {why}")
            try:
                done = self._scored(candidate, architecture, known)
            except _UnconfirmedError:
                own = f"{signature}-{architecture.id}"
                candidate = dataclasses.replace(candidate, signature=own)
                done = self._scored(candidate, architecture, known)
        except (TrainerError, InvalidInputError, RunnerError, CorruptArtifactError) as error:
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
        signature = str(candidate.signature)
        unique: dict[str, Json] = (
            {}
            if self._request.reuse
            else {"job": candidate.job, "arm": str(self._arm), "number": candidate.number}
        )
        info = self._info(known, signature) | {"recipe": self._request.recipe.model_dump()}
        trained, reused = self._once(
            {"scores": self._described, "signature": signature, **unique},
            info | {"kind": "training"},
            known,
            lambda: self._train(candidate, architecture),
        )
        used = [(trained, reused)]
        metrics = dict(trained.metrics)
        if "latency_ms" not in metrics and not self._looks_up:
            timed, found = self._timed(architecture, signature, known, unique=unique)
            metrics |= timed.metrics
            used.append((timed, found))
        # What the job's first candidate of this signature finds, the job had paid for before
        # it was interrupted.
        first = signature not in self._ledger.scored
        spared = [was and not (first and it.job == candidate.job) for it, was in used]
        saved_s = sum(it.cost_s for (it, _), free in zip(used, spared, strict=True) if free)
        return dataclasses.replace(
            candidate,
            state=CandidateState.EVALUATED,
            metrics=metrics,
            feasible=all(
                limit.metric in metrics and limit.holds(metrics[limit.metric])
                for limit in self._request.limits
            ),
            reused_from=trained.job if spared[0] else None,
            saved_s=saved_s,
            cost_s=sum(it.cost_s for it, _ in used) - saved_s,
        )

    def _timed(
        self,
        architecture: Architecture,
        signature: str,
        known: Known,
        *,
        source: Latencies | None = None,
        unique: Mapping[str, Json] | None = None,
    ) -> tuple[Evaluation, bool]:
        asked = source or self.latencies
        return self._once(
            {"latency": asked.terms(), "signature": signature, **(unique or {})},
            self._info(known, signature) | asked.info() | {"kind": "latency"},
            known,
            lambda: asked.of(architecture),
        )

    def _once(
        self,
        terms: Mapping[str, Json],
        info: dict[str, Any],
        known: Known | None,
        compute: Callable[[], Evaluation],
    ) -> tuple[Evaluation, bool]:
        """Return the evaluation of a key and whether it was there: found, made or awaited.

        ``known`` is whose hit must be confirmed; None where the key is an identity.

        Raises:
            _UnconfirmedError: It is there, but not surely of the same network.
        """
        key = content_id(plain(terms))
        session, evaluations = self._context.session, self._context.store.evaluations
        while True:
            found = evaluations.claim(key, job=session.job.id, lease_s=session.timing.lease_s)
            if isinstance(found, Evaluation):
                if known is not None:
                    self._confirm(known, key)
                return found, True
            if isinstance(found, Claimed):
                with session.claim(key, found.token):
                    try:
                        made = compute()
                    except BaseException:
                        with contextlib.suppress(StaleTokenError):
                            evaluations.abandon(key, found.token)
                        raise
                    # Refused if another job took the claim over: then its result counts.
                    with contextlib.suppress(StaleTokenError):
                        evaluations.finish(key, found.token, made, info=info)
                        return made, False
            else:
                self._context.help()
                session.pause(session.timing.poll_s)
            session.check()

    def _info(self, known: Known, signature: str) -> dict[str, Any]:
        return {**known.info(signature), "data": self._digest}

    def _confirm(self, known: Known, key: str) -> None:
        certificate = known.matches(self._context.store.evaluations, key)
        if certificate is None or certificate.confirmed:
            return
        self._context.session.log(
            f"a hit of the functional hash is not confirmed: {certificate.reason}; "
            f"architecture {known.architecture_id} is evaluated by itself",
            data={"evaluation": key, "certificate": certificate.to_json()},
        )
        raise _UnconfirmedError

    def _known(self, architecture: Architecture) -> Known:
        if self._looks_up:
            exact = Signature(key=f"architecture-{architecture.id}")
            return Known(architecture_id=architecture.id, signature=exact)
        args = {"architecture": architecture.to_json(), "data": self._request.data}
        with self._context.session.device(self._training, "shared"):
            head = self._context.call("signature", args, limits=self._limits()).head
        return Known.from_json(architecture.id, head)

    def _train(self, candidate: Candidate, architecture: Architecture) -> Evaluation:
        session = self._context.session
        args = self._args | {"architecture": architecture.to_json()}
        with session.device(self._training, "shared"):
            head = self._context.call("evaluate", args, limits=self._limits()).head
        log_curve(session, candidate, head["curve"])
        return Evaluation(
            metrics=numbers(head["metrics"]), cost_s=head["cost_s"], job=session.job.id
        )

    def _limits(self) -> Limits:
        return Limits(
            timeout_s=self._request.max_candidate_s, memory_bytes=self._request.max_memory_bytes
        )

    def _put(self, candidate: Candidate) -> None:
        self._context.store.jobs.put_candidate(candidate, self._context.session.token)


def log_curve(session: Session, candidate: Candidate, curve: Mapping[str, list[float]]) -> None:
    """Put a candidate's learning curve into the job's log; see ``workers.session``."""
    if curve.get("epoch"):
        arm, number = str(candidate.arm), candidate.number
        points: dict[str, Json] = {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in curve.items()
        }
        session.log(
            f"{arm} candidate {number} was trained for {len(curve['epoch'])} epochs",
            data={"kind": "curve", "arm": arm, "number": number, **points},
        )
