"""Policies of the cache: traces of misses, repeats and hits, and what they change in a search."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import optuna
import pytest

from nas.checkpoint import pack, unpack
from nas.dedup import Deduping, DedupingEvaluator, Kind, Policy
from nas.methods.evolution import RegularizedEvolution
from nas.methods.sampling import Nsga2
from nas.plugins import MethodContext
from nas.spaces.nats_size import NatsSizeSpace
from zoo.errors import InvalidInputError, TrainerError
from zoo.spec import Architecture, Evaluation

SPACE = NatsSizeSpace(widths=(1, 2))


def trace(deduping: Deduping[str], items: str) -> str:
    """Score the letters and write a letter each: miss, partial or hit."""
    kinds = [deduping.score(item, lambda *_: {"accuracy": 1.0}).kind for item in items]
    return "".join(str(kind)[0] for kind in kinds)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(repeats=1), "mhmhhh"),
        (Policy(repeats=2), "mpmhhp"),
        (Policy(), "mpmphp"),
        (Policy(repeats=1, forget=1.0), "mhmmhh"),
        (Policy(repeats=2, forget=1.0), "mpmhmp"),
    ],
)
def test_the_trace_of_misses_repeats_and_hits(policy: Policy, expected: str) -> None:
    assert trace(Deduping(str, policy), "aabaab") == expected


def test_a_share_of_the_hits_is_forgotten() -> None:
    deduping = Deduping(str, Policy(repeats=1, forget=0.1), seed=3)
    found = trace(deduping, "a" * 2000)
    assert 130 < found.count("m") < 270
    assert deduping.counts == {"miss": found.count("m"), "partial": 0, "hit": found.count("h")}
    assert found == trace(Deduping(str, Policy(repeats=1, forget=0.1), seed=3), "a" * 2000)


def test_repeats_give_the_running_mean_and_spread() -> None:
    values = iter([0.5, 0.8, 0.2, 99.0])
    seen: list[int] = []

    def evaluate(_: str, repeat: int) -> Mapping[str, float]:
        seen.append(repeat)
        return {"accuracy": next(values)}

    deduping = Deduping(str)
    recalled = [deduping.score("a", evaluate) for _ in range(5)]
    assert seen == [0, 1, 2]
    assert [item.repeats for item in recalled] == [1, 2, 3, 3, 3]
    means = [item.metrics["accuracy"] for item in recalled]
    assert means == pytest.approx([0.5, 0.65, 0.5, 0.5, 0.5])
    spreads = [item.spread["accuracy"] for item in recalled]
    third = float(np.std([0.5, 0.8, 0.2], ddof=1))
    assert spreads == pytest.approx([0.0, 0.3 / 2**0.5, third, third, third])


def test_no_number_is_given_twice_though_all_was_forgotten() -> None:
    seen: list[int] = []

    def evaluate(_: str, number: int) -> Mapping[str, float]:
        seen.append(number)
        return {"accuracy": float(number)}

    deduping = Deduping(str, Policy(repeats=2, forget=1.0))
    recalled = [deduping.score("a", evaluate) for _ in range(6)]
    assert seen == [0, 1, 2, 3]
    assert [item.metrics["accuracy"] for item in recalled] == [0.0, 0.5, 0.5, 2.0, 2.5, 2.5]
    assert [list(item.numbers) for item in recalled[2:4]] == [[0, 1], [2]]
    assert (deduping.total("a"), list(deduping.remembered("a"))) == (4, [])
    assert (deduping.total("b"), list(deduping.remembered("b"))) == (0, [])


def test_items_of_one_hash_share_their_evaluations() -> None:
    deduping = Deduping(str.lower, Policy(repeats=1))
    assert trace(deduping, "aAbBA") == "mhmhh"


def test_an_evaluation_that_fails_leaves_no_trace() -> None:
    def fail(*_: object) -> Mapping[str, float]:
        raise TrainerError("out of memory")

    deduping = Deduping(str, Policy(repeats=1))
    with pytest.raises(TrainerError):
        deduping.score("a", fail)
    assert deduping.state_dict() == Deduping(str).state_dict()
    assert trace(deduping, "aa") == "mh"


def test_a_repeat_with_other_metrics_is_refused() -> None:
    deduping = Deduping(str)
    deduping.score("a", lambda *_: {"accuracy": 1.0})
    with pytest.raises(InvalidInputError, match="the first evaluation accuracy"):
        deduping.score("a", lambda *_: {"loss": 1.0})


def proposals(text: str) -> tuple[Callable[[], str], list[str]]:
    left = list(text)
    return lambda: left.pop(0), left


def test_proposals_are_repeated_until_the_hash_is_new() -> None:
    deduping = Deduping(str)
    trace(deduping, "ab")
    propose, left = proposals("abacd")
    assert deduping.fresh(propose) == "c"
    assert left == ["d"]


def test_after_all_attempts_the_last_proposal_stands() -> None:
    deduping = Deduping(str, Policy(attempts=3))
    trace(deduping, "ab")
    propose, left = proposals("aabc")
    assert deduping.fresh(propose) == "b"
    assert left == ["c"]


@pytest.mark.parametrize(
    ("tabu", "expected"), [(0, "a"), (1, "a"), (2, "b"), (3, "d"), (None, "d")]
)
def test_the_tabu_list_holds_the_latest_hashes(tabu: int | None, expected: str) -> None:
    deduping = Deduping(str, Policy(tabu=tabu))
    trace(deduping, "babcac" if tabu == 1 else "bac")
    propose, _ = proposals("abcd")
    assert deduping.fresh(propose) == expected


def test_a_memory_that_is_saved_and_loaded_goes_on_alike() -> None:
    policy = Policy(repeats=2, forget=0.3)
    whole = Deduping(str, policy, seed=1)
    items = "".join(random.Random(0).choices("abcdef", k=300))
    expected = trace(whole, items)
    deduping = Deduping(str, policy, seed=1)
    found = ""
    for start in range(0, 300, 50):
        found += trace(deduping, items[start : start + 50])
        state = unpack(pack(deduping.state_dict()))
        deduping = Deduping(str, policy, seed=1)
        deduping.load_state_dict(state)
    assert found == expected
    assert deduping.counts == whole.counts


@pytest.mark.parametrize(
    "wrong", [{"repeats": 0}, {"attempts": 0}, {"tabu": -1}, {"forget": 1.5}, {"forget": -0.1}]
)
def test_wrong_policies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Policy(**wrong)


class Counting:
    """Scores by the sum of the choices, a little off for each repeat."""

    def __init__(self, repeat: int = 0, noise: float = 0.0) -> None:
        self.offset = noise * repeat
        self.asked: list[Architecture] = []

    def describe(self) -> dict[str, Any]:
        return {"evaluator": "counting"}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        self.asked.append(architecture)
        accuracy = sum(architecture.choices) / 10 + self.offset
        return Evaluation(metrics={"accuracy": accuracy}, cost_s=1.0)


def evolve(evaluator: Any) -> list[Architecture]:
    context = MethodContext(space=SPACE, seed=4, evaluator=evaluator, objectives=("accuracy",))
    method = RegularizedEvolution(context, candidates=60, population=8, tournament=3)
    return [method.step().scored[0].architecture for _ in range(60)]


def test_with_a_deterministic_evaluator_a_search_is_the_same_and_pays_once() -> None:
    plain = Counting()
    expected = evolve(plain)
    counting = Counting()
    deduping = Deduping[Architecture](lambda item: item.id, Policy(repeats=1))
    assert evolve(DedupingEvaluator(lambda _: counting, deduping)) == expected
    assert len(counting.asked) == len(set(expected)) < len(plain.asked) == 60
    assert deduping.counts["hit"] == 60 - len(counting.asked)


def test_every_repeat_has_an_evaluator_of_its_own() -> None:
    made: list[Counting] = []

    def make(repeat: int) -> Counting:
        made.append(Counting(repeat, noise=0.3))
        return made[-1]

    evaluator = DedupingEvaluator(make, Deduping(lambda item: item.id))
    architecture = SPACE.sample(random.Random(0))
    found = [evaluator.evaluate(architecture) for _ in range(4)]
    base = sum(architecture.choices) / 10
    accuracies = [item.metrics["accuracy"] for item in found]
    assert accuracies == pytest.approx([base, base + 0.15, base + 0.3, base + 0.3])
    assert [item.cost_s for item in found] == [1.0, 1.0, 1.0, 0.0]
    assert [item.repeats for item in found] == [1, 2, 3, 3]
    assert [len(item.asked) for item in made] == [1, 1, 1]


@pytest.mark.parametrize("method", [RegularizedEvolution, Nsga2])
def test_a_method_proposes_anew_what_its_context_refuses(method: Any) -> None:
    def searched(attempts: int, stop_at: int | None = None) -> list[str]:
        deduping = Deduping[Architecture](by_function, Policy(repeats=1, attempts=attempts))
        evaluator = DedupingEvaluator(lambda _: Counting(), deduping)

        def make() -> Any:
            return method(
                MethodContext(
                    space=SPACE,
                    seed=4,
                    evaluator=evaluator,
                    objectives=("accuracy",),
                    fresh=deduping.fresh,
                ),
                candidates=12,
                population=4,
            )

        made, found = make(), []
        for number in range(12):
            if number == stop_at:
                state = unpack(pack(made.state_dict()))
                made = make()
                made.load_state_dict(state)
            found.append(by_function(made.step().scored[0].architecture))
        return found

    # NATS-Bench's five widths of one or two channels, told apart by their sum: six functions.
    refused = searched(100)
    assert len(set(refused[:4])) == 4
    assert len(set(refused)) > len(set(searched(1)))
    assert searched(100, stop_at=5) == refused


def by_function(architecture: Architecture) -> str:
    return str(sum(architecture.choices))


@pytest.fixture
def quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.mark.usefixtures("quiet_optuna")
def test_an_optuna_study_can_use_it() -> None:
    deduping = Deduping[tuple[int, ...]](str, Policy(repeats=1))
    calls = count()

    def train(choices: tuple[int, ...], _: int) -> Mapping[str, float]:
        next(calls)
        return {"accuracy": sum(choices) / 6}

    def objective(trial: optuna.Trial) -> float:
        choices = tuple(trial.suggest_int(f"x{at}", 0, 2) for at in range(3))
        return deduping.score(choices, train).metrics["accuracy"]

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=40)
    evaluated = next(calls)
    assert study.best_value == 1.0
    assert evaluated == len({tuple(trial.params.values()) for trial in study.trials}) < 40
    assert deduping.counts[Kind.HIT] == 40 - evaluated
