"""Successive halving of candidates on held-out images: the worse half goes, the rest see more.

Source:
    Jamieson and Talwalkar (2016), "Non-stochastic Best Arm Identification and
    Hyperparameter Optimization", arXiv:1502.07943. The resource is the number of held-out
    batches on which a candidate's path through its supernet is scored; the last rung has
    seen all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.errors import ConflictError

CHUNK = 16
"""Candidates that one step scores at most."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """``candidates`` are left, and each has seen ``batches`` when the rung ends."""

    candidates: int
    batches: int


def rungs(candidates: int, batches: int) -> tuple[Rung, ...]:
    """Return the rungs from all candidates down to two; the last sees all batches.

    With one candidate there is nothing to choose and no rung.
    """
    sizes = []
    while candidates > 1:
        sizes.append(candidates)
        candidates = -(-candidates // 2)
    last = len(sizes) - 1
    return tuple(
        Rung(candidates=size, batches=-(-batches // 2 ** (last - at)))
        for at, size in enumerate(sizes)
    )


def num_steps(candidates: int, batches: int) -> int:
    """Return how many steps ``Halving`` takes for so many candidates."""
    return sum(-(-rung.candidates // CHUNK) for rung in rungs(candidates, batches))


@dataclass
class Contender:
    """A candidate: which supernet it is of, its choices, and what it got right so far.

    ``rung`` is the last one that it entered.
    """

    net: int
    choices: tuple[int, ...]
    correct: int = 0
    seen: int = 0
    batches: int = 0
    rung: int = 0

    @property
    def accuracy(self) -> float:
        return self.correct / self.seen if self.seen else 0.0


Score = Callable[[Contender, int], tuple[int, int]]
"""Returns how many images of a numbered batch a contender gets right, and how many there are."""


class Halving:
    """The contest, advanced by ``step``; equal accuracies fall to the earlier contender.

    Args:
        contenders: In any order; those of one net beside each other save loading it again.
        batches: Number of held-out batches.
    """

    def __init__(self, contenders: list[Contender], batches: int) -> None:
        self.contenders, self._batches = contenders, batches
        self._rungs = rungs(len(contenders), batches)
        self._alive = list(range(len(contenders)))
        self._rung, self._at = 0, 0

    @property
    def done(self) -> bool:
        return self._rung >= len(self._rungs)

    def step(self, score: Score) -> None:
        """Score up to ``CHUNK`` contenders; after a rung's last one drop the worse half.

        Raises:
            ConflictError: The contest is over.
        """
        if self.done:
            raise ConflictError("the contest is over: all rungs are done")
        rung = self._rungs[self._rung]
        for at in self._alive[self._at : self._at + CHUNK]:
            contender = self.contenders[at]
            for batch in range(contender.batches, rung.batches):
                correct, seen = score(contender, batch)
                contender.correct += correct
                contender.seen += seen
            contender.batches = max(contender.batches, rung.batches)
        self._at += CHUNK
        if self._at >= len(self._alive):
            kept = self._sorted(self._alive)[: -(-len(self._alive) // 2)]
            self._alive = sorted(kept)
            self._rung, self._at = self._rung + 1, 0
            for at in self._alive:
                self.contenders[at].rung = self._rung

    def ranking(self) -> list[Contender]:
        """Return all contenders, those that went farthest first, then by accuracy."""
        return [self.contenders[at] for at in self._sorted(range(len(self.contenders)))]

    def state_dict(self) -> dict[str, Any]:
        return {
            "contenders": [
                [c.net, list(c.choices), c.correct, c.seen, c.batches, c.rung]
                for c in self.contenders
            ],
            "batches": self._batches,
            "alive": list(self._alive),
            "rung": self._rung,
            "at": self._at,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Halving:
        """Return a contest that continues where ``state`` was taken."""
        contenders = [
            Contender(
                net=net,
                choices=tuple(choices),
                correct=right,
                seen=seen,
                batches=batches,
                rung=rung,
            )
            for net, choices, right, seen, batches, rung in state["contenders"]
        ]
        contest = cls(contenders, int(state["batches"]))
        contest._alive = list(state["alive"])
        contest._rung, contest._at = int(state["rung"]), int(state["at"])
        return contest

    def _sorted(self, numbers: Any) -> list[int]:
        def key(at: int) -> tuple[int, float, int]:
            return (-self.contenders[at].rung, -self.contenders[at].accuracy, at)

        return sorted(numbers, key=key)
