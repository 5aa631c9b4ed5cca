"""Which candidates are evaluated again, and which are answered from memory.

A policy over hashes, whatever they are hashes of and whoever proposes: a search method
here, an Optuna study, or a loop of one's own. ``Deduping.score`` stands around the
evaluation, ``Deduping.fresh`` around the proposal:

    deduping = Deduping(hash_fn, Policy(repeats=3))
    study.optimize(lambda trial: deduping.score(draw(trial), train).metrics["accuracy"])

| here | PyGlove ``Deduping`` | unified functional hashing |
|---|---|---|
| ``hash_fn`` | ``hash_fn`` | the functional hash |
| ``Policy.repeats`` | ``max_duplicates`` | M: evaluations before a full hit |
| the running mean | ``auto_reward_fn`` | the running mean |
| ``Policy.attempts`` | ``max_proposal_attempts`` | re-mutation (FCM) |
| ``Policy.forget`` | | F: probability that a full hit forgets its scores |
| ``Policy.tabu`` | | the length of the tabu list |

A search job uses the same class, with what it remembers in its checkpoints and each
evaluation in SQL, for all jobs (``workers.scoring``).

Source:
    Gillard et al. (2023), "Unified Functional Hashing in Automatic Machine Learning",
    arXiv:2302.05433. Differs: three repeats rather than one by default, since the score of a
    single noisy training would stay for good, and the luckiest ones would win. No two
    evaluations of a hash have one number, not even across forgetting: a seeded training that
    is repeated under its own seed would only score the same again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, Generic, TypeVar, final

from nas.protocols import Evaluator
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import Architecture, Evaluation

T = TypeVar("T")

Scores = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How often a hash is evaluated, when it is forgotten, and how hard new ones are sought.

    Args:
        repeats: Evaluations of a hash before it is answered from memory, at least 1.
        forget: Probability that such an answer is the last, so that the hash is evaluated
            anew the next time.
        attempts: Proposals among which ``fresh`` seeks a new hash, at least 1.
        tabu: How many of the latest hashes ``fresh`` refuses; all if None.

    Raises:
        InvalidInputError: A value is out of range.
    """

    repeats: int = 3
    forget: float = 0.0
    attempts: int = 100
    tabu: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("attempts", 1), ("tabu", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < least):
                raise InvalidInputError(f"{name} is {value!r}; it must be an integer >= {least}")
        if not 0 <= self.forget <= 1:
            raise InvalidInputError(f"forget is {self.forget!r}; it is a probability, 0 to 1")


class Kind(StrEnum):
    """How a score came about: first evaluated, evaluated again, or remembered."""

    MISS = "miss"
    PARTIAL = "partial"
    HIT = "hit"


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What is known of a hash: means over ``repeats`` evaluations, and their spread.

    ``spread`` is the sample standard deviation, 0 after one evaluation. ``numbers`` are
    those of the evaluations, as ``evaluate`` was given them.
    """

    kind: Kind
    metrics: Scores
    spread: Scores
    numbers: range

    @property
    def repeats(self) -> int:
        return len(self.numbers)


@dataclass
class _Entry:
    """Running sums of one hash, by Welford's recurrence; ``total`` counts what it forgot too."""

    total: int = 0
    count: int = 0
    mean: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Scores) -> None:
        if self.count and metrics.keys() != self.mean.keys():
            raise InvalidInputError(
                f"a repeat reports {', '.join(sorted(metrics))}, the first evaluation "
                f"{', '.join(sorted(self.mean))}; every repeat must report the same metrics"
            )
        self.total += 1
        self.count += 1
        for name, value in metrics.items():
            before = self.mean.get(name, 0.0)
            self.mean[name] = before + (value - before) / self.count
            change = (value - before) * (value - self.mean[name])
            self.squares[name] = self.squares.get(name, 0.0) + change

    def recall(self, kind: Kind) -> Recall:
        spread = {
            name: math.sqrt(value / (self.count - 1)) if self.count > 1 else 0.0
            for name, value in self.squares.items()
        }
        return Recall(kind=kind, metrics=dict(self.mean), spread=spread, numbers=self.numbers)

    @property
    def numbers(self) -> range:
        return range(self.total - self.count, self.total)

    def forget(self) -> None:
        self.count, self.mean, self.squares = 0, {}, {}


@final
class Deduping(Generic[T]):
    """Answers candidates whose hash it knows well enough; a function of its calls and seed.

    Args:
        hash_fn: Equal for candidates that need no evaluation of their own.
        policy: What is repeated, forgotten and refused.
        seed: Of what is forgotten.
    """

    def __init__(
        self, hash_fn: Callable[[T], str], policy: Policy | None = None, *, seed: int = 0
    ) -> None:
        self._hash = hash_fn
        self._policy = policy or Policy()
        self._seed = seed
        self._entries: dict[str, _Entry] = {}
        self._latest: dict[str, None] = {}
        self._counts = dict.fromkeys(Kind, 0)

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def counts(self) -> dict[str, int]:
        """How many scores were a ``miss``, ``partial`` or a ``hit``."""
        return {str(kind): count for kind, count in self._counts.items()}

    def score(self, item: T, evaluate: Callable[[T, int], Scores]) -> Recall:
        """Return what ``item`` scores, evaluating it unless its hash was often enough.

        Args:
            item: The candidate.
            evaluate: Given the candidate and the number of evaluations that its hash has
                ever had, forgotten ones too, so that each can take another seed. If it
                raises, nothing is kept.

        Raises:
            InvalidInputError: A repeat reports other metrics than the first evaluation.
        """
        key = self._hash(item)
        known = self._entries.get(key)
        if known is not None and known.count >= self._policy.repeats:
            recalled = known.recall(Kind.HIT)
            number = self._counts[Kind.HIT]
            drawn = random.Random(derive_seed(self._seed, "forget", number)).random()
            if drawn < self._policy.forget:
                known.forget()
        else:
            entry = known or _Entry()
            entry.add(evaluate(item, entry.total))
            self._entries[key] = entry
            recalled = entry.recall(Kind.MISS if entry.count == 1 else Kind.PARTIAL)
        self._counts[recalled.kind] += 1
        self._latest.pop(key, None)
        self._latest[key] = None
        return recalled

    def total(self, item: T) -> int:
        """Return how many evaluations the hash of ``item`` has had, forgotten ones too."""
        entry = self._entries.get(self._hash(item))
        return entry.total if entry else 0

    def remembered(self, item: T) -> range:
        """Return the numbers of the evaluations that an answer for ``item`` would rest on."""
        entry = self._entries.get(self._hash(item))
        return entry.numbers if entry else range(0)

    def fresh(self, propose: Callable[[], T]) -> T:
        """Return the first proposal whose hash is not tabu; the last one if all are.

        What counts as tabu is what ``score`` has seen, the latest ``Policy.tabu`` of it.
        """
        length = len(self._latest) if self._policy.tabu is None else self._policy.tabu
        refused = frozenset(islice(reversed(self._latest), length))
        item = propose()
        for _ in range(1, self._policy.attempts):
            if self._hash(item) not in refused:
                break
            item = propose()
        return item

    def state_dict(self) -> dict[str, Any]:
        """Return all that was learnt, as nested dicts and lists of numbers and strings."""
        return {
            "entries": {
                key: {
                    "total": entry.total,
                    "count": entry.count,
                    "mean": dict(entry.mean),
                    "squares": dict(entry.squares),
                }
                for key, entry in self._entries.items()
            },
            "latest": list(self._latest),
            "counts": self.counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another one with the same arguments has learnt."""
        self._entries = {
            key: _Entry(item["total"], item["count"], dict(item["mean"]), dict(item["squares"]))
            for key, item in state["entries"].items()
        }
        self._latest = dict.fromkeys(state["latest"])
        self._counts = {kind: state["counts"][str(kind)] for kind in Kind}


@final
class DedupingEvaluator:
    """An evaluator for search methods that evaluates through a ``Deduping``.

    Args:
        evaluators: Builds the evaluator of each repeat, of another seed each; called once
            for each.
        deduping: Whose memory and policy count.
    """

    def __init__(
        self, evaluators: Callable[[int], Evaluator], deduping: Deduping[Architecture]
    ) -> None:
        self._make = evaluators
        self._made = [evaluators(0)]
        self._deduping = deduping

    def describe(self) -> dict[str, Json]:
        policy = self._deduping.policy
        terms: dict[str, Json] = {"repeats": policy.repeats, "forget": policy.forget}
        return {"deduping": terms, "evaluator": self._made[0].describe()}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        """Return the running means; ``cost_s`` is 0 for what was remembered."""
        paid: list[Evaluation] = []

        def evaluate(item: Architecture, repeat: int) -> Scores:
            while len(self._made) <= repeat:
                self._made.append(self._make(len(self._made)))
            paid.append(self._made[repeat].evaluate(item))
            return paid[-1].metrics

        recalled = self._deduping.score(architecture, evaluate)
        return Evaluation(
            metrics=recalled.metrics,
            cost_s=paid[0].cost_s if paid else 0.0,
            repeats=recalled.repeats,
            device=paid[0].device if paid else None,
        )
