"""Fronts and hypervolumes against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.fronts import Floats, box_of, costs, front, hypervolume_curve

points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40).map(
    lambda pairs: np.array(pairs, dtype=np.float64)
)


def dominated(points: Floats, index: int) -> bool:
    a, b = points[index]
    return any(
        x <= a and y <= b and (x < a or y < b or other < index)
        for other, (x, y) in enumerate(points)
        if other != index
    )


@given(points)
def test_the_front_is_what_nothing_dominates_and_of_equals_the_first(points: Floats) -> None:
    expected = {index for index in range(len(points)) if not dominated(points, index)}
    assert set(front(points[:, 0], points[:, 1]).tolist()) == expected


@given(points)
def test_the_front_ascends_in_the_first_cost_and_descends_in_the_second(points: Floats) -> None:
    found = points[front(points[:, 0], points[:, 1])]
    assert (np.diff(found[:, 0]) > 0).all()
    assert (np.diff(found[:, 1]) < 0).all()


@given(points)
def test_the_hypervolume_is_the_share_of_cells_that_some_point_dominates(points: Floats) -> None:
    box = ((0.0, 8.0), (0.0, 8.0))
    curve = hypervolume_curve(points[:, 0], points[:, 1], box)
    for count in range(1, len(points) + 1):
        cells = sum(
            any(x <= column and y <= row for x, y in points[:count])
            for column in range(8)
            for row in range(8)
        )
        assert curve[count - 1] == np.float64(cells) / 64 or np.isclose(
            curve[count - 1], cells / 64
        )


def test_points_all_alike_have_a_box_without_area() -> None:
    ones = np.ones(3)
    assert hypervolume_curve(ones, ones, box_of(ones, ones)).tolist() == [1.0, 1.0, 1.0]


def test_maximised_metrics_become_costs() -> None:
    assert costs([0.5, 0.9], "maximize").tolist() == [-0.5, -0.9]
    assert costs([0.5, 0.9], "minimize").tolist() == [0.5, 0.9]


@pytest.mark.timeout(60)
def test_a_front_of_100_000_points_is_found_without_comparing_pairs() -> None:
    line = np.arange(100_000, dtype=np.float64)
    assert len(front(line, -line)) == 100_000
