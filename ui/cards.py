"""What the card of a chain says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.spec import Chain


def accuracy(chain: Chain) -> float | None:
    """Return the accuracy on the card of a chain, if it has one."""
    metrics = chain.card.get("metrics")
    value = metrics.get("accuracy") if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, int | float) else None
