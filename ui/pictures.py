"""The front as a PNG file, drawn by matplotlib: plotly's own export needs a browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ui.formats import label
from ui.series import (
    FEASIBLE_COLOUR,
    INFEASIBLE_COLOUR,
    INK,
    WINNER_COLOUR,
    Row,
    Series,
    series_of,
    staircase,
    winners_of,
)


def write_front_png(
    path: Path,
    candidates: Iterable[Row],
    *,
    x: str = "latency_ms",
    y: str = "accuracy",
    limits: Sequence[Row] = (),
    names: Mapping[str, str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
) -> None:
    """Write the chart of ``front_figure`` as a PNG file; the arguments are the same."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(candidates)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for series in series_of(rows, x=x, y=y, names=names):
        _draw_series(axes, series, x=x, y=y)
    best = winners_of(rows, x=x, y=y)
    if best:
        axes.scatter(
            [row["metrics"][x] for row in best],
            [row["metrics"][y] for row in best],
            marker="*",
            s=190,
            color=WINNER_COLOUR,
            edgecolor=INK,
            linewidth=0.8,
            label="winners, fully trained",
            zorder=5,
        )
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    for limit in limits:
        _draw_limit(axes, limit, x=x, y=y)
    axes.set_xlabel(label(x))
    axes.set_ylabel(label(y))
    axes.grid(color="#e7e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, loc="left")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, format="png")


def _draw_series(axes: Any, series: Series, *, x: str, y: str) -> None:
    kinds = (
        (series.pick(feasible=False), "infeasible", {"marker": "x", "color": INFEASIBLE_COLOUR}),
        (
            series.pick(feasible=True, reused=True),
            "reused",
            {"marker": "D", "facecolor": "none", "edgecolor": series.colour},
        ),
        (series.pick(feasible=True), "measured", {"marker": "o", "color": series.colour}),
    )
    for positions, kind, style in kinds:
        if positions:
            axes.scatter(
                [series.x[position] for position in positions],
                [series.y[position] for position in positions],
                s=22,
                alpha=0.55 if series.baseline else 0.8,
                label=f"{series.name}, {kind}",
                **style,
            )
    corners_x, corners_y = staircase(series, x=x, y=y)
    if corners_x:
        axes.plot(
            corners_x,
            corners_y,
            color=series.colour,
            linewidth=1.6,
            linestyle="--" if series.baseline else "-",
            label=f"{series.name}, front",
        )


def _draw_limit(axes: Any, limit: Row, *, x: str, y: str) -> None:
    low, high = limit.get("min"), limit.get("max")
    for name, band, line, view, set_view in (
        (x, axes.axvspan, axes.axvline, axes.get_xlim(), axes.set_xlim),
        (y, axes.axhspan, axes.axhline, axes.get_ylim(), axes.set_ylim),
    ):
        if limit["metric"] != name:
            continue
        bounds = [bound for bound in (low, high) if bound is not None]
        start, end = min(view[0], *bounds), max(view[1], *bounds)
        band(
            start if low is None else low,
            end if high is None else high,
            color=FEASIBLE_COLOUR,
            alpha=0.08,
            linewidth=0,
        )
        for bound in bounds:
            line(bound, color=FEASIBLE_COLOUR, linewidth=1, linestyle=":")
        set_view(start, end)
