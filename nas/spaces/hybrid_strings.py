"""Strings over {C, T} for the stages of a network: legal ones, counted and drawn uniformly.

A stage is a string of its blocks, ``CCT`` say: convolutions and transformers in order. Its
depth is bounded; a stage at high resolution has no T. A constraint relates the stages:

- ``free``: none;
- ``non-decreasing``: the fraction of T does not fall from a stage to the next;
- ``asymmetric``: at least one stage has both C and T.

Strings of one depth and one number of T stand or fall together, so a walk over the stages
that remembers the last fraction (or whether a stage was mixed) counts exactly, whatever the
depths; drawing walks the same way.

| symbol | here |
|---|---|
| d, t | depth of a stage, number of its T: C(d, t) strings |
| q | what a constraint remembers of the stages before |
| N_i(q) | legal ways to write stages i, i + 1, … after q: ``ways`` |
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import comb

CONV, ATTENTION = "C", "T"

FREE, NON_DECREASING, ASYMMETRIC = "free", "non-decreasing", "asymmetric"
CONSTRAINTS = (FREE, NON_DECREASING, ASYMMETRIC)

Memory = Fraction | bool
"""What a constraint remembers of earlier stages: the last fraction, or whether one was mixed."""


@dataclass(frozen=True)
class StageRule:
    """How deep a stage may be, and whether it may attend."""

    least: int
    most: int
    attention: bool

    @property
    def letters(self) -> str:
        return CONV + ATTENTION if self.attention else CONV

    def classes(self) -> Iterator[tuple[int, int]]:
        """Yield depth and number of T of every kind of string."""
        for depth in range(self.least, self.most + 1):
            for attending in range(depth + 1 if self.attention else 1):
                yield depth, attending

    def strings(self) -> Iterator[str]:
        """Yield every string, the shortest first."""
        for depth in range(self.least, self.most + 1):
            yield from map("".join, product(self.letters, repeat=depth))

    def fault(self, string: str) -> str | None:
        """Say what is wrong with ``string``; None if it is legal by itself."""
        unknown = sorted(set(string) - {CONV, ATTENTION})
        if unknown:
            return f"has the letter {unknown[0]!r}; blocks are {CONV} or {ATTENTION}"
        if not self.least <= len(string) <= self.most:
            return f"has {len(string)} blocks; it takes {self.least} to {self.most}"
        if ATTENTION in string and not self.attention:
            return "may not attend at this resolution; write C for every block"
        return None

    def edits(self, string: str) -> list[str]:
        """Return the legal strings that are one substitution, insertion or deletion away."""
        size = len(string)
        found = {
            string[:at] + letter + string[at + removed :]
            for at in range(size + 1)
            for removed in (0, 1)
            for letter in (*self.letters, "")
        }
        return sorted(item for item in found - {string} if self.fault(item) is None)


def fraction(string: str) -> Fraction:
    """Return the fraction of T."""
    return Fraction(string.count(ATTENTION), len(string))


def broken(strings: Sequence[str], constraint: str) -> str | None:
    """Say how ``strings`` break the constraint; None if they do not."""
    if constraint == NON_DECREASING:
        for at, (before, after) in enumerate(zip(strings, strings[1:], strict=False), 2):
            if fraction(after) < fraction(before):
                return (
                    f"the fraction of T falls from {fraction(before)} to {fraction(after)} in "
                    f"stage {at}; it must not fall"
                )
    if constraint == ASYMMETRIC and not any(0 < fraction(string) < 1 for string in strings):
        return "no stage has both C and T; at least one must"
    return None


def count_strings(stages: tuple[StageRule, ...], constraint: str) -> int:
    """Return how many tuples of strings meet the constraint."""
    return ways(stages, constraint, 0, START[constraint])


def draw_strings(
    stages: tuple[StageRule, ...], constraint: str, rng: random.Random
) -> tuple[str, ...]:
    """Return strings drawn uniformly from those that meet the constraint; there must be some."""
    memory, strings = START[constraint], []
    for at in range(len(stages)):
        options = list(_options(stages, constraint, at, memory))
        (chosen,) = rng.choices(options, [weight for *_, weight, _ in options])
        depth, attending, _, memory = chosen
        places = set(rng.sample(range(depth), attending))
        strings.append("".join(ATTENTION if at in places else CONV for at in range(depth)))
    return tuple(strings)


@lru_cache(maxsize=4096)
def ways(stages: tuple[StageRule, ...], constraint: str, at: int, memory: Memory) -> int:
    """Return how many ways the stages from ``at`` on can be written after ``memory``."""
    if at == len(stages):
        return int(constraint != ASYMMETRIC or memory)
    return sum(weight for *_, weight, _ in _options(stages, constraint, at, memory))


START: dict[str, Memory] = {FREE: False, NON_DECREASING: Fraction(0), ASYMMETRIC: False}
"""What each constraint remembers before the first stage."""


def _options(
    stages: tuple[StageRule, ...], constraint: str, at: int, memory: Memory
) -> Iterator[tuple[int, int, int, Memory]]:
    """Yield depth, number of T, number of ways with them, and what is remembered then."""
    for depth, attending in stages[at].classes():
        after = remembered(constraint, memory, depth, attending)
        if after is not None:
            rest = ways(stages, constraint, at + 1, after)
            yield depth, attending, comb(depth, attending) * rest, after


def remembered(constraint: str, memory: Memory, depth: int, attending: int) -> Memory | None:
    """Return what is remembered after a stage; None if the constraint is broken by it."""
    if constraint == NON_DECREASING:
        after = Fraction(attending, depth)
        return after if after >= memory else None
    if constraint == ASYMMETRIC:
        return bool(memory) or 0 < attending < depth
    return memory
