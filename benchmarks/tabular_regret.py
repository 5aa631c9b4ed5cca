"""Search methods replayed on published tables, against random search and the known optimum.

Every network of a table is trained already, so a search takes a second and its regret is
exact. Two regrets, averaged over seeds, after several numbers of candidates:

- of one objective, the accuracy that the search sees: the table's best less the best found,
  in percentage points. Beside it, of the network that the search would choose, what its
  final test accuracy lacks to the table's best.
- of two objectives: the share of the hypervolume of the table's own front that the front
  found lacks, in percent; the reference point is the worst value of each.

Keys of the JSON: ``METHOD@TABLE`` and ``METHOD@TABLE:front``; value and baseline (random
search) are the regret averaged over all numbers of candidates up to the budget, the area
under the curve; a ratio below 1 is better than random.

Run: ``BLOCKYARD_DATA=… python benchmarks/tabular_regret.py [--json]``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import report
from numpy.typing import NDArray

from nas.pareto import front, hypervolume
from nas.plugins import MethodContext, make_method, make_space
from nas.tabular import Table, open_table
from serving.runners.devices import local_devices
from zoo.canonical import Json
from zoo.errors import BlockyardError
from zoo.spec import METRICS, Architecture, Evaluation

TABLES: dict[str, dict[str, Any]] = {
    "nas-bench-201": {"second": "latency_ms", "device": "pixel3"},
    "nats-bench-size": {"second": "flops"},
    "nas-bench-macro": {"second": "flops"},
    "nas-bench-101": {"second": "training_energy_kwh"},
}
METHODS = ("random", "evolution", "local-search", "nsga2", "tpe")
BASELINE = "random"
MARKS = (10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, slots=True)
class LookUp:
    """The table as an evaluator, without a job around it."""

    table: Table

    def describe(self) -> dict[str, Json]:
        return {"table": self.table.digest}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        return Evaluation(metrics=self.table.scores(architecture), cost_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """The curve of one method: regret in percent after each candidate, the mean over seeds."""

    curve: NDArray[np.float64]
    final_test: float
    seconds: float

    @property
    def area(self) -> float:
        return float(self.curve.mean())


def main() -> int:
    options = parse(sys.argv[1:])
    found: dict[str, dict[str, Regret]] = {}
    try:
        for name in options.tables:
            settings = dict(TABLES[name])
            second = settings.pop("second")
            table = open_table(make_space(name), options.data, **settings)
            found[name] = {method: single(table, method, options) for method in options.methods}
            found[f"{name}:front"] = {
                method: double(table, method, ("accuracy", second), options)
                for method in options.methods
            }
            if not options.json:
                show(name, found[name], options, f"accuracy, % points; {len(table)} networks")
                show(name, found[f"{name}:front"], options, f"front with {second}, % lacking")
    except BlockyardError as error:
        print(f"tabular_regret: {error}", file=sys.stderr)
        return 1
    if options.json:
        print_json(found, options)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--data", type=Path, help="data folder; BLOCKYARD_DATA if omitted")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--candidates", type=int, default=200, help="budget of a search")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args(arguments)
    if options.data is None and os.environ.get("BLOCKYARD_DATA"):
        options.data = Path(os.environ["BLOCKYARD_DATA"])
    if BASELINE not in options.methods:
        options.methods.insert(0, BASELINE)
    return options


def search(
    table: Table, method: str, objectives: tuple[str, ...], seed: int, candidates: int
) -> list[int]:
    """Return the rows that a search evaluated, in its order."""
    context = MethodContext(
        space=table.space, seed=seed, evaluator=LookUp(table), objectives=objectives
    )
    stepper = make_method(method, {"candidates": candidates}, context)
    return [
        table.row(scored.architecture)
        for _ in range(candidates)
        for scored in stepper.step().scored
    ]


def single(table: Table, method: str, options: argparse.Namespace) -> Regret:
    started = time.perf_counter()
    accuracy, truth = table.metrics["accuracy"], table.truth
    curves, finals = [], []
    for seed in range(options.seeds):
        rows = search(table, method, ("accuracy",), seed, options.candidates)
        curves.append(accuracy.max() - np.maximum.accumulate(accuracy[rows]))
        chosen = rows[int(accuracy[rows].argmax())]
        finals.append(100 * float(truth.max() - truth[chosen]))
    return Regret(
        curve=100 * np.mean(curves, axis=0),
        final_test=mean(finals),
        seconds=(time.perf_counter() - started) / options.seeds,
    )


def double(
    table: Table, method: str, objectives: tuple[str, str], options: argparse.Namespace
) -> Regret:
    started = time.perf_counter()
    directions = [METRICS[name] for name in objectives]
    points = np.stack([table.metrics[name] for name in objectives], axis=1)
    best_is_high = np.array(directions) == "maximize"
    worst = np.where(best_is_high, points.min(axis=0), points.max(axis=0))
    whole = hypervolume(points[table.front(objectives)], worst, directions)
    curves = []
    for seed in range(options.seeds):
        rows = search(table, method, objectives, seed, options.candidates)
        curve, kept, volume = [], points[:0], 0.0
        for row in rows:
            if not (kept == points[row]).all(axis=1).any():
                kept = np.concatenate((kept, points[row][None]))
                kept = kept[front(kept, directions)]
                volume = hypervolume(kept, worst, directions)
            curve.append(1 - volume / whole)
        curves.append(curve)
    mean_curve = 100 * np.mean(curves, axis=0)
    return Regret(
        curve=mean_curve,
        final_test=float(mean_curve[-1]),
        seconds=(time.perf_counter() - started) / options.seeds,
    )


def marks(options: argparse.Namespace) -> list[int]:
    return [*(mark for mark in MARKS if mark < options.candidates), options.candidates]


def show(name: str, regrets: dict[str, Regret], options: argparse.Namespace, what: str) -> None:
    columns = marks(options)
    header = ("method", *(str(mark) for mark in columns), "mean", "final test", "s/search")
    rows = [
        (
            method,
            *(f"{regret.curve[mark - 1]:.3f}" for mark in columns),
            f"{regret.area:.3f}",
            f"{regret.final_test:.3f}",
            f"{regret.seconds:.2f}",
        )
        for method, regret in regrets.items()
    ]
    report.print_table(f"{name}: regret in {what}; {options.seeds} seeds", header, rows)


def print_json(found: dict[str, dict[str, Regret]], options: argparse.Namespace) -> None:
    results = {}
    for name, regrets in found.items():
        for method, regret in regrets.items():
            if method != BASELINE:
                key = f"{method}@{name}"
                results[key] = report.result(regret.area, regrets[BASELINE].area)
    columns = marks(options)
    device = next(item for item in local_devices() if item.name == "cpu")
    report.print_json(
        "tabular_regret",
        device=device.to_json(),
        versions=report.versions("blockyard", "optuna", "numpy"),
        results=results,
        details={
            "candidates": options.candidates,
            "seeds": options.seeds,
            "marks": columns,
            "curves": {
                f"{method}@{name}": [round(float(regret.curve[mark - 1]), 4) for mark in columns]
                for name, regrets in found.items()
                for method, regret in regrets.items()
            },
            "final_test_regret": {
                f"{method}@{name}": round(regret.final_test, 4)
                for name, regrets in found.items()
                for method, regret in regrets.items()
                if not name.endswith(":front")
            },
        },
    )


if __name__ == "__main__":
    sys.exit(main())
