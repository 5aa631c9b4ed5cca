"""Regularised evolution and local search step by step, on a landscape with known summits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from nas.checkpoint import pack, unpack
from nas.methods.evolution import RegularizedEvolution
from nas.methods.local_search import LocalSearch
from nas.methods.stepping import Sampling
from nas.plugins import MethodContext
from nas.spaces.nats_size import NatsSizeSpace
from zoo.errors import TrainerCrashError
from zoo.schemas import Limit
from zoo.spec import Architecture, Evaluation

SPACE = NatsSizeSpace(widths=(1, 2, 3, 4))


def distance(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@dataclass
class Hill:
    """Accuracy grows with every choice, latency with the first two only."""

    fails: frozenset[int] = frozenset()
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {"evaluator": "hill"}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        self.seen.append(architecture.choices)
        if len(self.seen) - 1 in self.fails:
            raise TrainerCrashError("signal 11")
        return Evaluation(metrics=self.metrics(architecture.choices), cost_s=0.0)

    def metrics(self, choices: Sequence[int]) -> dict[str, float]:
        return {"accuracy": sum(choices) / 15, "latency_ms": 1.0 + sum(choices[:2])}


def context(hill: Hill, seed: int = 0, **changes: Any) -> MethodContext:
    given = {"objectives": ("accuracy",), **changes}
    return MethodContext(space=SPACE, seed=seed, evaluator=hill, **given)


def run(method: Sampling) -> None:
    while not method.step().done:
        pass


@pytest.mark.parametrize("seed", range(3))
def test_a_child_is_a_mutant_of_one_that_is_alive_and_wins_a_tournament(seed: int) -> None:
    hill = Hill(fails=frozenset({3, 20, 21}))
    run(RegularizedEvolution(context(hill, seed), candidates=80, population=6, tournament=3))
    for at in range(9, 80):
        alive = [c for i, c in enumerate(hill.seen[:at]) if i not in hill.fails][-6:]
        parents = [choices for choices in alive if distance(choices, hill.seen[at]) == 1]
        worst = min(alive, key=sum)
        assert parents
        assert any(sum(parent) >= sum(worst) for parent in parents)


def test_evolution_reaches_the_summit() -> None:
    hill = Hill()
    method = RegularizedEvolution(context(hill), candidates=300, population=10, tournament=5)
    run(method)
    assert method.best(1)[0].choices == (3, 3, 3, 3, 3)


def test_with_a_tournament_of_everyone_the_best_alive_is_the_parent() -> None:
    hill = Hill()
    run(RegularizedEvolution(context(hill), candidates=60, population=4, tournament=400))
    for at in range(4, 60):
        alive = hill.seen[at - 4 : at]
        best = max(map(sum, alive))
        assert any(sum(c) == best and distance(c, hill.seen[at]) == 1 for c in alive)


def test_several_objectives_share_the_parents() -> None:
    hill = Hill()
    both = context(hill, objectives=("accuracy", "latency_ms"))
    method = RegularizedEvolution(both, candidates=250, population=12, tournament=6)
    run(method)
    latencies = {hill.metrics(c)["latency_ms"] for c in hill.seen[200:]}
    assert len(latencies) >= 3
    free_lunch = [c for c in hill.seen if sum(c[2:]) == 9]
    assert {sum(c[:2]) for c in free_lunch} >= {0, 1, 2, 3}


def test_of_infeasible_candidates_the_nearest_to_the_limit_is_mutated() -> None:
    hill = Hill()
    limited = context(hill, limits=(Limit(metric="latency_ms", max=1.0),))
    run(RegularizedEvolution(limited, candidates=120, population=8, tournament=6))
    assert sum(hill.metrics(c)["latency_ms"] == 1.0 for c in hill.seen) > 40


def test_a_climb_offers_its_neighbours_one_by_one_while_they_are_refused() -> None:
    asked: list[tuple[int, ...]] = []

    def fresh(propose: Callable[[], Architecture]) -> Architecture:
        asked[:] = [propose().choices for _ in range(8)]
        return Architecture(space=SPACE.describe(), choices=asked[-1])

    hill = Hill()
    method = LocalSearch(context(hill, fresh=fresh), candidates=3)
    method.step()
    assert len(set(asked)) == 8  # starts
    method.step()
    assert len(set(asked)) == 8
    assert {distance(choices, hill.seen[0]) for choices in asked} == {1}
    assert hill.seen[1] == asked[-1]
    method.step()
    assert hill.seen[1] not in asked


def test_a_climb_takes_the_first_better_neighbour_until_there_is_none() -> None:
    hill = Hill()
    run(LocalSearch(context(hill), candidates=60))
    here = hill.seen[0]
    at = 1
    while here != (3, 3, 3, 3, 3):
        assert distance(hill.seen[at], here) == 1
        if sum(hill.seen[at]) > sum(here):
            here = hill.seen[at]
        at += 1
    # The summit has 15 neighbours, all lower; then the next climb starts anywhere.
    while at < 60 and distance(hill.seen[at], here) == 1:
        at += 1
    assert at < 60


def test_no_climb_evaluates_anything_twice() -> None:
    hill = Hill()
    run(LocalSearch(context(hill), candidates=300))
    assert len(set(hill.seen)) == len(hill.seen)


def test_climbs_with_several_objectives_reach_the_front_in_several_places() -> None:
    hill = Hill()
    method = LocalSearch(context(hill, objectives=("accuracy", "latency_ms")), candidates=300)
    run(method)
    best = method.best(7)
    assert len({sum(item.choices[:2]) for item in best}) >= 4


def test_a_climb_enters_the_feasible_region_and_stays() -> None:
    hill = Hill()
    limited = context(hill, limits=(Limit(metric="latency_ms", max=2.0),))
    method = LocalSearch(limited, candidates=90)
    run(method)
    (winner,) = method.best(1)
    assert hill.metrics(winner.choices) == {"accuracy": 10 / 15, "latency_ms": 2.0}


def test_a_climb_survives_failures_and_a_checkpoint_anywhere() -> None:
    fails = frozenset({0, 4, 5, 17})
    whole = Hill(fails=fails)
    undisturbed = LocalSearch(context(whole), candidates=40)
    run(undisturbed)
    hill = Hill(fails=fails)
    method = LocalSearch(context(hill), candidates=40)
    for _ in range(40):
        method.step()
        state = unpack(pack(method.state_dict()))
        method = LocalSearch(context(hill), candidates=40)
        method.load_state_dict(state)
    assert hill.seen == whole.seen
    assert method.state_dict() == undisturbed.state_dict()
