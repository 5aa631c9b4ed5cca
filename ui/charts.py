"""Charts of a search: the front, its progress and latency samples.

Candidates are plain dicts, as ``zoo.jobs.Candidate.to_json`` gives them. Pages and HTML
files use plotly, PNG files matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ui.formats import duration, label
from ui.fronts import box_of, costs, hypervolume_curve
from ui.pictures import write_front_png
from ui.series import (
    COLOURS,
    FEASIBLE_COLOUR,
    INFEASIBLE_COLOUR,
    INK,
    WINNER_COLOUR,
    Row,
    Series,
    direction,
    origin,
    series_of,
    staircase,
    was_reused,
    winners_of,
)

__all__ = [
    "front_figure",
    "histogram_figure",
    "note",
    "progress_figure",
    "write_front_html",
    "write_front_png",
]

FEASIBLE_FILL = "rgba(0, 158, 115, 0.08)"
WEBGL_FROM = 1_000
"""Number of points from which the scatter is drawn by WebGL."""


def front_figure(
    candidates: Iterable[Row],
    *,
    x: str = "latency_ms",
    y: str = "accuracy",
    limits: Sequence[Row] = (),
    names: Mapping[str, str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
) -> Any:
    """Draw candidates of one or several jobs and the front of each as a plotly figure.

    Args:
        candidates: Of any jobs and arms; each point carries ``[job, arm, number]`` as
            custom data, so that a selection can be looked up again.
        x: Metric of the horizontal axis.
        y: Metric of the vertical axis.
        limits: ``{"metric", "max", "min"}``; the feasible region on the two axes is shaded.
        names: Job id to the name in the legend.
        log_x: Draw the horizontal axis logarithmically.
        log_y: Draw the vertical axis logarithmically.
        title: Heading above the chart.

    Returns:
        A ``plotly.graph_objects.Figure``; from 1,000 points drawn by WebGL.
    """
    rows = list(candidates)
    figure = go.Figure()
    scatter = go.Scattergl if len(rows) >= WEBGL_FROM else go.Scatter
    for series in series_of(rows, x=x, y=y, names=names):
        _add_points(figure, scatter, series, x=x, y=y)
        _add_front(figure, scatter, series, x=x, y=y)
    _add_winners(figure, scatter, winners_of(rows, x=x, y=y), x=x, y=y)
    for limit in limits:
        _shade(figure, limit, x=x, y=y)
    figure.update_xaxes(title=label(x), type="log" if log_x else "linear", zeroline=False)
    figure.update_yaxes(title=label(y), type="log" if log_y else "linear", zeroline=False)
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=480,
        margin={"l": 64, "r": 16, "t": 56 if title else 16, "b": 48},
        legend={"orientation": "h", "y": -0.16, "x": 0, "yanchor": "top"},
        hovermode="closest",
        uirevision=f"{x}/{y}/{log_x}/{log_y}",
    )
    return figure


def _add_points(figure: Any, scatter: Any, series: Series, *, x: str, y: str) -> None:
    kinds = (
        (series.pick(feasible=False), "infeasible", "x-thin", INFEASIBLE_COLOUR),
        (series.pick(feasible=True, reused=True), "reused", "diamond-open", series.colour),
        (series.pick(feasible=True), "measured", "circle", series.colour),
    )
    for positions, kind, symbol, colour in kinds:
        if not positions:
            continue
        size = 7 if scatter is go.Scatter else 4
        marker: dict[str, Any] = {"symbol": symbol, "color": colour, "size": size}
        if symbol != "circle":
            marker |= {"line": {"color": colour, "width": 1.5}}
        figure.add_trace(
            scatter(
                x=np.array([series.x[position] for position in positions]),
                y=np.array([series.y[position] for position in positions]),
                mode="markers",
                name=f"{series.name}, {kind}",
                marker=marker,
                opacity=0.55 if series.baseline else 0.8,
                **_cards([series.rows[position] for position in positions]),
            )
        )


def _add_front(figure: Any, scatter: Any, series: Series, *, x: str, y: str) -> None:
    corners_x, corners_y = staircase(series, x=x, y=y)
    if corners_x:
        figure.add_trace(
            scatter(
                x=corners_x,
                y=corners_y,
                mode="lines",
                name=f"{series.name}, front",
                line={
                    "color": series.colour,
                    "width": 2,
                    "dash": "dash" if series.baseline else "solid",
                },
                hoverinfo="skip",
            )
        )


def _add_winners(figure: Any, scatter: Any, rows: Sequence[Row], *, x: str, y: str) -> None:
    if rows:
        figure.add_trace(
            scatter(
                x=[row["metrics"][x] for row in rows],
                y=[row["metrics"][y] for row in rows],
                mode="markers",
                name="winners, fully trained",
                marker={
                    "symbol": "star",
                    "size": 15,
                    "color": WINNER_COLOUR,
                    "line": {"color": INK, "width": 1},
                },
                **_cards(rows),
            )
        )


def _cards(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what a trace needs to show a card under the pointer.

    The browser writes the numbers: ready-made texts of 10,000 points would be most of
    the page. ``customdata`` starts with ``[job, arm, number]``.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    lines = ["<b>candidate %{customdata[2]}</b> (%{customdata[1]})"]
    for column, name in enumerate(names, start=3):
        form = ".4~g" if name in ("accuracy", "latency_ms") else ".3~s"
        lines.append(f"{label(name)}: %{{customdata[{column}]:{form}}}")
    return {
        # As arrays, since plotly looks into every item of a list.
        "customdata": np.array(
            [
                [
                    row["job"],
                    row["arm"],
                    row["number"],
                    *(row["metrics"].get(name) for name in names),
                ]
                for row in rows
            ],
            dtype=object,
        ),
        "text": np.array([note(row) for row in rows], dtype=object),
        "hovertemplate": "<br>".join(lines) + "%{text}<extra></extra>",
    }


def note(row: Row) -> str:
    """Write what sets a candidate apart: why it is infeasible, where it was evaluated."""
    text = ""
    if not row["feasible"]:
        text += f"<br>outside the limits{': ' + row['reason'] if row['reason'] else ''}"
    if was_reused(row):
        saved = duration(row["saved_s"])
        text += f"<br>reused from {origin(row)}, saved {saved}"
    return text


def _shade(figure: Any, limit: Row, *, x: str, y: str) -> None:
    """Tint the half-plane that a limit on one of the axes allows and draw its border."""
    low, high = limit.get("min"), limit.get("max")
    for name, add_band, add_line in (
        (x, figure.add_vrect, figure.add_vline),
        (y, figure.add_hrect, figure.add_hline),
    ):
        if limit["metric"] != name:
            continue
        letter = "x" if name == x else "y"
        values = [
            float(value)
            for trace in figure.data
            for value in (() if trace[letter] is None else trace[letter])
        ]
        bounds = [float(bound) for bound in (low, high) if bound is not None]
        band_low = min(values + bounds) * 0.9 if low is None else low
        band_high = max(values + bounds) * 1.1 if high is None else high
        band = {f"{letter}0": band_low, f"{letter}1": band_high}
        add_band(**band, fillcolor=FEASIBLE_FILL, line_width=0, layer="below")
        for bound in (low, high):
            if bound is not None:
                add_line(
                    **{letter: bound}, line={"color": FEASIBLE_COLOUR, "width": 1, "dash": "dot"}
                )


def progress_figure(candidates: Iterable[Row], *, x: str, y: str) -> Any:
    """Draw the hypervolume of each arm after every candidate as a plotly figure.

    At least one candidate must have both metrics; all arms share one box.
    """
    figure = go.Figure()
    arms = series_of(candidates, x=x, y=y)
    box = box_of(
        costs([value for series in arms for value in series.x], direction(x)),
        costs([value for series in arms for value in series.y], direction(y)),
    )
    for series in arms:
        ranked = sorted(
            (row["number"], position) for position, row in enumerate(series.rows) if row["feasible"]
        )
        positions = [position for _, position in ranked]
        curve = hypervolume_curve(
            costs([series.x[position] for position in positions], direction(x)),
            costs([series.y[position] for position in positions], direction(y)),
            box,
        )
        figure.add_trace(
            go.Scatter(
                x=[number + 1 for number, _ in ranked],
                y=curve.tolist(),
                mode="lines",
                line={
                    "shape": "hv",
                    "color": series.colour,
                    "width": 2,
                    "dash": "dash" if series.baseline else "solid",
                },
                name=series.name,
            )
        )
    figure.update_xaxes(title="candidates", zeroline=False)
    figure.update_yaxes(title="hypervolume (share of the box)", zeroline=False)
    figure.update_layout(
        template="plotly_white",
        height=320,
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        legend={"orientation": "h", "y": -0.24, "x": 0, "yanchor": "top"},
    )
    return figure


def histogram_figure(samples: Sequence[float], *, median_ms: float, p95_ms: float) -> Any:
    """Draw the distribution of single latency measurements as a plotly figure."""
    figure = go.Figure(go.Histogram(x=list(samples), marker={"color": COLOURS[0]}, opacity=0.8))
    for value, name in ((median_ms, "median"), (p95_ms, "p95")):
        figure.add_vline(
            x=value, line={"color": INK, "width": 1, "dash": "dot"}, annotation_text=name
        )
    figure.update_xaxes(title=label("latency_ms"), zeroline=False)
    figure.update_yaxes(title="runs", zeroline=False)
    figure.update_layout(
        template="plotly_white",
        height=280,
        margin={"l": 48, "r": 16, "t": 24, "b": 48},
        showlegend=False,
        bargap=0.04,
    )
    return figure


def write_front_html(path: Path, candidates: Iterable[Row], **options: Any) -> None:
    """Write ``front_figure`` as one HTML file that needs no network; options are its own."""
    figure = front_figure(candidates, **options)
    path.write_text(figure.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")
