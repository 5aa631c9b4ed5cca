"""The evaluator of sampling methods: each candidate once, whoever asked for it first.

A candidate's scores are kept under two keys. Training is keyed by what the network
computes (its functional signature) and everything that determines its scores; latency by
the same signature, the device, the runtime and the batch size. So a search for another
device reuses all training, and a measurement is never repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.context import JobContext
from workers.session import numbers
from workers.supervisor import Limits
from zoo.canonical import Json, content_id, plain
from zoo.errors import (
    CorruptArtifactError,
    InvalidInputError,
    RunnerError,
    StaleTokenError,
    TrainerCrashError,
    TrainerError,
    TrainerTimeoutError,
)
from zoo.jobs import MAX_ATTEMPTS, Arm, Candidate, CandidateState, JobKind
from zoo.schemas import SearchRequest
from zoo.spec import Architecture, Device, Evaluation
from zoo.store.protocols import Claimed

MEASURE_S = 300.0
"""Time limit of one latency measurement, export included."""

LAYERS_S = 1800.0
"""Time limit of measuring every layer of a space."""

LATENCY_VERSION = 1
"""Raised whenever measuring would give other numbers on the same device."""


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
        self._args: dict[str, Any] = {
            "evaluator": request.evaluator.model_dump(),
            "space": request.space.model_dump(),
            "data": request.data,
            "recipe": request.recipe.model_dump(),
            "seed": request.seed,
            "device": self._training.name,
        }
        head = context.call("evaluator", self._args).head
        self._described: dict[str, Json] = {
            "evaluator": request.evaluator.model_dump(),
            "terms": head["describe"],
        }
        recorded = context.store.jobs.candidates(context.job.id)
        self._recorded = {item.number: item for item in recorded if item.arm is arm}
        self._seen = {item.signature for item in recorded if item.state is CandidateState.EVALUATED}
        self._poison = {
            item.signature: item.reason
            for item in recorded
            if item.state is CandidateState.FAILED and item.signature
        }

    @property
    def target(self) -> Device:
        """Where latency is measured."""
        return self._target

    def describe(self) -> dict[str, Json]:
        """Return all that determines the scores; see ``Evaluator.describe``."""
        return {**self._described, "latency": self._latency_terms()}

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
        """Return an untrained architecture's latency, measured once for all who ask.

        Raises:
            TrainerError: It cannot be measured.
            JobStoppedError: The job was told to stop.
        """
        signature = self._persistently(lambda: self._signature(architecture))
        info = {"signature": signature, "architecture": architecture.id, "data": self._digest}
        return self._latency(architecture, signature, {}, info).metrics["latency_ms"]

    def layer_latencies(self) -> dict[str, float] | None:
        """Return the latencies of the space's layers on the target device, if it is ours.

        They are measured once for all searches of the same space, task and device.
        """
        if not self._context.owns(self._target):
            return None
        terms: dict[str, Json] = {
            "layers": self._request.space.model_dump(),
            "method": self._request.method.name,
            "data": self._digest,
            "latency": self._latency_terms(),
        }
        info: dict[str, Any] = {"kind": "layers", "data": self._digest}
        return dict(self._once(terms, info, self._measure_layers)[0].metrics)

    def _measure_layers(self) -> Evaluation:
        request = self._request
        args = {
            "space": request.space.model_dump(),
            "method": request.method.name,
            "data": request.data,
            "runtime": request.runtime,
            "batch": request.batch,
            "device": self._target.name,
        }
        started = time.monotonic()
        with self._context.session.device(self._target.id, "exclusive"):
            head = self._context.call("latencies", args, limits=Limits(timeout_s=LAYERS_S)).head
        return Evaluation(
            metrics=numbers(head["latencies"]),
            cost_s=time.monotonic() - started,
            job=self._context.job.id,
            device=self._target.id,
        )

    def _score(self, candidate: Candidate, architecture: Architecture) -> Candidate:
        self._put(candidate)
        try:
            signature = self._persistently(lambda: self._signature(architecture))
            candidate = dataclasses.replace(candidate, signature=signature)
            if signature in self._poison:
                raise TrainerError(
                    f"computes the same as one that failed: {self._poison[signature]}"
                )
            done = self._scored(candidate, architecture, signature)
        except (TrainerError, InvalidInputError, RunnerError, CorruptArtifactError) as error:
            done = dataclasses.replace(
                candidate, state=CandidateState.FAILED, reason=str(error), feasible=False
            )
            self._context.session.log(
                f"candidate {candidate.number} failed: {error}", level="warning"
            )
            if done.signature:
                self._poison.setdefault(done.signature, done.reason)
        self._put(done)
        if done.state is CandidateState.EVALUATED:
            self._seen.add(done.signature)
        return done

    def _scored(
        self, candidate: Candidate, architecture: Architecture, signature: str
    ) -> Candidate:
        unique: dict[str, Json] = (
            {}
            if self._request.reuse
            else {"job": candidate.job, "arm": str(self._arm), "number": candidate.number}
        )
        info = {
            "signature": signature,
            "architecture": architecture.id,
            "data": self._digest,
            "recipe": self._request.recipe.model_dump(),
        }
        trained, reused = self._once(
            {"scores": self._described, "signature": signature, **unique},
            info | {"kind": "training"},
            lambda: self._train(architecture),
        )
        metrics, cost_s = dict(trained.metrics), trained.cost_s
        if "latency_ms" not in metrics:  # an evaluator may know it, from a table say
            timed = self._latency(architecture, signature, unique, info)
            metrics |= timed.metrics
            cost_s += timed.cost_s
        ours = trained.job == candidate.job and signature not in self._seen
        hit = reused and not ours
        return dataclasses.replace(
            candidate,
            state=CandidateState.EVALUATED,
            metrics=metrics,
            feasible=all(
                limit.metric in metrics and limit.holds(metrics[limit.metric])
                for limit in self._request.limits
            ),
            reused_from=trained.job if hit else None,
            saved_s=trained.cost_s if hit else 0.0,
            cost_s=0.0 if hit else cost_s,
        )

    def _latency(
        self,
        architecture: Architecture,
        signature: str,
        unique: Mapping[str, Json],
        info: Mapping[str, Any],
    ) -> Evaluation:
        return self._once(
            {"latency": self._latency_terms(), "signature": signature, **unique},
            {**info, "kind": "latency"},
            lambda: self._measure(architecture),
        )[0]

    def _once(
        self, terms: Mapping[str, Json], info: dict[str, Any], compute: Callable[[], Evaluation]
    ) -> tuple[Evaluation, bool]:
        """Return the evaluation of a key and whether it was there: found, made or awaited."""
        key = content_id(plain(terms))
        session, evaluations = self._context.session, self._context.store.evaluations
        while True:
            found = evaluations.claim(key, job=session.job.id, lease_s=session.timing.lease_s)
            if isinstance(found, Evaluation):
                return found, True
            if isinstance(found, Claimed):
                with session.claim(key, found.token):
                    try:
                        made = self._persistently(compute)
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

    def _persistently(self, compute: Callable[[], Any]) -> Any:
        """Try again after what may pass: a crash, a hang, memory that ran out."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return compute()
            except (TrainerCrashError, TrainerTimeoutError) as error:
                if attempt == MAX_ATTEMPTS:
                    raise type(error)(f"{error} ({attempt} attempts)") from error
        raise AssertionError("unreachable")

    def _signature(self, architecture: Architecture) -> str:
        args = {"architecture": architecture.to_json(), "data": self._request.data}
        head = self._context.call("signature", args, limits=self._limits()).head
        return str(head["signature"])

    def _train(self, architecture: Architecture) -> Evaluation:
        session = self._context.session
        args = self._args | {"architecture": architecture.to_json()}
        with session.device(self._training.id, "shared"):
            head = self._context.call("evaluate", args, limits=self._limits()).head
        return Evaluation(
            metrics=numbers(head["metrics"]), cost_s=head["cost_s"], job=session.job.id
        )

    def _measure(self, architecture: Architecture) -> Evaluation:
        terms = {"runtime": self._request.runtime, "batch": self._request.batch}
        args = {"architecture": architecture.to_json(), "data": self._request.data, **terms}
        timing = measure(self._context, args, self._target)
        return Evaluation(
            metrics={"latency_ms": timing["median_ms"], "latency_p95_ms": timing["p95_ms"]},
            cost_s=timing["cost_s"],
            job=self._context.job.id,
            device=self._target.id,
        )

    def _limits(self) -> Limits:
        return Limits(
            timeout_s=self._request.max_candidate_s, memory_bytes=self._request.max_memory_bytes
        )

    def _latency_terms(self) -> dict[str, Json]:
        return {
            "device": self._target.id,
            "runtime": self._request.runtime,
            "batch": self._request.batch,
            "version": LATENCY_VERSION,
        }

    def _put(self, candidate: Candidate) -> None:
        self._context.store.jobs.put_candidate(candidate, self._context.session.token)


def measure(context: JobContext, args: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """Measure an untrained architecture on ``device``, here or wherever its owner is.

    Args:
        context: The job that wants to know.
        args: ``architecture``, ``data``, ``runtime`` and ``batch``.
        device: Held exclusively meanwhile, so that nothing trains beside the measurement.

    Returns:
        ``median_ms``, ``p95_ms`` and ``cost_s``, the device time that it took.
    """
    if not context.owns(device):
        spec = {**args, "device": device.id}
        result: Any = context.delegate(JobKind.MEASURE, spec, device)
        return {"cost_s": 0.0, **result}
    with context.session.device(device.id, "exclusive"):
        head = context.call(
            "measure", {**args, "device": device.name}, limits=Limits(timeout_s=MEASURE_S)
        ).head
    return {name: head[name] for name in ("median_ms", "p95_ms")} | {
        "cost_s": sum(head["samples"]) / 1e3
    }
