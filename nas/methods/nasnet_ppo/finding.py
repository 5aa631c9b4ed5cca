"""Which architectures a search ends with: the best ones under the shared weights."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from nas.methods.nasnet_ppo.costs import Prices
from nas.spaces.nasnet import NasnetSpace
from zoo.spec import Architecture

REMEMBERED = 256
"""Architectures whose last reward is kept; shared weights outdate older ones."""

FAVOURITES = 16
"""Of those, as many are tried again in the end."""

FINALISTS = 32
"""As many are scored on all held-out images."""

SHRINKING_STEPS = 64
"""Mutations tried towards lower cost where too few children meet the limits."""


class Accuracy(Protocol):
    """Scores children on held-out images: on all of them, or on one batch."""

    def __call__(self, children: Sequence[Architecture], *, all_images: bool) -> list[float]: ...


class Archive:
    """The last reward of the architectures rewarded of late."""

    def __init__(self) -> None:
        self._rewards: dict[tuple[int, ...], float] = {}

    def put(self, architecture: Architecture, reward: float) -> None:
        """Remember a reward; the one longest ago is forgotten."""
        self._rewards.pop(architecture.choices, None)
        self._rewards[architecture.choices] = reward
        if len(self._rewards) > REMEMBERED:
            del self._rewards[next(iter(self._rewards))]

    def best(self, space: NasnetSpace) -> list[Architecture]:
        """Return the best ones, best first; of equal ones the latest."""
        latest = reversed(self._rewards.items())
        ordered = sorted(latest, key=lambda item: -item[1])[:FAVOURITES]
        return [space.architecture(choices) for choices, _ in ordered]

    def state_dict(self) -> dict[str, Any]:
        return {
            "choices": torch.tensor(list(self._rewards), dtype=torch.int64),
            "rewards": torch.tensor(list(self._rewards.values()), dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rows = state["choices"].tolist()
        self._rewards = dict(zip(map(tuple, rows), state["rewards"].tolist(), strict=True))


def best_children(
    pool: Sequence[Architecture],
    k: int,
    *,
    space: NasnetSpace,
    prices: Prices,
    accuracy: Accuracy,
    seed: int,
) -> list[Architecture]:
    """Return the ``k`` best distinct children, best first.

    One batch sorts the pool, all held-out images its first ``FINALISTS``. What meets the
    limits comes first, by reward; then the rest, by how little it exceeds them.

    Args:
        pool: Canonical architectures; earlier ones win ties.
        k: How many are wanted.
        space: Theirs.
        prices: Limits and costs.
        accuracy: Scores children.
        seed: Of the search for cheaper children where too few meet the limits.
    """
    found = list(dict.fromkeys(pool))
    within = sum(prices.excess(child) <= 1 for child in found)
    if within < k:
        found = list(dict.fromkeys([*found, *_shrunk(found, k - within, space, prices, seed)]))
    for wanted, all_images in ((max(k, FINALISTS), False), (max(k, 0), True)):
        rewards = [
            prices.reward(score, child)
            for score, child in zip(accuracy(found, all_images=all_images), found, strict=True)
        ]
        order = sorted(
            range(len(found)),
            key=lambda at: (max(prices.excess(found[at]), 1.0), -rewards[at]),
        )
        found = [found[at] for at in order[:wanted]]
    return found


def _shrunk(
    pool: Sequence[Architecture], count: int, space: NasnetSpace, prices: Prices, seed: int
) -> list[Architecture]:
    """Return up to ``count`` children within the limits, on the way down from the cheapest."""
    rng = random.Random(seed)
    child, found = min(pool, key=prices.excess), list[Architecture]()
    for _ in range(SHRINKING_STEPS):
        other = space.canonical(space.mutate(child, rng))
        if prices.excess(other) <= prices.excess(child):
            child = other
            if prices.excess(child) <= 1 and child not in pool and child not in found:
                found.append(child)
                if len(found) == count:
                    return found
    return [*found, child]
