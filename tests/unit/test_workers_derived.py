"""Derived networks within the limits on counted costs are taken first."""

from __future__ import annotations

from workers.derived import limits_first
from zoo.schemas import Limit
from zoo.spec import Architecture

FLOPS = {at: float(flops) for at, flops in enumerate((90, 40, 120, 50, 45))}
FOUND = [Architecture(space={"name": "made"}, choices=(at,)) for at in FLOPS]


def taken(limits: list[Limit], wanted: int = 9) -> tuple[list[int], float, int]:
    """Return which networks are taken in what order, the excess, and how many were counted."""
    counted: list[Architecture] = []

    def cost(architecture: Architecture) -> dict[str, float]:
        counted.append(architecture)
        return {"flops": FLOPS[architecture.choices[0]], "num_params": 1.0}

    ordered, excess = limits_first(FOUND, limits, cost, wanted=wanted)
    return [item.choices[0] for item in ordered], excess, len(counted)


def test_what_keeps_the_limits_comes_first_in_its_order_then_the_nearest() -> None:
    limits = [Limit(metric="flops", max=60.0)]
    assert taken(limits) == ([1, 3, 4, 0, 2], 0.0, 5)
    assert taken(limits, wanted=2) == ([1, 3], 0.0, 4)


def test_where_nothing_keeps_them_the_nearest_leads_and_its_excess_is_told() -> None:
    limits = [Limit(metric="flops", max=20.0), Limit(metric="num_params", min=2.0)]
    ordered, excess, _ = taken(limits)
    assert ordered == [1, 4, 3, 0, 2]
    assert excess == 1.5
