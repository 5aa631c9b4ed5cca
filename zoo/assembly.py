"""Choose the best chain under limits: stored ones whole, and new ones cut from their blocks.

Selection is by prediction, decision is by measurement. Every chain is first judged from
what is known of it (its card, and profiles: its own or the sum of its blocks'); the most
promising are then measured whole, those predicted to keep every limit first.
A recombination has no card, so it is evaluated on held-out data before it may compete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations
from typing import Protocol

from zoo.canonical import Json, content_id, plain
from zoo.errors import InfeasibleError, TrainerError, UnknownNameError
from zoo.schemas import METRICS
from zoo.spec import Block, Chain

Metrics = Mapping[str, float]

MAX_RECOMBINATIONS = 2000
"""Recombinations looked at by prediction."""

MAX_EVALUATED = 8
"""Recombinations run on held-out data."""

MAX_MEASURED = 24
"""Finalists measured whole, if one of them keeps the limits."""

SLACK = 1.25
"""A predicted latency this many times over its limit is believed without measuring."""


class Bound(Protocol):
    """A limit on one metric, as ``zoo.schemas.Limit``."""

    @property
    def metric(self) -> str: ...

    @property
    def max(self) -> float | None: ...

    @property
    def min(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """The chosen chain, what was measured of it, and why it and not another.

    ``parents`` are the chains that a recombination was cut from; empty for a stored
    chain. ``explanation`` is ``{"chosen", "refused": [{"chain", "why"}], "considered"}``.
    """

    chain: Chain
    metrics: Metrics
    parents: tuple[str, ...] = ()
    explanation: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Option:
    chain: Chain
    metrics: Metrics
    parents: tuple[Chain, ...] = ()

    def merged(self, metrics: Metrics) -> _Option:
        return _Option(chain=self.chain, metrics={**self.metrics, **metrics}, parents=self.parents)


def assemble(
    chains: Sequence[Chain],
    profiles: Mapping[str, float],
    limits: Sequence[Bound],
    objective: str,
    *,
    measure: Callable[[Chain], Metrics],
    evaluate: Callable[[Chain], Metrics] | None = None,
) -> Assembly:
    """Return the chain with the best ``objective`` whose measured metrics keep every limit.

    Args:
        chains: Stored chains with cards; ``card["metrics"]`` holds what is known of each.
        profiles: Block or chain id → median latency in ms on the target device, runtime
            and batch size; what is missing is measured when its turn comes.
        limits: Bounds on metrics named in ``zoo.schemas.METRICS``.
        objective: The metric to be best in.
        measure: Runs a whole chain on the target; returns at least ``latency_ms``.
        evaluate: Runs a chain on held-out data; returns at least ``accuracy``. Without it
            only stored chains are considered.

    Raises:
        UnknownNameError: ``objective`` is no metric.
        InfeasibleError: No chain keeps the limits; ``nearest`` describes the closest.
    """
    if objective not in METRICS:
        raise UnknownNameError("objective", objective, METRICS)
    search = _Search(limits, objective, measure)
    stored = [_Option(chain=chain, metrics=_known(chain, profiles)) for chain in chains]
    options = [option for option in stored if search.plausible(option)]
    considered = len(stored)
    if evaluate is not None:
        parents = [option.chain for option in sorted(stored, key=search.order)]
        fresh = list(islice(recombinations(parents), MAX_RECOMBINATIONS))
        considered += len(fresh)
        options += search.evaluated(fresh, options, profiles, evaluate)
    chosen = search.decide(options)
    if chosen is None:
        raise search.infeasible(len(chains))
    return search.report(chosen, considered)


def recombinations(chains: Sequence[Chain]) -> Iterator[tuple[Chain, tuple[Chain, Chain]]]:
    """Yield each new chain made of the head of one chain and the tail of another, once.

    Only chains of one task meet: same data, same classes, same outer interface.
    """
    seen = {chain.id for chain in chains}
    tasks: dict[str, list[Chain]] = {}
    for chain in chains:
        tasks.setdefault(content_id(_task(chain)), []).append(chain)
    for group in tasks.values():
        for left, right in permutations(group, 2):
            for blocks in _crossings(left, right):
                made = Chain(blocks=blocks)
                if made.id not in seen:
                    seen.add(made.id)
                    yield made, (left, right)


def _crossings(left: Chain, right: Chain) -> Iterator[tuple[Block, ...]]:
    for i in range(1, len(left.blocks)):
        for j in range(1, len(right.blocks)):
            given, wanted = left.blocks[i - 1].spec.outputs, right.blocks[j].spec.inputs
            if len(given) == len(wanted) and all(
                a.accepts(b) for a, b in zip(wanted, given, strict=True)
            ):
                yield left.blocks[:i] + right.blocks[j:]


def _task(chain: Chain) -> Json:
    """Return what two chains must share to exchange blocks."""
    card = chain.card
    names = ("task", "data", "class_names", "normalization")
    return plain(
        {name: card.get(name) for name in names}
        | {
            "inputs": [tensor.to_json() for tensor in chain.inputs],
            "outputs": [tensor.to_json() for tensor in chain.outputs],
        }
    )


def _known(chain: Chain, profiles: Mapping[str, float]) -> dict[str, float]:
    """Return what is known of a chain before it is measured; latency from profiles only."""
    stated = chain.card.get("metrics")
    metrics = (
        {
            str(name): float(value)
            for name, value in stated.items()
            if isinstance(value, int | float) and name != "latency_ms"
        }
        if isinstance(stated, Mapping)
        else {}
    )
    metrics |= {"num_params": chain.num_params, "size_bytes": chain.size_bytes}
    latency = predicted_latency(chain, profiles)
    return metrics if latency is None else metrics | {"latency_ms": latency}


def predicted_latency(chain: Chain, profiles: Mapping[str, float]) -> float | None:
    """Return the chain's own profile or the sum of its blocks', in ms; None if one lacks."""
    if chain.id in profiles:
        return profiles[chain.id]
    parts = [profiles.get(block.id) for block in chain.blocks]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


class _Search:
    """One decision in the making: what was refused so far, and what came nearest."""

    def __init__(
        self, limits: Sequence[Bound], objective: str, measure: Callable[[Chain], Metrics]
    ) -> None:
        self._limits = limits
        self._objective = objective
        self._sign = -1.0 if METRICS[objective] == "maximize" else 1.0
        self._measure = measure
        self._refused: list[dict[str, Json]] = []
        self._nearest: tuple[float, _Option] | None = None

    def plausible(self, option: _Option) -> bool:
        """Refuse an option that its known metrics put out of the question."""
        for limit in self._limits:
            value = option.metrics.get(limit.metric)
            if value is None:
                continue
            over = _violation(limit, value)
            allowed = SLACK - 1 if limit.metric in ("latency_ms", "peak_bytes") else 0.0
            if over > allowed:
                verb = "predicted " if limit.metric == "latency_ms" else ""
                self._refuse(option, verb + _says(limit, option.metrics))
                return False
        return True

    def evaluated(
        self,
        fresh: Sequence[tuple[Chain, tuple[Chain, Chain]]],
        rivals: Sequence[_Option],
        profiles: Mapping[str, float],
        evaluate: Callable[[Chain], Metrics],
    ) -> list[_Option]:
        """Run the most promising recombinations on held-out data; return the plausible ones."""
        guesses = []
        for chain, parents in fresh:
            parts = [_known(parent, profiles) for parent in parents]
            guess = {**_known(chain, profiles), **_average(parts)}
            option = _Option(chain=chain, metrics=guess, parents=parents)
            if self._could_win(option, parts, rivals):
                guesses.append(option)
        guesses.sort(key=self.order)
        options = []
        for option in guesses[:MAX_EVALUATED]:
            try:
                scored = option.merged(evaluate(option.chain))
            except TrainerError as error:
                self._refuse(option, f"could not be evaluated: {error}")
                continue
            if self.plausible(scored):
                options.append(scored)
        return options

    def decide(self, options: Sequence[_Option]) -> _Option | None:
        """Measure options whole, as ``_queue`` says, until none that is left can win.

        Once one keeps the limits at most ``MAX_MEASURED`` are measured; until then all are.
        """
        best: _Option | None = None
        count = 0
        for option in self._queue(options):
            if best is not None and self.order(option) >= self.order(best):
                self._refuse(option, self._compared(option, best))
                continue
            if best is not None and count >= MAX_MEASURED:
                self._refuse(option, f"not measured: {MAX_MEASURED} others were")
                continue
            count += 1
            try:
                measured = option.merged(self._measure(option.chain))
            except TrainerError as error:
                self._refuse(option, f"could not be measured: {error}")
                continue
            broken = [limit for limit in self._limits if not _holds(limit, measured.metrics)]
            if broken:
                why = "; ".join(_says(limit, measured.metrics) for limit in broken)
                self._refuse(measured, f"measured whole: {why}")
            elif best is None or self.order(measured) < self.order(best):
                if best is not None:
                    self._refuse(best, self._compared(best, measured))
                best = measured
            else:
                self._refuse(measured, self._compared(measured, best))
        return best

    def _queue(self, options: Sequence[_Option]) -> list[_Option]:
        """Order options for measuring: those predicted to hold, best first, then the fastest."""

        def holds(option: _Option) -> bool:
            known = [limit for limit in self._limits if limit.metric in option.metrics]
            return all(_holds(limit, option.metrics) for limit in known)

        def latency(option: _Option) -> tuple[float, tuple[float, float, str]]:
            return option.metrics.get("latency_ms", float("inf")), self.order(option)

        likely = sorted(filter(holds, options), key=self.order)
        rest = [option for option in options if not holds(option)] + likely[MAX_MEASURED:]
        return likely[:MAX_MEASURED] + sorted(rest, key=latency)

    def infeasible(self, count: int) -> InfeasibleError:
        """Return the error that names the limits and what came nearest to them."""
        wanted = " and ".join(_bound(limit) for limit in self._limits) or "no limit"
        if self._nearest is None:
            return InfeasibleError(
                f"none of {count} chains can be assembled under {wanted}; run a search first"
            )
        over, option = self._nearest
        description: dict[str, object] = {
            "chain": option.chain.id,
            "blocks": [block.id for block in option.chain.blocks],
            "metrics": dict(option.metrics),
        }
        said = ", ".join(
            f"{limit.metric} {option.metrics[limit.metric]:.6g}"
            for limit in self._limits
            if limit.metric in option.metrics
        )
        return InfeasibleError(
            f"no chain of {count} keeps {wanted}; the nearest, {option.chain.id[:12]}, has {said}: "
            "relax the limit or search for a smaller network",
            nearest=description,
        )

    def report(self, chosen: _Option, considered: int) -> Assembly:
        """Return the decision with its reasons."""
        kept = ", ".join(_says(limit, chosen.metrics) for limit in self._limits)
        value = chosen.metrics.get(self._objective)
        best = f"best {self._objective}" + ("" if value is None else f" {value:.6g}")
        origin = (
            "recombined from " + " and ".join(parent.id[:12] for parent in chosen.parents)
            if chosen.parents
            else "stored chain"
        )
        explanation: dict[str, Json] = {
            "chosen": f"{origin}: {best}" + (f"; keeps {kept}" if kept else ""),
            "refused": plain(self._refused),
            "considered": considered,
        }
        return Assembly(
            chain=chosen.chain,
            metrics=chosen.metrics,
            parents=tuple(parent.id for parent in chosen.parents),
            explanation=explanation,
        )

    def _could_win(
        self, option: _Option, parents: Sequence[Metrics], rivals: Sequence[_Option]
    ) -> bool:
        """Say whether a recombination, at best as good as its better parent, could be chosen."""
        if any(
            _violation(limit, option.metrics[limit.metric]) > 0
            for limit in self._limits
            if limit.metric in option.metrics and limit.metric != "accuracy"
        ):
            return False
        if self._objective != "accuracy":
            return True
        hope = max((_score(metrics, "accuracy") or 0.0 for metrics in parents), default=0.0)
        return all(
            hope > (_score(rival.metrics, "accuracy") or 0.0)
            for rival in rivals
            if all(_holds(limit, rival.metrics) for limit in self._limits)
        )

    def order(self, option: _Option) -> tuple[float, float, str]:
        """Return what sorts options by objective, then latency; the best is the least."""
        value = _score(option.metrics, self._objective)
        first = float("inf") if value is None else self._sign * value
        return first, option.metrics.get("latency_ms", float("inf")), option.chain.id

    def _compared(self, worse: _Option, better: _Option) -> str:
        mine = _score(worse.metrics, self._objective)
        theirs = _score(better.metrics, self._objective)
        if mine is None or theirs is None:
            return f"{self._objective} is unknown"
        if mine == theirs:
            return f"{self._objective} {mine:.6g} equals that of the chosen one, which is faster"
        return f"{self._objective} {mine:.6g} is no better than {theirs:.6g}"

    def _refuse(self, option: _Option, why: str) -> None:
        entry: dict[str, Json] = {"chain": option.chain.id, "why": why}
        if option.parents:
            entry = {
                "chain": None,
                "blocks": [block.id for block in option.chain.blocks],
                "why": why,
            }
        self._refused.append(entry)
        over = sum(
            _violation(limit, option.metrics[limit.metric])
            for limit in self._limits
            if limit.metric in option.metrics
        )
        if over > 0 and (self._nearest is None or over < self._nearest[0]):
            self._nearest = (over, option)


def _average(parts: Sequence[Metrics]) -> dict[str, float]:
    """Guess the scores of a recombination: between its parents."""
    return {
        name: sum(part[name] for part in parts) / len(parts)
        for name in ("accuracy", "val_accuracy")
        if all(name in part for part in parts)
    }


def _score(metrics: Metrics, objective: str) -> float | None:
    """Return what chains are ranked by: for accuracy the validation split's, where known.

    The test split's stays a report, so that choosing does not spend it.
    """
    if objective == "accuracy" and "val_accuracy" in metrics:
        return metrics["val_accuracy"]
    return metrics.get(objective)


def _holds(limit: Bound, metrics: Metrics) -> bool:
    return limit.metric in metrics and _violation(limit, metrics[limit.metric]) <= 0


def _violation(limit: Bound, value: float) -> float:
    """Return by which fraction of the bound a value breaks it; 0 if it keeps it."""
    over = 0.0
    if limit.max is not None and value > limit.max:
        over = (value - limit.max) / max(abs(limit.max), 1e-12)
    if limit.min is not None and value < limit.min:
        over = max(over, (limit.min - value) / max(abs(limit.min), 1e-12))
    return over


def _bound(limit: Bound) -> str:
    parts = []
    if limit.min is not None:
        parts.append(f"{limit.metric} >= {limit.min:g}")
    if limit.max is not None:
        parts.append(f"{limit.metric} <= {limit.max:g}")
    return " and ".join(parts)


def _says(limit: Bound, metrics: Metrics) -> str:
    if limit.metric not in metrics:
        return f"{limit.metric} is unknown, wanted {_bound(limit)}"
    return f"{limit.metric} {metrics[limit.metric]:.6g}, wanted {_bound(limit)}"
