"""Choosing a chain: predictions order, measurements decide, every refusal has its reason."""

from __future__ import annotations

import pytest

from zoo.assembly import MAX_EVALUATED, MAX_MEASURED, assemble, predicted_latency, recombinations
from zoo.errors import InfeasibleError, TrainerError, UnknownNameError
from zoo.schemas import Limit
from zoo.spec import Block, BlockSpec, Chain, TensorSpec

HIDDEN = TensorSpec(shape=(8,))


def block(op: str, mark: str, *, size: int = 100, width: int = 8) -> Block:
    hidden = TensorSpec(shape=(width,))
    inputs, outputs = (
        (TensorSpec(shape=(1, 4, 4)), hidden)
        if op == "stem"
        else (hidden, TensorSpec(shape=(10,)) if op == "head" else hidden)
    )
    spec = BlockSpec(op=op, params={"mark": mark}, inputs=(inputs,), outputs=(outputs,))
    return Block(spec=spec, weights=mark * 8, num_params=size // 4, size_bytes=size)


def chain(
    mark: str, accuracy: float, *, size: int = 100, width: int = 8, task: str = "digits"
) -> Chain:
    blocks = tuple(
        block(op, f"{mark}-{op}", size=size, width=width) for op in ("stem", "cell", "head")
    )
    metrics = {"accuracy": accuracy - 0.01, "val_accuracy": accuracy, "latency_ms": 1e9}
    return Chain(blocks=blocks, card={"task": task, "data": f"d-{task}", "metrics": metrics})


GOOD, MIDDLE, SMALL = chain("good", 0.95), chain("middle", 0.9), chain("small", 0.8)
SPEED = {GOOD.id: 9.0, MIDDLE.id: 5.0, SMALL.id: 1.0}


def measured(item: Chain) -> dict[str, float]:
    return {"latency_ms": SPEED[item.id]}


def within(limit: float) -> tuple[Limit, ...]:
    return (Limit(metric="latency_ms", max=limit),)


@pytest.mark.parametrize(("limit", "best"), [(10.0, GOOD), (6.0, MIDDLE), (2.0, SMALL)])
def test_each_limit_gets_the_most_accurate_chain_that_keeps_it(limit: float, best: Chain) -> None:
    found = assemble([GOOD, MIDDLE, SMALL], SPEED, within(limit), "accuracy", measure=measured)
    assert found.chain == best
    assert found.metrics["latency_ms"] == SPEED[best.id]
    assert found.explanation["considered"] == 3
    assert len(found.explanation["refused"]) == 2  # type: ignore[arg-type]


def test_the_measured_latency_decides_and_not_the_predicted_one() -> None:
    hopeful = {**SPEED, GOOD.id: 4.0}
    found = assemble([GOOD, MIDDLE], hopeful, within(6.0), "accuracy", measure=measured)
    assert found.chain == MIDDLE
    refused: list[dict[str, str]] = found.explanation["refused"]  # type: ignore[assignment]
    assert refused[0]["chain"] == GOOD.id
    assert refused[0]["why"] == "measured whole: latency_ms 9, wanted latency_ms <= 6"


def test_a_chain_far_over_its_limit_is_refused_without_measuring() -> None:
    asked = []

    def measure(item: Chain) -> dict[str, float]:
        asked.append(item.id)
        return measured(item)

    found = assemble([GOOD, SMALL], SPEED, within(2.0), "accuracy", measure=measure)
    assert asked == [found.chain.id] == [SMALL.id]
    assert "predicted latency_ms 9" in str(found.explanation["refused"])


def test_a_latency_on_the_card_is_not_believed() -> None:
    found = assemble([GOOD], {}, within(10.0), "accuracy", measure=measured)
    assert found.metrics["latency_ms"] == 9.0


def test_when_nothing_fits_the_nearest_is_named() -> None:
    with pytest.raises(InfeasibleError, match=r"no chain of 2 keeps latency_ms <= 0.9") as caught:
        assemble([MIDDLE, SMALL], SPEED, within(0.9), "accuracy", measure=measured)
    assert caught.value.nearest is not None
    assert caught.value.nearest["chain"] == SMALL.id


def test_an_empty_zoo_says_what_to_do() -> None:
    with pytest.raises(InfeasibleError, match="run a search first"):
        assemble([], {}, within(1.0), "accuracy", measure=measured)


def test_one_chain_that_fits_is_found_among_many_a_little_too_slow() -> None:
    slow = [chain(f"slow{n}", 0.9 + n / 1000) for n in range(29)]
    fit = chain("fit", 0.5)
    speed = {fit.id: 0.5} | {item.id: 1.1 for item in slow}
    asked: list[str] = []

    def measure(item: Chain) -> dict[str, float]:
        asked.append(item.id)
        return {"latency_ms": speed[item.id]}

    found = assemble([*slow, fit], speed, within(1.0), "accuracy", measure=measure)
    assert found.chain == fit
    assert asked[0] == fit.id
    assert len(asked) <= MAX_MEASURED


def test_nothing_is_given_up_before_all_that_may_fit_was_measured() -> None:
    """Twenty-nine are predicted to fit and do not; one is predicted not to fit and does."""
    hopeful = [chain(f"hopeful{n}", 0.9 + n / 1000) for n in range(29)]
    modest = chain("modest", 0.5)
    predicted = {modest.id: 1.1} | {item.id: 0.9 for item in hopeful}

    def measure(item: Chain) -> dict[str, float]:
        return {"latency_ms": 1.0 if item == modest else 1.2}

    found = assemble([*hopeful, modest], predicted, within(1.0), "accuracy", measure=measure)
    assert found.chain == modest


def test_an_unknown_objective_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match="latency_ms"):
        assemble([GOOD], {}, (), "speed", measure=measured)


def test_a_minimised_objective_takes_the_least() -> None:
    found = assemble([GOOD, MIDDLE, SMALL], SPEED, (), "latency_ms", measure=measured)
    assert found.chain == SMALL


def test_a_limit_on_accuracy_is_judged_on_the_test_split() -> None:
    limits = (Limit(metric="accuracy", min=0.89), *within(6.0))
    found = assemble([GOOD, MIDDLE, SMALL], SPEED, limits, "latency_ms", measure=measured)
    assert found.chain == MIDDLE


def test_a_finalist_that_cannot_be_measured_gives_way() -> None:
    def measure(item: Chain) -> dict[str, float]:
        if item == GOOD:
            raise TrainerError("the trainer was ended by SIGSEGV")
        return measured(item)

    found = assemble([GOOD, SMALL], SPEED, (), "accuracy", measure=measure)
    assert found.chain == SMALL
    assert "could not be measured: the trainer was ended" in str(found.explanation["refused"])


def test_blocks_recombine_only_within_one_task_and_where_interfaces_fit() -> None:
    wide, other = chain("wide", 0.9, width=16), chain("other", 0.9, task="letters")
    assert not list(recombinations([GOOD, wide]))
    assert not list(recombinations([GOOD, other]))
    made = list(recombinations([GOOD, MIDDLE]))
    assert len({item.id for item, _ in made}) == len(made) == 8
    for item, (left, right) in made:
        assert item.blocks[0] == left.blocks[0]
        assert item.blocks[-1] == right.blocks[-1]


def test_the_latency_of_a_recombination_is_predicted_by_its_blocks() -> None:
    item, _ = next(recombinations([GOOD, MIDDLE]))
    blocks = {part.id: 0.5 for part in item.blocks}
    assert predicted_latency(item, blocks) == pytest.approx(0.5 * len(item.blocks))
    assert predicted_latency(item, {}) is None
    assert predicted_latency(item, {**blocks, item.id: 3.0}) == 3.0


def test_a_recombination_wins_only_after_it_was_evaluated() -> None:
    speed = {
        part.id: 4.0 if item is GOOD else 0.3 for item in (GOOD, SMALL) for part in item.blocks
    }
    speed |= {GOOD.id: 12.0, SMALL.id: 0.9}
    seen: list[str] = []

    def evaluate(item: Chain) -> dict[str, float]:
        seen.append(item.id)
        return {"val_accuracy": 0.85, "accuracy": 0.84}

    def measure(item: Chain) -> dict[str, float]:
        return {"latency_ms": speed.get(item.id, sum(speed[part.id] for part in item.blocks))}

    found = assemble(
        [GOOD, SMALL], speed, within(9.0), "accuracy", measure=measure, evaluate=evaluate
    )
    assert found.chain.id in seen
    assert set(found.parents) == {GOOD.id, SMALL.id}
    assert found.metrics["val_accuracy"] == 0.85
    assert found.metrics["latency_ms"] <= 9.0
    assert "recombined from" in str(found.explanation["chosen"])
    poor = assemble(
        [GOOD, SMALL],
        speed,
        within(9.0),
        "accuracy",
        measure=measure,
        evaluate=lambda item: {"val_accuracy": 0.2, "accuracy": 0.2},
    )
    assert poor.chain == SMALL
    assert not poor.parents


def test_the_number_of_evaluations_is_bounded() -> None:
    zoo = [chain(f"c{index}", 0.5 + index / 100) for index in range(12)]
    count = 0

    def evaluate(item: Chain) -> dict[str, float]:
        nonlocal count
        count += 1
        return {"val_accuracy": 0.1, "accuracy": 0.1}

    found = assemble(
        zoo, {}, (), "size_bytes", measure=lambda item: {"latency_ms": 1.0}, evaluate=evaluate
    )
    assert found.chain
    assert count == MAX_EVALUATED


def test_equal_accuracy_goes_to_the_faster_chain() -> None:
    twin = chain("twin", 0.95)
    speed = {**SPEED, twin.id: 3.0}
    found = assemble(
        [GOOD, twin], speed, (), "accuracy", measure=lambda item: {"latency_ms": speed[item.id]}
    )
    assert found.chain == twin
