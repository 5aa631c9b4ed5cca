"""Charts: which point is drawn as what."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ui.charts import front_figure, note, progress_figure, write_front_html, write_front_png
from ui.series import series_of, staircase

Row = dict[str, Any]


def row(number: int, latency: float, accuracy: float, **changes: Any) -> Row:
    return {
        "job": "job_a",
        "number": number,
        "arm": "search",
        "state": "evaluated",
        "metrics": {"latency_ms": latency, "accuracy": accuracy},
        "feasible": True,
        "reason": None,
        "reused_from": None,
        "saved_s": 0.0,
    } | changes


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_only_feasible_candidates_stand_on_the_front() -> None:
    rows = [row(0, 1.0, 0.8), row(1, 2.0, 0.9), row(2, 1.5, 0.99, feasible=False)]
    (series,) = series_of(rows, x="latency_ms", y="accuracy")
    assert [series.rows[position]["number"] for position in series.front] == [0, 1]


def test_the_staircase_runs_along_what_is_dominated() -> None:
    (series,) = series_of([row(0, 1.0, 0.8), row(1, 2.0, 0.9)], x="latency_ms", y="accuracy")
    assert staircase(series, x="latency_ms", y="accuracy") == ([1.0, 2.0, 2.0], [0.8, 0.8, 0.9])


def test_the_staircase_turns_with_the_axes() -> None:
    (series,) = series_of([row(0, 1.0, 0.8), row(1, 2.0, 0.9)], x="accuracy", y="latency_ms")
    assert staircase(series, x="accuracy", y="latency_ms") == ([0.8, 0.8, 0.9], [1.0, 2.0, 2.0])


def test_origin_feasibility_baseline_and_winners_are_told_apart() -> None:
    rows = [
        row(0, 1.0, 0.8),
        row(1, 2.0, 0.9, reused_from="job_b", saved_s=12.0),
        row(2, 9.0, 0.95, feasible=False, reason="latency_ms is 9, above 3"),
        row(0, 1.5, 0.7, arm="baseline"),
        row(0, 1.2, 0.97, arm="winner"),
        row(3, 0.0, 0.0, state="failed", metrics={}),
    ]
    drawn = traces(front_figure(rows))
    assert {
        "search, measured",
        "search, reused",
        "search, infeasible",
        "search, front",
        "random search, measured",
        "random search, front",
        "winners, fully trained",
    } == drawn.keys()
    assert list(drawn["search, reused"].customdata[0][:3]) == ["job_a", "search", 1]
    assert sum(len(trace.x) for name, trace in drawn.items() if "front" not in name) == 5


def test_the_card_under_the_pointer_says_what_a_candidate_scored_and_whence() -> None:
    (trace, _) = front_figure([row(1, 2.0, 0.9, reused_from="job_b", saved_s=12.0)]).data
    (others, _) = front_figure([row(1, 2.0, 0.9, reused=True, saved_s=12.0)]).data
    assert "reused from another user's job, saved 12" in others.text[0]
    assert others.name == trace.name == "search, reused"
    assert trace.text[0] == "<br>reused from job_b, saved 12 s"
    assert list(trace.customdata[0]) == ["job_a", "search", 1, 2.0, 0.9]
    assert "latency (ms): %{customdata[3]" in trace.hovertemplate
    assert note(row(0, 9.0, 0.9, feasible=False, reason="too slow")).endswith("limits: too slow")


def test_several_jobs_are_compared_in_their_own_colours() -> None:
    rows = [row(0, 1.0, 0.8), row(0, 2.0, 0.7, job="job_b")]
    drawn = traces(front_figure(rows, names={"job_a": "first", "job_b": "second"}))
    assert {"first, front", "second, front"} <= drawn.keys()
    assert drawn["first, front"].line.color != drawn["second, front"].line.color


@pytest.mark.parametrize("limit", [{"max": 3.0}, {"min": 0.5, "max": None}, {"min": 1, "max": 2}])
def test_the_feasible_region_is_shaded_up_to_each_limit(limit: Row) -> None:
    figure = front_figure([row(0, 1.0, 0.8)], limits=[{"metric": "latency_ms", **limit}])
    bounds = [value for value in limit.values() if value is not None]
    shapes = figure.layout.shapes
    assert len(shapes) == 1 + len(bounds)
    assert set(bounds) <= {shapes[0].x0, shapes[0].x1}


def test_a_limit_on_a_metric_that_is_no_axis_shades_nothing() -> None:
    figure = front_figure([row(0, 1.0, 0.8)], limits=[{"metric": "flops", "max": 1.0}])
    assert not figure.layout.shapes


def test_ten_thousand_candidates_are_drawn_by_webgl() -> None:
    rng = random.Random(0)
    rows = [row(number, rng.random(), rng.random()) for number in range(10_000)]
    assert traces(front_figure(rows))["search, measured"].type == "scattergl"


def test_hypervolume_curves_of_both_arms_share_one_box() -> None:
    rows = [
        row(0, 1.0, 0.9),
        row(1, 3.0, 0.95),
        row(0, 2.0, 0.5, arm="baseline"),
        row(1, 4.0, 0.6, arm="baseline"),
    ]
    drawn = traces(progress_figure(rows, x="latency_ms", y="accuracy"))
    assert drawn["search"].y[-1] > drawn["random search"].y[-1]


def test_html_and_png_hold_the_front_without_network(tmp_path: Path) -> None:
    rows = [row(0, 1.0, 0.8), row(1, 2.0, 0.9, reused_from="job_b")]
    limits = [{"metric": "latency_ms", "max": 3.0}, {"metric": "accuracy", "min": 0.5}]
    write_front_html(tmp_path / "front.html", rows, limits=limits, title="A front")
    write_front_png(tmp_path / "front.png", rows, limits=limits, title="A front", log_x=True)
    html = (tmp_path / "front.html").read_text()
    assert "A front" in html
    assert 'src="http' not in html
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_an_empty_search_still_gives_an_empty_picture(tmp_path: Path) -> None:
    write_front_png(tmp_path / "front.png", [])
    assert not front_figure([]).data
    assert (tmp_path / "front.png").stat().st_size > 0
