"""Sampling methods: legal proposals, limits, failures, and histories that continue exactly."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from torch import nn

from nas.checkpoint import pack, unpack
from nas.methods.evolution import RegularizedEvolution
from nas.methods.local_search import LocalSearch
from nas.methods.ranking import Ranked, covered, order, violations
from nas.methods.sampling import Nsga2, RandomSearch, Tpe
from nas.methods.stepping import Sampling, repair
from nas.pareto import front, hypervolume
from nas.plugins import MethodContext
from nas.protocols import StepReport
from nas.spaces.darts import DartsSpace
from zoo.errors import ConflictError, InvalidInputError, TrainerCrashError
from zoo.rng import derive_seed
from zoo.schemas import Limit
from zoo.spec import Architecture, BlockSpec, Evaluation, TensorSpec

METHODS = [Nsga2, Tpe, RandomSearch, RegularizedEvolution, LocalSearch]
SPACE = DartsSpace(cells=2, channels=4, nodes=2)
LIMIT = Limit(metric="latency_ms", max=3.2)


@dataclass
class Table:
    """A deterministic evaluator: every choice has its price and its worth."""

    cardinalities: tuple[int, ...] = SPACE.cardinalities()
    fails: frozenset[int] = frozenset()
    seen: list[Architecture] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {"evaluator": "table"}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        self.seen.append(architecture)
        if len(self.seen) - 1 in self.fails:
            raise TrainerCrashError("signal 11")
        return self.score(architecture)

    def score(self, architecture: Architecture) -> Evaluation:
        accuracy, latency = 0.0, 1.0
        for at, choice in enumerate(architecture.choices):
            worth = random.Random(derive_seed(0, "worth", at, choice)).random()
            accuracy += worth / len(architecture.choices)
            latency += random.Random(derive_seed(0, "price", at, choice)).random() * worth
        return Evaluation(metrics={"accuracy": accuracy, "latency_ms": latency}, cost_s=1.0)


def make(cls: Any, evaluator: Any, candidates: int = 24, **changes: Any) -> Sampling:
    context = MethodContext(space=SPACE, seed=3, evaluator=evaluator, **changes)
    method = cls(context, candidates=candidates)
    assert isinstance(method, Sampling)
    return method


def run(method: Sampling) -> list[StepReport]:
    reports = [method.step()]
    while not reports[-1].done:
        reports.append(method.step())
    return reports


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("limits", [(), (LIMIT,)], ids=["free", "limited"])
def test_an_interrupted_search_equals_an_undisturbed_one(cls: Any, limits: Any) -> None:
    fails = frozenset({2, 9, 17})
    undisturbed = make(cls, Table(fails=fails), limits=limits)
    whole = run(undisturbed)
    table = Table(fails=fails)
    method = make(cls, table, limits=limits)
    pieces: list[StepReport] = []
    for stop in (1, 4, 5, 11, 12, 20, 24):
        while len(pieces) < stop:
            pieces.append(method.step())
        state = unpack(pack(method.state_dict()))
        method = make(cls, table, limits=limits)
        method.load_state_dict(state)
    assert pieces == whole
    assert method.best(24) == undisturbed.best(24)
    assert method.state_dict() == undisturbed.state_dict()


@pytest.mark.parametrize("cls", METHODS)
def test_a_step_that_breaks_off_leaves_no_trace(cls: Any) -> None:
    """Not a failed candidate: the caller lost its lease or was told to stop."""

    class Breaking(Table):
        broken = False

        def evaluate(self, architecture: Architecture) -> Evaluation:
            if len(self.seen) in (6, 13) and not self.broken:
                self.broken = True
                raise KeyboardInterrupt
            self.broken = False
            return super().evaluate(architecture)

    undisturbed = run(make(cls, Table()))
    method = make(cls, Breaking())
    reports: list[StepReport] = []
    interrupted = 0
    while len(reports) < 24:
        try:
            reports.append(method.step())
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 2
    assert reports == undisturbed


@pytest.mark.parametrize("cls", METHODS)
def test_a_failed_candidate_is_reported_and_the_search_goes_on(cls: Any) -> None:
    reports = run(make(cls, Table(fails=frozenset({0, 5}))))
    failed = [report.scored[0] for report in reports if report.scored[0].evaluation is None]
    assert [scored.reason for scored in failed] == ["signal 11", "signal 11"]
    assert not any(scored.feasible for scored in failed)
    assert len(reports) == 24
    assert reports[-1].metrics["failed"] == 2
    assert "failed: signal 11" in reports[0].message


def test_a_score_that_is_not_finite_is_a_failure() -> None:
    class Broken(Table):
        def score(self, architecture: Architecture) -> Evaluation:
            return Evaluation(metrics={"accuracy": float("nan"), "latency_ms": 1.0}, cost_s=0.0)

    scored = make(Tpe, Broken()).step().scored[0]
    assert scored.evaluation is None
    assert scored.reason == "accuracy is nan"


@pytest.mark.parametrize("cls", METHODS)
def test_every_proposal_is_legal_and_in_the_space(cls: Any) -> None:
    table = Table()
    run(make(cls, table))
    for architecture in table.seen:
        SPACE.check(architecture)
    assert len(set(table.seen)) > 5


@pytest.mark.parametrize("cls", METHODS)
def test_best_leads_with_the_feasible_front(cls: Any) -> None:
    table = Table()
    method = make(cls, table, limits=(LIMIT,))
    reports = run(method)
    scores = [table.score(architecture).metrics for architecture in dict.fromkeys(table.seen)]
    points = np.array([(s["accuracy"], s["latency_ms"]) for s in scores if s["latency_ms"] <= 3.2])
    assert 0 < len(points) < len(scores)
    best = [table.score(architecture).metrics for architecture in method.best(100)]
    assert len(best) == len(scores)
    expected = points[front(points, ["maximize", "minimize"])]
    leading = [(s["accuracy"], s["latency_ms"]) for s in best[: len(expected)]]
    assert sorted(leading) == sorted(map(tuple, expected.tolist()))
    assert leading[0] == max(leading)
    assert all(s["latency_ms"] <= 3.2 for s in best[: len(points)])
    over = [s["latency_ms"] for s in best[len(points) :]]
    assert over == sorted(over)
    flags = [report.scored[0].feasible for report in reports]
    assert flags == [table.score(a).metrics["latency_ms"] <= 3.2 for a in table.seen]


@pytest.mark.parametrize("cls", [Nsga2, Tpe, RegularizedEvolution])
def test_searching_beats_random_search_on_equal_budget(cls: Any) -> None:
    def volume(chosen: Any) -> float:
        total = 0.0
        for seed in range(4):
            table = Table()
            context = MethodContext(space=SPACE, seed=seed, evaluator=table)
            run(chosen(context, candidates=60))
            scores = [table.score(architecture).metrics for architecture in table.seen]
            points = [(s["accuracy"], s["latency_ms"]) for s in scores]
            total += hypervolume(points, (0.0, 10.0), ["maximize", "minimize"])
        return total

    assert volume(cls) > 1.02 * volume(RandomSearch)


@pytest.mark.parametrize("cls", METHODS)
def test_the_reported_hypervolume_never_falls(cls: Any) -> None:
    volumes = [report.metrics["hypervolume"] for report in run(make(cls, Table()))]
    assert volumes == sorted(volumes)
    assert volumes[-1] > 0


def test_a_step_after_the_last_is_a_conflict() -> None:
    method = make(RandomSearch, Table(), candidates=1)
    assert method.step().done
    with pytest.raises(ConflictError, match="all 1 candidates"):
        method.step()


def test_seeds_make_different_searches() -> None:
    tables = [Table(), Table()]
    for seed, table in enumerate(tables):
        run(Nsga2(MethodContext(space=SPACE, seed=seed, evaluator=table), candidates=8))
    assert tables[0].seen != tables[1].seen


class Increasing:
    """Choices must strictly increase: most vectors are illegal, as with dependent choices."""

    def describe(self) -> dict[str, Any]:
        return {"name": "increasing", "params": {}}

    def cardinalities(self) -> tuple[int, ...]:
        return (9, 9, 9, 1)

    def size(self) -> int:
        return 84

    def sample(self, rng: random.Random) -> Architecture:
        return self._of((*sorted(rng.sample(range(9), 3)), 0))

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        return rng.choice(list(self.neighbours(architecture)))

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        yield self.sample(random.Random(0))

    def check(self, architecture: Architecture) -> None:
        first, second, third, _ = architecture.choices
        if not first < second < third:
            raise InvalidInputError(f"{architecture.choices} do not increase")

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        raise InvalidInputError("this space has no networks")

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        raise InvalidInputError("this space has no networks")

    def summary(self, architecture: Architecture) -> str:
        return str(architecture.choices)

    def _of(self, choices: tuple[int, ...]) -> Architecture:
        return Architecture(space=self.describe(), choices=choices)


@pytest.mark.parametrize("cls", METHODS)
def test_dependent_choices_are_repaired(cls: Any) -> None:
    space, table = Increasing(), Table()
    run(cls(MethodContext(space=space, seed=0, evaluator=table), candidates=20))
    for architecture in table.seen:
        space.check(architecture)


def test_repair_keeps_the_legal_and_is_a_function_of_the_vector() -> None:
    space = Increasing()
    assert repair(space, (1, 4, 8, 0)).choices == (1, 4, 8, 0)
    repaired = repair(space, (5, 5, 8, 0))
    space.check(repaired)
    assert repaired == repair(space, (5, 5, 8, 0))
    kept = sum(a == b for a, b in zip(repaired.choices, (5, 5, 8, 0), strict=True))
    assert kept >= 3


def ranked(*values: float, over: float = -1.0) -> Ranked:
    architecture = Architecture(space={}, choices=tuple(round(value * 100) for value in values))
    return Ranked(architecture=architecture, values=values, violations={"flops.max": over})


def test_the_order_leads_with_the_first_objective_then_the_loneliest() -> None:
    best, lonely, crowded, cheap = (
        ranked(0.9, 10.0),
        ranked(0.7, 4.0),
        ranked(0.6, 3.6),
        ranked(0.5, 1.0),
    )
    dominated = ranked(0.4, 9.0)
    worse, worst = ranked(1.0, 0.1, over=0.2), ranked(1.0, 0.2, over=0.5)
    given = [worst, crowded, dominated, cheap, worse, lonely, best]
    assert order(given, ["maximize", "minimize"]) == [
        best, cheap, lonely, crowded, dominated, worse, worst,
    ]  # fmt: skip


def test_violations_are_relative_and_signed() -> None:
    evaluation = Evaluation(metrics={"flops": 150.0, "accuracy": 0.6}, cost_s=0.0)
    limits = [Limit(metric="flops", max=100.0, min=10.0), Limit(metric="accuracy", min=0.5)]
    found = violations(evaluation, limits)
    assert found == pytest.approx({"flops.max": 0.5, "flops.min": -14.0, "accuracy.min": -0.2})
    exact = violations(evaluation, [Limit(metric="flops", max=150.0)])
    assert exact == {"flops.max": 0.0}
    zero = violations(evaluation, [Limit(metric="flops", max=0.0)])
    assert zero == {"flops.max": 150.0}


def test_what_is_infeasible_covers_nothing() -> None:
    assert covered([ranked(0.9, 1.0, over=1.0)], ["maximize", "minimize"]) == 0.0
    assert covered([ranked(0.5, 2.0), ranked(0.2, 5.0)], ["maximize", "minimize"]) == pytest.approx(
        0.9
    )


def test_a_metric_that_is_not_reported_is_named() -> None:
    method = make(Tpe, Table(), objectives=("accuracy", "flops"))
    with pytest.raises(InvalidInputError, match="objective 'flops'; it has accuracy, latency_ms"):
        method.step()
    limited = make(Tpe, Table(), limits=(Limit(metric="peak_bytes", max=1.0),))
    with pytest.raises(InvalidInputError, match="limit 'peak_bytes'"):
        limited.step()


@pytest.mark.parametrize(
    ("cls", "params", "message"),
    [
        (RandomSearch, {"candidates": 0}, "candidates is 0"),
        (RandomSearch, {"candidates": True}, "candidates is True"),
        (Nsga2, {"population": 1}, "population"),
        (Nsga2, {"crossover": 2.0}, "crossover"),
        (Nsga2, {"mutation": -1.0}, "mutation"),
        (RegularizedEvolution, {"population": 0}, "population is 0"),
        (RegularizedEvolution, {"tournament": -1}, "tournament is -1"),
    ],
)
def test_wrong_parameters_are_refused(cls: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        cls(MethodContext(space=SPACE, evaluator=Table()), **params)


def test_a_state_of_another_method_or_a_larger_budget_is_refused() -> None:
    method = make(Tpe, Table())
    run(method)
    with pytest.raises(InvalidInputError, match="of 'Tpe', not of 'Nsga2'"):
        make(Nsga2, Table()).load_state_dict(method.state_dict())
    with pytest.raises(InvalidInputError, match="raise candidates"):
        make(Tpe, Table(), candidates=5).load_state_dict(method.state_dict())


def test_optuna_stays_silent_and_the_users_logging_as_it_was(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("optuna.storages._in_memory")
    before = (logger.level, list(logger.filters), logging.getLogger("optuna").level)
    with caplog.at_level(logging.DEBUG):
        run(make(Nsga2, Table(), candidates=6))
    assert caplog.records == []
    assert capfd.readouterr().err == ""
    assert (logger.level, list(logger.filters), logging.getLogger("optuna").level) == before
