"""Fronts, ranks and volumes against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nas.pareto import Direction, crowding, front, hypervolume, ranks
from zoo.errors import InvalidInputError

MAX: Direction = "maximize"
MIN: Direction = "minimize"

Case = tuple[NDArray[np.float64], list[Direction]]


@st.composite
def cases(draw: st.DrawFn, *, infinite: bool = True, max_objectives: int = 4) -> Case:
    """Draw few points of few levels, so that ties and copies are common."""
    objectives = draw(st.integers(1, max_objectives))
    levels = [0.0, 1.0, 2.0, 3.0, *([np.inf, -np.inf] if infinite else [])]
    row = st.lists(st.sampled_from(levels), min_size=objectives, max_size=objectives)
    rows = draw(st.lists(row, max_size=14))
    directions = draw(
        st.lists(st.sampled_from([MAX, MIN]), min_size=objectives, max_size=objectives)
    )
    return np.array(rows, dtype=float).reshape(-1, objectives), directions


def as_costs(case: Case) -> NDArray[np.float64]:
    points, directions = case
    return points * np.where(np.array(directions) == MAX, -1.0, 1.0)


def not_dominated(costs: NDArray[np.float64], among: list[int]) -> list[int]:
    return [
        i
        for i in among
        if not any((costs[j] <= costs[i]).all() and (costs[j] < costs[i]).any() for j in among)
    ]


@given(cases())
@settings(deadline=None)
def test_the_front_is_what_brute_force_finds(case: Case) -> None:
    costs = as_costs(case)
    assert front(*case).tolist() == not_dominated(costs, list(range(len(costs))))


@given(cases())
@settings(deadline=None)
def test_ranks_peel_one_front_after_another(case: Case) -> None:
    costs = as_costs(case)
    left = list(range(len(costs)))
    expected = np.zeros(len(costs), dtype=int)
    rank = 0
    while left:
        peeled = not_dominated(costs, left)
        expected[peeled] = rank
        left = [i for i in left if i not in peeled]
        rank += 1
    assert ranks(*case).tolist() == expected.tolist()


@given(cases(infinite=False))
@settings(deadline=None)
def test_the_hypervolume_counts_the_cells_that_are_dominated(case: Case) -> None:
    points, directions = case
    costs = as_costs(case)
    signs = np.where(np.array(directions) == MAX, -1.0, 1.0)
    centres = np.array(list(product(np.arange(-2.5, 4), repeat=len(directions))))
    expected = sum(bool((costs <= centre).all(axis=1).any()) for centre in centres)
    assert hypervolume(points, signs * 4.0, directions) == pytest.approx(expected)


@given(cases(infinite=False))
@settings(deadline=None)
def test_a_point_never_lowers_the_hypervolume(case: Case) -> None:
    points, directions = case
    reference = np.where(np.array(directions) == MAX, 0.0, 3.0)
    volumes = [hypervolume(points[:n], reference, directions) for n in range(len(points) + 1)]
    assert volumes == sorted(volumes)


@pytest.mark.timeout(60)
def test_a_hundred_thousand_points_are_not_compared_in_pairs() -> None:
    random = np.random.default_rng(0).random((100_000, 2))
    line = np.stack([np.arange(1e5), np.arange(1e5)], axis=1)
    copies = np.zeros((100_000, 2))
    sizes = [len(front(points, [MAX, MIN])) for points in (random, line, copies)]
    assert sizes[1:] == [100_000, 100_000]
    assert 1 <= sizes[0] < 100


def test_crowding_is_the_sum_of_gaps_in_units_of_the_range() -> None:
    points = [(0.0, 10.0), (1.0, 6.0), (3.0, 5.0), (4.0, 0.0)]
    distance = crowding(points)
    assert distance[0] == distance[3] == np.inf
    assert distance[1] == pytest.approx(3 / 4 + 5 / 10)
    assert distance[2] == pytest.approx(3 / 4 + 6 / 10)
    assert crowding([(1.0, 1.0), (1.0, 1.0)]).tolist() == [0.0, 0.0]


def test_no_points_have_an_empty_front_and_no_volume() -> None:
    assert front([], [MAX, MIN]).tolist() == []
    assert ranks([], [MAX, MIN]).tolist() == []
    assert hypervolume([], (0.0, 0.0), [MAX, MIN]) == 0.0


@pytest.mark.parametrize(
    ("points", "directions", "message"),
    [
        ([[1.0, 2.0]], [MAX], r"shape \(1, 2\)"),
        ([1.0, 2.0], [MAX, MIN], "shape"),
        ([[np.nan, 1.0]], [MAX, MIN], "NaN"),
        ([[1.0]], ["upwards"], "upwards"),
    ],
)
def test_wrong_points_and_directions_are_named(
    points: object, directions: list[Direction], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        front(points, directions)


def test_a_hypervolume_of_infinite_points_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="finite"):
        hypervolume([[np.inf, 0.0]], (1.0, 1.0), [MIN, MIN])
