"""The cost that architecture parameters expect, and its gradient.

In a space whose cost is a sum over its choices (a chain of searched blocks), the expected
cost under independent choice probabilities ``p`` is ``base + Σ_v Σ_o p[v, o] · cost[v, o]``:
one dot product, with gradient ``cost`` in ``p``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.protocols import SearchSpace
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import Architecture

TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class ChoiceCosts:
    """What every option of every choice adds to ``base``, in the order of the space."""

    base: float
    options: tuple[tuple[float, ...], ...]

    def exact(self, choices: Sequence[int]) -> float:
        """Return the cost of an architecture."""
        self._check(len(choices))
        return self.base + sum(
            costs[choice] for costs, choice in zip(self.options, choices, strict=True)
        )

    def expected(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Return the expected cost, differentiable in ``probabilities``.

        Args:
            probabilities: One vector a choice, over its options.

        Raises:
            InvalidInputError: A vector is missing or has another length.
        """
        self._check(len(probabilities))
        total = torch.as_tensor(self.base, dtype=probabilities[0].dtype)
        total = total.to(probabilities[0].device)
        for number, (costs, chances) in enumerate(zip(self.options, probabilities, strict=True)):
            if chances.shape != (len(costs),):
                raise InvalidInputError(
                    f"choice {number} has {len(costs)} options; its probabilities have shape "
                    f"{tuple(chances.shape)}"
                )
            total = total + (chances * chances.new_tensor(costs)).sum()
        return total

    def _check(self, given: int) -> None:
        if given != len(self.options) or not given:
            raise InvalidInputError(f"{given} choices are given; the space has {len(self.options)}")


def choice_costs(
    space: SearchSpace, price: Callable[[Architecture], float], *, checks: int = 8, seed: int = 0
) -> ChoiceCosts:
    """Find what every option costs, and make sure that costs add up.

    Args:
        space: A space whose every combination of options is legal.
        price: The exact cost of an architecture, e.g. the sum of a latency table.
        checks: Random architectures on which the sum is compared with ``price``.
        seed: Determines which.

    Raises:
        InvalidInputError: The cost is not a sum over the choices, so that no expectation
            can be taken choice by choice.
    """
    rng = random.Random(derive_seed(seed, "choice costs"))
    first = space.sample(rng)
    whole = price(first)
    options = []
    for variable, count in enumerate(space.cardinalities()):
        costs = []
        for option in range(count):
            choices = list(first.choices)
            choices[variable] = option
            architecture = Architecture(space=first.space, choices=tuple(choices))
            space.check(architecture)
            costs.append(price(architecture) - whole)
        options.append(tuple(costs))
    found = ChoiceCosts(base=whole, options=tuple(options))
    for _ in range(checks):
        architecture = space.sample(rng)
        real, summed = price(architecture), found.exact(architecture.choices)
        if abs(real - summed) > TOLERANCE * max(abs(real), abs(whole)):
            raise InvalidInputError(
                f"the cost of this space is not a sum over its choices: {real:g}, not {summed:g}, "
                f"for {space.summary(architecture)}; only whole architectures can be priced"
            )
    return found
