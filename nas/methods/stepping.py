"""The loop that all sampling methods share: propose, evaluate, learn, one candidate a step."""

from __future__ import annotations

import abc
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.methods.ranking import Ranked, covered, objective_values, order, violations
from nas.plugins import MethodContext
from nas.protocols import Evaluator, Scored, SearchSpace, StepReport
from zoo.errors import ConflictError, InvalidInputError, TrainerError
from zoo.rng import derive_seed
from zoo.spec import Architecture, Evaluation

REPAIR_SAMPLES = 64
"""Legal architectures among which the nearest to an illegal proposal is taken."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished candidate; ``evaluation`` is None if it failed for ``reason``."""

    proposal: tuple[int, ...]
    architecture: Architecture
    evaluation: Evaluation | None
    reason: str | None = None


class Sampling(abc.ABC):
    """Propose, evaluate, learn: one candidate a step, until the budget is spent."""

    trains = False

    def __init__(self, context: MethodContext, candidates: int) -> None:
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
            raise InvalidInputError(f"candidates is {candidates!r}; it must be an integer >= 1")
        if context.evaluator is None:
            raise InvalidInputError(f"{type(self).__name__} needs an evaluator")
        self._context = context
        self._evaluator: Evaluator = context.evaluator
        self._candidates = candidates
        self._records: list[Record] = []
        self._scored: list[Ranked] = []
        self._refused = 0

    def step(self) -> StepReport:
        """Evaluate one candidate.

        A candidate whose evaluation fails is reported with its reason and counts.

        Raises:
            ConflictError: The budget is spent.
            InvalidInputError: The evaluator does not report an objective or limited metric.
        """
        number = len(self._records)
        if number >= self._candidates:
            raise ConflictError(f"all {self._candidates} candidates are evaluated already")
        try:
            proposal, architecture = self._propose(number)
            record = self._evaluate(proposal, architecture)
            ranked = self._rank(record)
        except BaseException:
            self._forget()
            raise
        self._tell(ranked)
        self._records.append(record)
        if ranked is not None:
            self._scored.append(ranked)
        return self._report(record, ranked)

    def best(self, k: int) -> list[Architecture]:
        """Return the ``k`` best distinct architectures, in the order of ``ranking.order``.

        Of one that was scored several times the last score counts: the mean of the most.
        """
        distinct = {ranked.architecture.id: ranked for ranked in self._scored}
        ordered = order(list(distinct.values()), self._context.directions)
        return [ranked.architecture for ranked in ordered[:k]]

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": type(self).__name__,
            "records": [
                {
                    "proposal": list(record.proposal),
                    "evaluation": record.evaluation.to_json() if record.evaluation else None,
                    "reason": record.reason,
                }
                for record in self._records
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a history.

        Raises:
            InvalidInputError: Another method wrote it, or it exceeds this budget.
        """
        if state.get("method") != type(self).__name__:
            raise InvalidInputError(
                f"the state is of {state.get('method')!r}, not of {type(self).__name__!r}"
            )
        if len(state["records"]) > self._candidates:
            raise InvalidInputError(
                f"the state holds {len(state['records'])} candidates, the budget is "
                f"{self._candidates}; raise candidates"
            )
        self._records = [self._restore(item) for item in state["records"]]
        self._scored = [r for r in map(self._rank, self._records) if r is not None]

    @abc.abstractmethod
    def _ask(self, seed: int) -> tuple[int, ...]:
        """Return one option a variable; a function of the history and ``seed`` alone.

        The seed differs for each of the proposals that were refused before in the same step;
        ``_refused`` is their number.
        """

    @abc.abstractmethod
    def _tell(self, ranked: Ranked | None) -> None:
        """Learn what the last proposal scored; ``ranked`` is None if it failed."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Undo the last ``_ask``, whose candidate never finished."""

    def _propose(self, number: int) -> tuple[tuple[int, ...], Architecture]:
        """Ask for the candidate ``number``, and under another seed while it is refused."""
        asked: list[tuple[int, ...]] = []

        def propose() -> Architecture:
            if asked:
                self._forget()
            self._refused = len(asked)
            attempt = (len(asked),) if asked else ()
            seed = derive_seed(self._context.seed, "sampling", number, *attempt)
            asked.append(self._ask(seed))
            return repair(self._context.space, asked[-1])

        fresh = self._context.fresh
        architecture = propose() if fresh is None else fresh(propose)
        return asked[-1], architecture

    def _evaluate(self, proposal: tuple[int, ...], architecture: Architecture) -> Record:
        try:
            evaluation = self._evaluator.evaluate(architecture)
        except TrainerError as error:
            return Record(
                proposal=proposal, architecture=architecture, evaluation=None, reason=str(error)
            )
        values = objective_values(evaluation, self._context.objectives)
        bad = [
            name
            for name, value in zip(self._context.objectives, values, strict=True)
            if not math.isfinite(value)
        ]
        if bad:
            reason = f"{bad[0]} is {evaluation.metrics[bad[0]]}"
            return Record(
                proposal=proposal, architecture=architecture, evaluation=None, reason=reason
            )
        return Record(proposal=proposal, architecture=architecture, evaluation=evaluation)

    def _rank(self, record: Record) -> Ranked | None:
        if record.evaluation is None:
            return None
        return Ranked(
            architecture=record.architecture,
            values=objective_values(record.evaluation, self._context.objectives),
            violations=violations(record.evaluation, self._context.limits),
        )

    def _restore(self, item: Mapping[str, Any]) -> Record:
        proposal = tuple(item["proposal"])
        return Record(
            proposal=proposal,
            architecture=repair(self._context.space, proposal),
            evaluation=Evaluation.from_json(item["evaluation"]) if item["evaluation"] else None,
            reason=item["reason"],
        )

    def _report(self, record: Record, ranked: Ranked | None) -> StepReport:
        done = len(self._records)
        everyone = self._scored
        if ranked is None:
            outcome = f"failed: {record.reason}"
        else:
            named = zip(self._context.objectives, ranked.values, strict=True)
            outcome = ", ".join(f"{name} {value:.4g}" for name, value in named)
            outcome += "" if ranked.feasible else " (outside the limits)"
        return StepReport(
            step=done,
            total=self._candidates,
            message=f"candidate {done} of {self._candidates}: {outcome}",
            metrics={
                "hypervolume": covered(everyone, self._context.directions),
                "feasible": float(sum(item.feasible for item in everyone)),
                "failed": float(done - len(everyone)),
            },
            scored=(
                Scored(
                    architecture=record.architecture,
                    evaluation=record.evaluation,
                    feasible=ranked is not None and ranked.feasible,
                    reason=record.reason,
                ),
            ),
        )


def repair(space: SearchSpace, choices: tuple[int, ...]) -> Architecture:
    """Return the architecture of ``choices``, or the nearest of some legal ones if it is none.

    A function of its arguments: nearness is the number of equal choices, and the legal
    ones are drawn from a generator seeded by ``choices``.
    """
    architecture = Architecture(space=space.describe(), choices=choices)
    try:
        space.check(architecture)
    except InvalidInputError:
        rng = random.Random(derive_seed(0, "repair", *choices))
        legal = [space.sample(rng) for _ in range(REPAIR_SAMPLES)]
        return min(
            legal,
            key=lambda other: sum(a != b for a, b in zip(choices, other.choices, strict=False)),
        )
    return architecture
