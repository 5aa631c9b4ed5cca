"""Dropout that depends on what it is given, and not on how much was dropped before it.

Masks drawn from one generator in turn would change with the order in which a network's
branches are run, and with branches that nobody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zoo.rng import derive_seed
from zoo.signature import hash_tensors, projections
from zoo.widening import Widened

_DROPOUTS = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
)
_COLOUR_BITS = 20


class Steady(Widened):
    """While it is entered, dropout is seeded by its input; equal inputs are told apart in turn."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Counter[str] = Counter()

    def run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func not in _DROPOUTS:
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        colour = _colour(given)
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(derive_seed(0, "dropout", colour, self._seen[colour]))
        self._seen[colour] += 1
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_rng_state(before)


def _colour(tensor: Tensor) -> str:
    values = torch.from_numpy(projections(tensor, 2))
    return hash_tensors([values], mantissa_bits=_COLOUR_BITS)[0]
