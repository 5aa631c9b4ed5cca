"""A look at a space before it is searched: its size, what it costs, whether limits can hold."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nas.cost.analytic import ChainCosts
from nas.protocols import Limit, SearchSpace
from zoo.rng import derive_seed
from zoo.spec import Architecture, TensorSpec

Counted = tuple[Architecture, dict[str, float]]
"""An architecture and its counted cost."""


class Latency(Protocol):
    """What measuring returns; ``nas.evaluation.Latency`` is one."""

    @property
    def median_ms(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Least, middle and greatest value seen."""

    min: float
    median: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What ``samples`` random architectures of a space of ``size`` cost.

    ``feasible_share`` is the share of them within all limits on cost (a limit on
    accuracy cannot be judged without training and is left out). If it is 0, ``reason``
    says which limit is out of reach, by how much.
    """

    size: int
    samples: int
    cost: dict[str, Spread]
    feasible_share: float
    reason: str | None = None

    @property
    def feasible(self) -> bool:
        return self.feasible_share > 0


def preview(
    space: SearchSpace,
    inputs: TensorSpec,
    num_classes: int,
    measure: Callable[[Architecture], Latency] | None = None,
    samples: int = 64,
    seed: int = 0,
    *,
    limits: Sequence[Limit] = (),
    measured: int = 8,
    climbs: int = 0,
) -> Preview:
    """Sample a space and say what its architectures cost and whether limits can hold.

    Args:
        space: The space to look at.
        inputs: One sample of the task's input.
        num_classes: Classes of the task.
        measure: Measures latency; None leaves latency out.
        samples: Architectures drawn.
        seed: Determines which.
        limits: Bounds to judge; a limit on latency is judged on the measured ones only.
        measured: How many of the samples to measure, evenly spread over their FLOPs.
        climbs: Mutations tried from the least and from the greatest sample, each kept if it
            goes further: random samples alone seldom meet the ends of a large space.
            Medians are of the samples only.
    """

    costs = ChainCosts()

    def price(architecture: Architecture) -> dict[str, float]:
        chain = space.blocks(architecture, inputs=inputs, num_classes=num_classes)
        return costs.cost(chain, inputs).metrics()

    rng = random.Random(derive_seed(seed, "preview"))
    drawn = [space.sample(rng) for _ in range(samples)]
    rows = [price(item) for item in drawn]
    for sign in (1, -1) if climbs else ():
        end = min(range(samples), key=lambda i: sign * rows[i]["flops"])
        found = _climbed(space, price, (drawn[end], rows[end]), sign, rng, climbs)
        drawn.append(found[0])
        rows.append(dict(found[1]))
    if measure is not None:
        for number in _evenly([row["flops"] for row in rows], measured):
            rows[number]["latency_ms"] = measure(drawn[number]).median_ms
    judged = [limit for limit in limits if any(limit.metric in row for row in rows)]
    seen = [row for row in rows if all(limit.metric in row for limit in judged)]
    feasible = [row for row in seen if all(_holds(limit, row[limit.metric]) for limit in judged)]
    spreads = {
        metric: _spread(
            [row[metric] for row in rows if metric in row],
            [row[metric] for row in rows[:samples] if metric in row],
        )
        for metric in dict.fromkeys(metric for row in rows for metric in row)
    }
    return Preview(
        size=space.size(),
        samples=samples,
        cost=spreads,
        feasible_share=len(feasible) / len(seen),
        reason=None if feasible else _reason(judged, spreads),
    )


def _evenly(values: Sequence[float], count: int) -> list[int]:
    """Return the places of ``count`` values spread evenly from the least to the greatest."""
    order = sorted(range(len(values)), key=values.__getitem__)
    last = max(1, min(count, len(values)) - 1)
    return [order[at] for at in {round(k * (len(values) - 1) / last) for k in range(last + 1)}]


def _climbed(
    space: SearchSpace,
    price: Callable[[Architecture], dict[str, float]],
    start: Counted,
    sign: int,
    rng: random.Random,
    climbs: int,
) -> Counted:
    """Return where mutations lead that never go back: to less (sign 1) or to more (-1)."""
    best = start
    for _ in range(climbs):
        other = space.mutate(best[0], rng)
        counted = price(other)
        if sign * counted["flops"] <= sign * best[1]["flops"]:
            best = other, counted
    return best


def _holds(limit: Limit, value: float) -> bool:
    return (limit.max is None or value <= limit.max) and (limit.min is None or value >= limit.min)


def _spread(seen: Sequence[float], sampled: Sequence[float]) -> Spread:
    """Return the ends of all that was seen, and the median of what was drawn at random."""
    return Spread(min=min(seen), median=statistics.median(sampled or seen), max=max(seen))


def _reason(limits: Sequence[Limit], spreads: dict[str, Spread]) -> str:
    for limit in limits:
        seen = spreads[limit.metric]
        if limit.max is not None and seen.min > limit.max:
            return f"the least {limit.metric} seen is {seen.min:g}, above the limit {limit.max:g}"
        if limit.min is not None and seen.max < limit.min:
            return (
                f"the greatest {limit.metric} seen is {seen.max:g}, below the limit {limit.min:g}"
            )
    return "no architecture seen is within all limits at once; relax one of them"
