"""Which chain answers a request: by id, by alias, or by the shares of a weighted alias."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from zoo.errors import InvalidInputError, NotFoundError

MIN_PREFIX = 8

Target = str | Mapping[str, float]


class Router:
    """Maps model names to chain ids; a pure function of what it is built with.

    Args:
        chains: Ids of the chains that can be served.
        aliases: Name → chain id, or → shares of several chain ids (a canary). Shares
            need not sum to 1.

    Raises:
        NotFoundError: An alias points to a chain that is not there.
        InvalidInputError: Shares are negative, not finite, or all zero.
    """

    def __init__(
        self, chains: Collection[str], aliases: Mapping[str, Target] | None = None
    ) -> None:
        self._chains = frozenset(chains)
        self._aliases: dict[str, tuple[tuple[str, float], ...]] = {}
        for alias, target in (aliases or {}).items():
            shares = {target: 1.0} if isinstance(target, str) else dict(target)
            self._aliases[alias] = self._cumulative(alias, shares)

    def route(self, name: str, draw: float = 0.0) -> str:
        """Return the chain id for ``name``: an alias, an id, or a unique id prefix.

        Args:
            name: Prefixes have 8 digits or more; an alias goes before an id.
            draw: Uniform in [0, 1); equal draws give equal chains.

        Raises:
            NotFoundError: Nothing has the name; the message lists what there is.
            InvalidInputError: ``draw`` is out of range.
        """
        if not 0.0 <= draw < 1.0:
            raise InvalidInputError(f"draw is {draw}; it must lie in [0, 1)")
        shares = self._aliases.get(name)
        if shares is not None:
            return next(chain for chain, bound in shares if draw < bound)
        if name in self._chains:
            return name
        matches = [chain for chain in self._chains if chain.startswith(name)]
        if len(name) >= MIN_PREFIX and len(matches) == 1:
            return matches[0]
        known = ", ".join([*sorted(self._aliases), *sorted(self._chains)]) or "none"
        raise NotFoundError(f"no model is called {name!r}; there are: {known}")

    def _cumulative(self, alias: str, shares: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
        missing = sorted(set(shares) - self._chains)
        if missing:
            raise NotFoundError(f"alias {alias!r} points to {missing[0]}, which is not there")
        total = sum(shares.values())
        if not all(share >= 0 and math.isfinite(share) for share in shares.values()) or not total:
            raise InvalidInputError(
                f"alias {alias!r} has shares {dict(shares)}; give numbers of at least 0, not all 0"
            )
        bounds = []
        reached = 0.0
        used = [chain for chain in sorted(shares) if shares[chain] > 0]
        for chain in used:
            reached += shares[chain] / total
            bounds.append((chain, 1.0 if chain == used[-1] else reached))
        return tuple(bounds)
