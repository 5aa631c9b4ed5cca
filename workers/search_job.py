"""The search loop: step, record, checkpoint, look around; then the winners go to the zoo.

A search has three phases: ``search``, ``baseline`` (equal-budget random search, if asked
for) and ``winners``. A checkpoint holds the phase, the state of the methods, the number of
the next candidate, what is remembered of those before it, and the state of the one candidate
or winner that is being trained; all else is on record in SQL.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nas import checkpoint
from nas.pareto import front
from nas.plugins import MethodContext, check_method, make_method, make_space, method_class
from nas.protocols import SearchMethod, StepReport
from workers.context import JobContext
from workers.derived import limits_first
from workers.facts import Facts, load_facts
from workers.fitting import kept_training, training_of
from workers.latency import TabledLatencies
from workers.ledger import Ledger
from workers.publish import Publisher
from workers.remote_method import RemoteMethod
from workers.scoring import COUNTED, TIMED, Scorer, within
from workers.session import Stop, numbers
from zoo.canonical import Json
from zoo.errors import (
    CorruptArtifactError,
    InfeasibleError,
    NotFoundError,
    TrainerCrashError,
    TrainerError,
    TrainerTimeoutError,
)
from zoo.jobs import MAX_ATTEMPTS, Arm, CandidateState, JobKind
from zoo.schemas import METRICS, Limit, SearchRequest, parse_request
from zoo.spec import Architecture

CHECKPOINT_SHARE = 0.05
"""At most this share of the time goes into checkpoints; big ones are written less often."""

METRICS_S = 2.0
"""What a method reports goes into the job's log at most this often."""

CAPPED_TRIES = 16
"""Derived networks priced at most before a search says that its limits are not met."""

SPARE_WINNERS = 2
"""Next best ones, kept in case the training of a winner fails."""

BASELINE_CAP = 10_000
"""Candidates of a baseline whose budget is time."""


@dataclass
class _State:
    """What a checkpoint holds."""

    phase: str = "search"
    best: list[Any] | None = None
    search: Any = None
    baseline: Any = None
    numbers: dict[str, int] = field(default_factory=lambda: {"search": 0, "baseline": 0})
    memories: dict[str, Any] = field(default_factory=dict)
    spent_s: float = 0.0
    steps: int = 0
    winners: int = 0
    training: dict[str, Any] | None = None


def run(context: JobContext) -> Mapping[str, Json]:
    """Run a search to its end and return its result (see ``Job.result``).

    Beside ``front``, ``winners`` and ``savings`` it has ``latency`` where candidates were
    priced from a table: which one, and of what device.

    Raises:
        JobStoppedError: It was told to stop; the next run goes on from the checkpoint.
        InfeasibleError: No candidate could be evaluated, or no winner trained.
        TrainerError: A method that trains kept crashing.
    """
    request = cast(SearchRequest, parse_request(JobKind.SEARCH, context.job.spec))
    return _Search(context, request, load_facts(context, request.data)).run()


class _Search:
    def __init__(self, context: JobContext, request: SearchRequest, facts: Facts) -> None:
        self._context = context
        self._session = context.session
        self._request = request
        self._facts = facts
        self._space = make_space(request.space.name, request.space.params)
        check_method(request.method.name, request.method.params)
        self._state = self._load()
        ledger = Ledger.of(context.store.jobs.candidates(context.job.id))
        self._scorers = {
            arm: Scorer(
                context,
                request,
                facts,
                ledger,
                self,
                arm=arm,
                next_number=self._state.numbers[arm],
                memory=self._state.memories.get(arm),
            )
            for arm in (Arm.SEARCH, Arm.BASELINE)
        }
        self._trains = bool(getattr(method_class(request.method.name), "trains", False))
        # The first step of every attempt is saved at once, so that it counts as progress.
        self._save_at = 0.0
        self._told_at = 0.0

    def run(self) -> Mapping[str, Json]:
        best = self._search()
        if self._request.baseline:
            self._baseline()
        winners = self._publish(best)
        result: dict[str, Json] = {
            "front": self._front(Arm.SEARCH),
            "winners": winners,
            "savings": dict(self._context.store.jobs.savings(self._context.job.id)),
        }
        if priced := self._scorers[Arm.SEARCH].latencies.info():
            result["latency"] = priced
        if self._request.baseline:
            result["baseline_front"] = self._front(Arm.BASELINE)
        return result

    def _search(self) -> list[Architecture]:
        """Drive the method to its end and return what it found, best first."""
        if self._state.best is not None:
            return [Architecture.from_json(item) for item in self._state.best]
        source = self._scorers[Arm.SEARCH].latencies
        if isinstance(source, TabledLatencies) and not source.of_target:
            self._session.log(
                f"candidates are priced for {source.table.device.get('name')} from a table, but "
                "winners are measured on this search's own device",
                level="warning",
            )
        method = self._method(Arm.SEARCH, self._request.method.name, self._request.method.params)
        try:
            best = self._drive(method, Arm.SEARCH)
        finally:
            if isinstance(method, RemoteMethod):
                method.close()
        best = self._within_cap(best)
        if self._trains:
            best = self._counted_first(best)
            # Without winners there is still a front: that of the best network found.
            self._score_found(best[: max(1, self._request.winners)])
        if not best:
            failed = next(
                (c.reason for c in self._candidates(Arm.SEARCH) if c.reason), "no candidate"
            )
            raise InfeasibleError(f"no candidate could be evaluated; the first failed: {failed}")
        self._state.best = [architecture.to_json() for architecture in best]
        self._state.search = None
        self._enter("baseline" if self._request.baseline else "winners")
        return best

    def _latencies(self) -> Mapping[str, float] | None:
        """Return the latencies of layers for a method that wants them."""
        cls: Any = method_class(self._request.method.name)
        params, limits = self._request.method.params, self._request.limits
        if not hasattr(cls, "wants_latencies") or not cls.wants_latencies(params, limits):
            return None
        found = self._scorers[Arm.SEARCH].latencies.layers()
        if found is None:
            self._session.log(
                "the target device is another worker's: layers are priced by a roofline, and "
                "derived networks measured there",
                level="warning",
            )
        return found

    def _cap_ms(self) -> float | None:
        """Return the latency that a method promised not to exceed."""
        cls: Any = method_class(self._request.method.name)
        if not hasattr(cls, "caps_latency") or not cls.caps_latency(self._request.method.params):
            return None
        return next((it.max for it in self._request.limits if it.metric == "latency_ms"), None)

    def _wanted(self, arm: Arm) -> int:
        """Return how many networks to ask of the method in the end."""
        count = self._request.winners + SPARE_WINNERS
        priced = self._cap_ms() is not None or (self._trains and self._counted_limits())
        return count + CAPPED_TRIES if arm is Arm.SEARCH and priced else count

    def _within_cap(self, found: list[Architecture]) -> list[Architecture]:
        """Return what meets the cap when measured, of a method that promised to keep one.

        Raises:
            InfeasibleError: Nothing that was derived does.
        """
        cap_ms = self._cap_ms()
        if cap_ms is None or not found:
            return found
        scorer, kept, least = self._scorers[Arm.SEARCH], [], math.inf
        for architecture in found:
            latency_ms = scorer.latency_ms(architecture)
            least = min(least, latency_ms)
            if latency_ms <= cap_ms:
                kept.append(architecture)
            else:
                self._session.log(f"{latency_ms:.4g} ms measured, above the cap of {cap_ms:g} ms")
            if len(kept) == self._request.winners + SPARE_WINNERS:
                break
        if not kept:
            raise InfeasibleError(
                f"no derived network has latency_ms of at most {cap_ms:g}: the smallest reachable "
                f"measured {least:.6g} ms on {scorer.target.name}"
            )
        return kept

    def _counted_limits(self) -> list[Limit]:
        return [limit for limit in self._request.limits if limit.metric in COUNTED]

    def _counted_first(self, found: list[Architecture]) -> list[Architecture]:
        """Prefer what keeps the limits: few methods that train look at them."""
        limits, wanted = self._counted_limits(), self._request.winners + SPARE_WINNERS
        if not limits:
            return found
        cost = self._scorers[Arm.SEARCH].cost
        ordered, excess = limits_first(found, limits, cost, wanted=wanted)
        if excess:
            self._session.log(
                f"none of {len(found)} derived networks keeps the limits; the nearest exceeds them "
                f"by {excess:.2g} of the bound: search with a method that keeps limits",
                level="warning",
            )
        return ordered

    def _score_found(self, found: list[Architecture]) -> None:
        """Score what a gradient method derived as any candidate, so that fronts compare."""
        for architecture in found:
            try:
                self._scorers[Arm.SEARCH].evaluate(architecture)
            except TrainerError as error:
                self._session.log(f"a derived network failed: {error}", level="warning")

    def _baseline(self) -> None:
        """Random search with the candidates, or the device time, that the search had."""
        if self._state.phase != "baseline":
            return
        count = BASELINE_CAP if self._trains else len(self._candidates(Arm.SEARCH))
        method = self._method(Arm.BASELINE, "random", {"candidates": count})
        self._drive(method, Arm.BASELINE, budget_s=self._state.spent_s if self._trains else None)
        self._state.baseline = None
        self._enter("winners")

    def _method(self, arm: Arm, name: str, params: Mapping[str, Any]) -> SearchMethod:
        request = self._request
        if arm is Arm.SEARCH and self._trains:
            return RemoteMethod(
                self._context,
                request,
                step_s=self._session.timing.step_s,
                latencies=self._latencies(),
            )
        method_context = MethodContext(
            space=self._space,
            seed=request.seed,
            evaluator=self._scorers[arm],
            objectives=request.objectives,
            limits=request.limits,
            fresh=self._scorers[arm].fresh if request.max_proposal_attempts > 1 else None,
        )
        return make_method(name, params, method_context)

    def _drive(
        self, method: SearchMethod, arm: Arm, *, budget_s: float | None = None
    ) -> list[Architecture]:
        """Step until the method, or its budget of device time, is done; return its best.

        After a fault of the trainer it goes on from the last checkpoint, whatever was
        asked of the method; only a checkpoint that was reached makes up for the fault.
        """
        pace = _Pace()
        faults, ready = 0, False
        while True:
            try:
                if not ready:
                    self._restore(method, arm)
                    ready = True
                if self._session.stop in (Stop.PAUSE, Stop.HAND_BACK):
                    self._save(method, arm)
                self._session.check()
                self._context.help()
                if self._step(method, arm, pace, budget_s):
                    return method.best(self._wanted(arm))
                if time.monotonic() > self._save_at:
                    self._save(method, arm)
                    faults = 0
            except (TrainerCrashError, TrainerTimeoutError) as error:
                faults += 1
                if faults == MAX_ATTEMPTS:
                    raise type(error)(f"{error} ({faults} times at the same step)") from error
                self._session.faults += 1
                self._session.log(f"{error}; going on from the last checkpoint", level="warning")
                self._save_at, ready = 0.0, False

    def _restore(self, method: SearchMethod, arm: Arm) -> None:
        """Bring the method to where the last checkpoint was written."""
        saved = self._state.search if arm is Arm.SEARCH else self._state.baseline
        if isinstance(method, RemoteMethod):
            method.open(saved)
        elif saved is not None:
            method.load_state_dict(copy.deepcopy(saved))

    def _step(self, method: SearchMethod, arm: Arm, pace: _Pace, budget_s: float | None) -> bool:
        """Take one step, report it, and say whether it was the last."""
        started = time.monotonic()
        report = method.step()
        if arm is Arm.SEARCH:
            self._state.spent_s += time.monotonic() - started
        self._state.steps += 1
        if budget_s is None:
            eta_s = pace.eta_s(report.step, report.total)
            self._tell(report, arm, eta_s)
            self._log_metrics(report, arm, report.step, eta_s)
            return report.done
        spent_s = min(self._scorers[arm].spent_s, budget_s)
        self._tell_spent(report, spent_s, budget_s)
        self._log_metrics(report, arm, round(spent_s), budget_s - spent_s)
        return report.done or spent_s >= budget_s

    def _log_metrics(self, report: StepReport, arm: Arm, step: int, eta_s: float | None) -> None:
        """Put what the method reports into the job's log now and then, and at its end."""
        metrics = numbers(report.metrics)
        now = time.monotonic()
        if not metrics or (now - self._told_at < METRICS_S and not report.done):
            return
        self._told_at = now
        data: dict[str, Json] = {"kind": "metrics", "phase": str(arm), "step": step}
        data |= {"eta_s": None if eta_s is None else round(eta_s, 1), "metrics": dict(metrics)}
        self._session.log(report.message, data=data)

    def _tell(self, report: StepReport, arm: Arm, eta_s: float | None) -> None:
        self._session.progress(
            step=report.step,
            total=report.total,
            message=report.message,
            phase=str(arm),
            eta_s=eta_s,
            metrics=report.metrics,
        )

    def _tell_spent(self, report: StepReport, spent_s: float, budget_s: float) -> None:
        """Report progress in seconds of the budget rather than in candidates."""
        self._session.progress(
            step=round(spent_s),
            total=round(budget_s),
            message=report.message.replace(f" of {report.total}", ""),
            phase="baseline",
            eta_s=budget_s - spent_s,
            metrics=report.metrics,
        )

    def _enter(self, phase: str) -> None:
        self._state.phase = phase
        self._advance()

    def _advance(self) -> None:
        """Write a checkpoint of progress that is no step of a method."""
        self._state.steps += 1
        self._count()
        self._write()

    def load(self, key: str) -> bytes | None:
        """Return the kept state of a training; see ``workers.fitting.Kept``."""
        return kept_training(self._state.training, key)

    def save(self, key: str, state: bytes) -> None:
        """Keep the state of a training; where the methods stand stays as it was last saved."""
        self._state.training = training_of(key, state)
        self._state.steps += 1
        self._write()

    def forget(self) -> None:
        self._state.training = None

    def _save(self, method: SearchMethod, arm: Arm) -> None:
        started = time.monotonic()
        # A copy, for it is written again in the middle of a later step, with a candidate's.
        remote = isinstance(method, RemoteMethod)
        state = method.state_dict() if remote else copy.deepcopy(method.state_dict())
        if arm is Arm.SEARCH:
            self._state.search = state
        else:
            self._state.baseline = state
        self._count()
        self._write()
        took = time.monotonic() - started
        self._save_at = time.monotonic() + max(
            self._session.timing.checkpoint_s, took / CHECKPOINT_SHARE
        )

    def _count(self) -> None:
        """Put where the scorers stand beside the methods' present states."""
        scorers = self._scorers.items()
        self._state.numbers = {str(arm): scorer.next_number for arm, scorer in scorers}
        memories = {str(arm): scorer.state_dict() for arm, scorer in scorers}
        self._state.memories = copy.deepcopy(memories)

    def _write(self) -> None:
        state = self._state
        digest = self._context.store.files.put(checkpoint.pack(vars(state)))
        self._context.store.jobs.save_checkpoint(
            self._context.job.id, self._session.token, digest, state.steps
        )

    def _load(self) -> _State:
        """Return the newest checkpoint that can be read, or a fresh start."""
        for step, digest in self._context.store.jobs.checkpoints(self._context.job.id):
            try:
                state = _State(**checkpoint.unpack(self._context.store.files.get(digest)))
            except (CorruptArtifactError, NotFoundError, TypeError) as error:  # or of other fields
                self._session.log(f"checkpoint {step} is unusable: {error}", level="warning")
                continue
            self._session.log(f"resumed from the checkpoint after step {step}")
            return state
        return _State()

    def _publish(self, best: list[Architecture]) -> list[Json]:
        """Train and store the best; one whose training fails gives way to the next."""
        publisher = Publisher(self._context, self._request, self._space, self._facts, self)
        winners: list[Json] = []
        failures = []
        for architecture in best:
            if len(winners) == self._request.winners:
                break
            number = len(winners)
            try:
                winners.append(publisher.publish(architecture, number))
            except TrainerError as error:
                failures.append(str(error))
                self._session.log(f"a winner could not be made: {error}", level="warning")
                continue
            if len(winners) > self._state.winners:
                self._state.winners = len(winners)
                self._advance()
        if failures and not winners:
            raise InfeasibleError(f"no winner could be made: {failures[0]}")
        if (made := len(winners)) < (asked := self._request.winners):
            text = f"{asked} winners were asked for; the {len(best)} best found made {made}"
            self._session.log(text, level="warning")
        return winners

    def _front(self, arm: Arm) -> list[Json]:
        """Return the numbers of the feasible candidates that none dominates.

        Of candidates that compute the same the last one's scores count for all: they are the
        mean of the most evaluations. What each one costs is its own.
        """
        objectives = self._request.objectives
        scored = [item for item in self._candidates(arm) if item.state is CandidateState.EVALUATED]
        last = {item.signature: item.metrics for item in scored} if self._request.reuse else {}
        metrics = {
            item.number: {
                **last.get(item.signature, item.metrics),
                **{name: it for name, it in item.metrics.items() if name in (*COUNTED, *TIMED)},
            }
            for item in scored
        }
        numbers = [
            number
            for number, found in metrics.items()
            if within(self._request.limits, found) and all(name in found for name in objectives)
        ]
        points = [[metrics[number][name] for name in objectives] for number in numbers]
        chosen = front(points, [METRICS[name] for name in objectives])
        return [numbers[int(index)] for index in chosen]

    def _candidates(self, arm: Arm) -> tuple[Any, ...]:
        return self._context.store.jobs.candidates(self._context.job.id, arm=arm)


class _Pace:
    """Estimates the time left from the steps of this run, recent ones counting more."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self._step_s: float | None = None

    def eta_s(self, step: int, total: int) -> float | None:
        now = time.monotonic()
        if self._last is not None and step > self._last[1]:
            each = (now - self._last[0]) / (step - self._last[1])
            self._step_s = each if self._step_s is None else 0.8 * self._step_s + 0.2 * each
        self._last = (now, step)
        return None if self._step_s is None else self._step_s * max(0, total - step)
