"""Candidates of searches, grouped into what a chart draws: points, fronts and winners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ui.formats import short
from ui.fronts import costs, front

Row = Mapping[str, Any]
"""A candidate as ``zoo.jobs.Candidate.to_json`` gives it."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a")
"""Okabe and Ito's palette: distinct for colour-blind readers too."""

BASELINE_COLOUR = "#8a8f98"
INFEASIBLE_COLOUR = "#c3c7cd"
FEASIBLE_COLOUR = "#009e73"
WINNER_COLOUR = "#f0c808"
INK = "#30343b"

OTHERS_JOB = "another user's job"


@dataclass(frozen=True, kw_only=True)
class Series:
    """The candidates of one job and arm that have both metrics, ready to draw."""

    name: str
    colour: str
    baseline: bool
    rows: tuple[Row, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    front: tuple[int, ...] = field(default=())

    def pick(self, *, feasible: bool, reused: bool = False) -> tuple[int, ...]:
        """Return the positions of rows of one kind."""
        return tuple(
            position
            for position, row in enumerate(self.rows)
            if row["feasible"] == feasible and (not feasible or was_reused(row) == reused)
        )


def was_reused(row: Row) -> bool:
    """Say whether a candidate's evaluation was one that was there."""
    return bool(row["reused_from"] or row.get("reused"))


def origin(row: Row) -> str:
    """Name the job whose evaluation was reused; another user's has no name here."""
    return short(row["reused_from"]) if row["reused_from"] else OTHERS_JOB


def direction(name: str) -> str:
    """Return whether a metric is to be maximised or minimised; unknown ones are minimised."""
    from zoo.schemas import METRICS

    return METRICS.get(name, "minimize")


def series_of(
    candidates: Iterable[Row], *, x: str, y: str, names: Mapping[str, str] | None = None
) -> list[Series]:
    """Group candidates by job and arm and find the front of each group.

    Winners are drawn apart (``winners_of``); failed candidates have no metrics and are
    left to the table. Only feasible candidates can be on a front.
    """
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in candidates:
        if row["arm"] != "winner" and x in row["metrics"] and y in row["metrics"]:
            groups.setdefault((row["job"], row["arm"] == "baseline"), []).append(row)
    jobs = list(dict.fromkeys(job for job, _ in groups))
    result = []
    for (job, baseline), rows in groups.items():
        title = (names or {}).get(job, short(job))
        only = len(jobs) == 1
        colour = BASELINE_COLOUR if baseline else COLOURS[jobs.index(job) % len(COLOURS)]
        suffix = "random search" if baseline else "search"
        xs = tuple(float(row["metrics"][x]) for row in rows)
        ys = tuple(float(row["metrics"][y]) for row in rows)
        feasible = [position for position, row in enumerate(rows) if row["feasible"]]
        best = front(
            costs([xs[position] for position in feasible], direction(x)),
            costs([ys[position] for position in feasible], direction(y)),
        )
        result.append(
            Series(
                name=suffix if only else f"{title} · {suffix}" if baseline else title,
                colour=colour,
                baseline=baseline,
                rows=tuple(rows),
                x=xs,
                y=ys,
                front=tuple(feasible[int(index)] for index in best),
            )
        )
    return sorted(result, key=lambda item: not item.baseline)


def winners_of(candidates: Iterable[Row], *, x: str, y: str) -> list[Row]:
    """Return the trained winners that have both metrics."""
    return [
        row
        for row in candidates
        if row["arm"] == "winner" and x in row["metrics"] and y in row["metrics"]
    ]


def staircase(series: Series, *, x: str, y: str) -> tuple[list[float], list[float]]:
    """Return the corners of the border between dominated and not, for a front of ``series``."""
    xs = [series.x[position] for position in series.front]
    ys = [series.y[position] for position in series.front]
    if direction(x) == "maximize":
        xs, ys = xs[::-1], ys[::-1]
    rising = direction(x) == "minimize"
    corners_x: list[float] = []
    corners_y: list[float] = []
    for index, (a, b) in enumerate(zip(xs, ys, strict=True)):
        if index:
            corners_x.append(a if rising else xs[index - 1])
            corners_y.append(ys[index - 1] if rising else b)
        corners_x.append(a)
        corners_y.append(b)
    return corners_x, corners_y
