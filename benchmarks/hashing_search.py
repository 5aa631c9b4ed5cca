"""How many candidates a search sees for the evaluations that it pays for.

Searches are replayed on published tables; the table's row stands for a training. Three
searches of one budget, cold, one a seed: without a cache every candidate is evaluated; with
one by canonical identity, those of the same choices are not; with the functional hash, none
that computes what another did. Cells of NAS-Bench-101 have a published hash besides, equal
for isomorphic ones. A cache answers with what the first of its key scored
(``Deduping`` with one repeat: a table's scores do not vary). Evolution has the settings of
the paper's notebook, a population of 100 and tournaments of 10.

Candidates are counted until one more would cost more than the budget, and at most
``MOST`` for an evaluation: a search that has converged proposes nothing new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.dedup import Deduping, DedupingEvaluator, Policy
from nas.hashing import Hasher
from nas.pareto import front
from nas.plugins import MethodContext, make_method, make_space
from nas.spaces.nasbench101 import NasBench101Space
from nas.tabular import Table, open_table
from zoo.canonical import Json
from zoo.spec import METRICS, Architecture, Evaluation, TensorSpec

TABLES: dict[str, dict[str, Any]] = {
    "nas-bench-201": {"second": "latency_ms", "device": "pixel3"},
    "nas-bench-101": {"second": "training_energy_kwh"},
}
METHODS: dict[str, dict[str, int]] = {
    "evolution": {"population": 100, "tournament": 10},
    "nsga2": {"population": 50},
    "random": {},
}
BUDGETS: dict[str, tuple[int, ...]] = {
    "nas-bench-201": (100, 200, 300, 500),
    "nas-bench-101": (50, 100, 200),
}
"""Of evaluations. The small cells of NAS-Bench-101 have few functions."""

MOST = 20
CHECKED = 300
"""Candidates of the search whose front is compared with and without a cache."""

Key = Callable[[Architecture], str]


@dataclass(frozen=True, slots=True)
class LookUp:
    """The table as an evaluator, without a job around it.

    With ``first``, an architecture scores what the first of its function does; only its cost
    (``own``) is its own. That is an evaluator which the function determines.
    """

    table: Table
    first: Callable[[Architecture], Architecture] | None = None
    own: tuple[str, ...] = ()

    def describe(self) -> dict[str, Json]:
        return {"table": self.table.digest}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        scores = self.table.scores(architecture)
        if self.first is not None:
            shared = self.table.scores(self.first(architecture))
            scores = shared | {name: scores[name] for name in self.own}
        return Evaluation(metrics=scores, cost_s=1.0)


@dataclass(frozen=True, slots=True)
class Counted:
    """Cost is counted for every candidate anew: no cache answers for it."""

    table: Table
    cached: DedupingEvaluator
    own: tuple[str, ...]

    def describe(self) -> dict[str, Json]:
        return self.cached.describe()

    def evaluate(self, architecture: Architecture) -> Evaluation:
        found = self.cached.evaluate(architecture)
        scores = self.table.scores(architecture)
        metrics = dict(found.metrics) | {name: scores[name] for name in self.own}
        return Evaluation(metrics=metrics, cost_s=found.cost_s)


class Functions:
    """The functional hash of a table's architectures, each computed once."""

    def __init__(self, table: Table, inputs: TensorSpec, num_classes: int) -> None:
        self._hasher = Hasher(table.space, inputs=inputs, num_classes=num_classes)
        self._known: dict[tuple[int, ...], str] = {}
        self._first: dict[str, Architecture] = {}

    def key(self, architecture: Architecture) -> str:
        if architecture.choices not in self._known:
            self._known[architecture.choices] = self._hasher.hashes([architecture])[0]
        return self._known[architecture.choices]

    def first(self, architecture: Architecture) -> Architecture:
        """Return the first architecture of the same function that was asked for."""
        return self._first.setdefault(self.key(architecture), architecture)


def open_tables(names: Sequence[str], root: Path) -> dict[str, Table]:
    """Read the tables, each with its second objective."""
    opened = {}
    for name in names:
        settings = {key: value for key, value in TABLES[name].items() if key != "second"}
        opened[name] = open_table(make_space(name), root, **settings)
    return opened


def objectives(name: str, method: str) -> tuple[str, ...]:
    """Return what is searched for: accuracy; for NSGA-II and random search the cost too."""
    return ("accuracy",) if method == "evolution" else ("accuracy", TABLES[name]["second"])


def candidates(
    name: str, table: Table, method: str, key: Key, *, seed: int, budgets: Sequence[int]
) -> tuple[list[int], dict[str, int]]:
    """Return how many candidates a search with a cache saw within each budget, and the counts.

    Args:
        name: Of the table.
        table: What is looked up.
        method: One of ``METHODS``.
        key: Candidates of one key are evaluated once.
        seed: Of the search.
        budgets: Evaluations, ascending.
    """
    wanted = objectives(name, method)
    deduping = Deduping(key, Policy(repeats=1), seed=seed)
    evaluator = Counted(table, DedupingEvaluator(lambda _: LookUp(table), deduping), wanted[1:])
    context = MethodContext(space=table.space, seed=seed, evaluator=evaluator, objectives=wanted)
    most = MOST * budgets[-1]
    stepper = make_method(method, {"candidates": most, **METHODS[method]}, context)
    seen: list[int] = []
    for number in range(most):
        stepper.step()
        while len(seen) < len(budgets) and deduping.counts["miss"] > budgets[len(seen)]:
            seen.append(number)
        if len(seen) == len(budgets):
            break
    return [*seen, *[most] * (len(budgets) - len(seen))], deduping.counts


def ratios(
    name: str, table: Table, method: str, functions: Functions, seeds: int
) -> dict[str, Any]:
    """Return candidates an evaluation by budget, for both caches: mean and spread over seeds."""
    budgets = BUDGETS[name]
    found: dict[str, Any] = {"budgets": list(budgets), "no_cache": [1.0] * len(budgets)}
    keys: dict[str, Key] = {"canonical": lambda item: item.id, "functional": functions.key}
    if isinstance(table.space, NasBench101Space):
        keys["isomorphic"] = table.space.model_hash
    for arm, key in keys.items():
        runs = [
            candidates(name, table, method, key, seed=seed, budgets=budgets)
            for seed in range(seeds)
        ]
        by_budget = [[seen[at] / budget for seen, _ in runs] for at, budget in enumerate(budgets)]
        found[arm] = [round(mean(values), 3) for values in by_budget]
        found[f"{arm}_spread"] = [
            round(stdev(values), 3) if seeds > 1 else 0.0 for values in by_budget
        ]
        hits = [counts["hit"] / max(1, sum(counts.values())) for _, counts in runs]
        found[f"{arm}_hit_rate"] = round(mean(hits), 3)
        found[f"{arm}_at_most"] = sum(seen[-1] >= MOST * budgets[-1] for seen, _ in runs)
    return found


def same_front(name: str, table: Table, method: str, functions: Functions, seed: int) -> bool:
    """Return whether a search proposes and finds the same with the cache and without it.

    The evaluator is one that the function determines, so nothing may differ: neither a
    candidate, nor a score, nor the front.
    """
    wanted = objectives(name, method)
    plain = LookUp(table, functions.first, wanted[1:])
    deduping = Deduping(functions.key, Policy(repeats=1), seed=seed)
    cached = Counted(table, DedupingEvaluator(lambda _: plain, deduping), wanted[1:])
    histories = []
    for evaluator in (plain, cached):
        context = MethodContext(
            space=table.space, seed=seed, evaluator=evaluator, objectives=wanted
        )
        stepper = make_method(method, {"candidates": CHECKED, **METHODS[method]}, context)
        scored = [item for _ in range(CHECKED) for item in stepper.step().scored]
        points = np.array(
            [[item.evaluation.metrics[n] for n in wanted] for item in scored if item.evaluation]
        )
        histories.append(([item.architecture.id for item in scored], points))
    (proposed, points), (proposed_again, points_again) = histories
    return (
        deduping.counts["hit"] > 0
        and proposed == proposed_again
        and np.array_equal(_front(points, wanted), _front(points_again, wanted))
    )


def _front(points: NDArray[np.float64], wanted: Sequence[str]) -> NDArray[np.float64]:
    return points[front(points, [METRICS[name] for name in wanted])]


def all_ratios(
    root: Path, seeds: int, *, inputs: TensorSpec, num_classes: int
) -> dict[str, dict[str, Any]]:
    """Return ``ratios`` and ``same_front`` for every method on every table."""
    found: dict[str, dict[str, Any]] = {}
    for name, table in open_tables(list(TABLES), root).items():
        functions = Functions(table, inputs, num_classes)
        for method in METHODS:
            found[f"{method}@{name}"] = ratios(name, table, method, functions, seeds) | {
                "same_front": same_front(name, table, method, functions, seed=0)
            }
    return found
