"""The order in which derived networks are taken: those within the limits on counted costs first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nas.methods.ranking import violations
from zoo.schemas import Limit
from zoo.spec import Architecture, Evaluation


def limits_first(
    found: Sequence[Architecture],
    limits: Sequence[Limit],
    cost: Callable[[Architecture], Mapping[str, float]],
    *,
    wanted: int,
) -> tuple[list[Architecture], float]:
    """Put first what keeps the limits, in its order, then what exceeds them least.

    Args:
        found: Networks, best first.
        limits: On costs that are counted.
        cost: Counts one.
        wanted: As soon as so many keep the limits, the others are left out.

    Returns:
        The networks, and by what share of the bounds the first one exceeds the limits.
    """
    kept: list[Architecture] = []
    others: list[tuple[float, int, Architecture]] = []
    for at, architecture in enumerate(found):
        counted = Evaluation(metrics=cost(architecture), cost_s=0.0)
        excess = sum(max(0.0, part) for part in violations(counted, limits).values())
        if excess:
            others.append((excess, at, architecture))
            continue
        kept.append(architecture)
        if len(kept) == wanted:
            return kept, 0.0
    others.sort(key=lambda item: item[:2])
    least = others[0][0] if others and not kept else 0.0
    return [*kept, *(architecture for *_, architecture in others)], least
