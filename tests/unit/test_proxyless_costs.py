"""Cost tables, the losses made of them, and derivation under a cap, by enumeration."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nas.cost import cost
from nas.cost.proxyless_yaml import from_proxyless_yaml
from nas.methods.proxyless.costs import (
    IMAGENET,
    OVERHEAD,
    CostTable,
    Layer,
    add_linear,
    cost_table,
    latency_tensor,
    layered_ms,
    layers,
    macs,
    measure_latencies,
    mul_log,
    named_lookup,
    parse_latencies,
    weights,
)
from nas.methods.proxyless.derive import best_within, likeliest, smallest, within
from nas.methods.proxyless.gates import straight_through
from nas.methods.proxyless.target import Pricing
from nas.spaces.darts import DartsSpace
from nas.spaces.mbconv import ZERO, MBConvSpace
from zoo.errors import InfeasibleError, InvalidInputError
from zoo.spec import BlockSpec, TensorSpec

SPACE = MBConvSpace()
SMALL = MBConvSpace(
    preset="cifar", widths=(4, 6), depths=(2, 1), strides=(1, 2), stem=4, first=4, last=8,
    kernels=(3, 5), expands=(1, 2),
)  # fmt: skip
TASK: dict[str, Any] = {"inputs": TensorSpec(shape=(1, 8, 8)), "num_classes": 3}


def made_up(layer: Layer) -> float:
    """Return a latency above 1 that differs from layer to layer."""
    return 1 + random.Random(str(layer)).random()


def uniform(space: MBConvSpace) -> torch.Tensor:
    counts = torch.tensor(space.cardinalities()).unsqueeze(-1)
    return (torch.arange(int(counts.max())) < counts) / counts.double()


def test_layers_have_the_keys_of_the_published_tables() -> None:
    keys = [str(layer) for layer in layers(SPACE)]
    assert len(keys) == len(set(keys)) == 70
    assert "Conv-input:224x224x3-output:112x112x32" in keys
    assert "Conv_1-input:7x7x320-output:7x7x1280" in keys
    assert "Logits-input:7x7x1280-output:1000" in keys
    fixed = "expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0"
    assert fixed in keys
    halving = "expanded_conv-input:56x56x24-output:28x28x40-expand:6-kernel:7-stride:2-idskip:0"
    assert halving in keys
    same = "expanded_conv-input:7x7x192-output:7x7x192-expand:3-kernel:5-stride:1-idskip:1"
    assert same in keys


@pytest.mark.parametrize(
    ("names", "million_macs"),
    [
        (["3x3_MB3"] * 21, 257.4),
        (["3x3_MB6"] * 21, 472.6),
        (["7x7_MB6"] * 21, 606.6),
        ([ZERO if edge.skip else "3x3_MB3" for edge in SPACE.edges], 102.5),
    ],
)
def test_multiply_accumulates_are_those_of_the_original(
    names: list[str], million_macs: float
) -> None:
    table = cost_table(SPACE, macs, inputs=IMAGENET, num_classes=1000)
    total = table.total(SPACE.encode(names).choices)
    assert total / 1e6 == pytest.approx(million_macs, abs=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_counted_tables_agree_with_the_built_network(seed: int) -> None:
    architecture = SMALL.sample(random.Random(seed))
    counted = cost(SMALL.build(architecture, **TASK), TASK["inputs"])
    assert cost_table(SMALL, macs, **TASK).total(architecture.choices) == counted.flops
    assert cost_table(SMALL, weights, **TASK).total(architecture.choices) == counted.num_params


def test_the_expectation_at_one_choice_is_that_architecture_s_sum() -> None:
    table = latency_tensor(SPACE, made_up)
    fixed = ("Conv", "Conv_1", "Logits")
    for seed in range(3):
        architecture = SPACE.sample(random.Random(seed))
        specs = SPACE.blocks(architecture, inputs=IMAGENET, num_classes=1000)
        by_spec = {spec.id: made_up(layer) for layer, spec in layers(SPACE).items()}
        wanted = math.fsum(by_spec[spec.id] for spec in specs)
        hot = torch.nn.functional.one_hot(torch.tensor(architecture.choices), 7).double()
        assert table.total(architecture.choices) == pytest.approx(wanted, rel=1e-12)
        assert float(table.expected(hot)) == pytest.approx(wanted, rel=1e-12)
    assert table.ops[[edge.ops[-1] is None for edge in SPACE.edges], 6].eq(0).all()
    assert sum(layer.kind in fixed for layer in layers(SPACE)) == 3


def test_the_latency_s_gradient_is_p_times_what_differs_from_the_mean() -> None:
    table = latency_tensor(SPACE, made_up)
    mask = uniform(SPACE) > 0
    alphas = torch.randn(21, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alphas = alphas.masked_fill(~mask, float("-inf")).requires_grad_()
    probs = torch.softmax(alphas, -1)
    (exact,) = torch.autograd.grad(table.expected(probs), alphas)
    torch.testing.assert_close(straight_through(probs.detach(), table.ops), exact)
    assert (exact[~mask] == 0).all()


def test_a_layer_that_the_table_lacks_is_an_error_that_names_it() -> None:
    latencies = {str(layer): made_up(layer) for layer in layers(SPACE)}
    table = latency_tensor(SPACE, named_lookup(latencies))
    assert table.fixed > 0
    missing = "expanded_conv-input:7x7x192-output:7x7x320-expand:6-kernel:5-stride:1-idskip:0"
    del latencies[missing]
    with pytest.raises(InvalidInputError, match=f"has no layer '{missing}'"):
        latency_tensor(SPACE, named_lookup(latencies))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="it must be > 0"):
            latency_tensor(SPACE, lambda _, wrong=wrong: wrong)  # type: ignore[misc]


def test_published_tables_are_read_with_their_means() -> None:
    table = {"a": {"count": 3, "mean": 1.5, "var": 0.1}, "b": 2, OVERHEAD: -0.5}
    assert parse_latencies(table) == {"a": 1.5, "b": 2.0, OVERHEAD: -0.5}
    for wrong in ({"count": 3}, 0, -1.0, "3", True, None):
        with pytest.raises(InvalidInputError, match="latency of 'x'"):
            parse_latencies({"x": wrong})


def test_a_file_in_the_published_form_prices_the_space_layer_by_layer() -> None:
    text = "\n".join(
        f"{layer}: {{count: 30, mean: {made_up(layer)!r}, var: 0.01}}" for layer in layers(SPACE)
    )
    found = from_proxyless_yaml(text, device="pixel1")
    known = {key: entry.median_ms for key, entry in found.entries.items()}
    table = latency_tensor(SPACE, named_lookup(known))
    fixed = [key for key in known if not key.startswith("expanded_conv") or "expand:1-" in key]
    assert table.fixed == pytest.approx(math.fsum(known[key] for key in fixed))
    architecture = SPACE.encode(["3x3_MB3"] * 21)
    hot = torch.nn.functional.one_hot(torch.tensor(architecture.choices), 7).double()
    task: dict[str, Any] = {"inputs": IMAGENET, "num_classes": 1000}
    wanted = layered_ms(SPACE, architecture, known, **task)
    assert float(table.expected(hot)) == pytest.approx(wanted, rel=1e-12)
    zeros = SPACE.encode([ZERO if edge.skip else "3x3_MB3" for edge in SPACE.edges])
    assert layered_ms(SPACE, zeros, known, **task) < wanted
    del known["Logits-input:7x7x1280-output:1000"]
    with pytest.raises(InvalidInputError, match="has no layer 'Logits"):
        layered_ms(SPACE, architecture, known, **task)
    cells = DartsSpace(cells=1, channels=4)
    with pytest.raises(InvalidInputError, match="not 'darts'"):
        layered_ms(cells, cells.sample(random.Random(0)), known, **task)


def test_both_losses_are_their_formula() -> None:
    entropy = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    expected = torch.tensor(113.988, dtype=torch.float64, requires_grad=True)
    loss = mul_log(entropy, expected, ref=80, alpha=0.2, beta=0.3)
    assert float(loss.detach()) == pytest.approx(0.40943, abs=5e-6)
    by_entropy, by_cost = torch.autograd.grad(loss, (entropy, expected))
    factor = 0.2 * (math.log(113.988) / math.log(80)) ** 0.3
    assert float(by_entropy) == pytest.approx(factor)
    assert float(by_cost) == pytest.approx(2 * factor * 0.3 / (math.log(113.988) * 113.988))
    linear = add_linear(entropy, expected, ref=80, weight=0.1)
    assert float(linear.detach()) == pytest.approx(2 + 0.1 * (113.988 - 80) / 80)


def test_without_a_table_layers_are_priced_by_a_roofline() -> None:
    pricing = Pricing(SPACE, inputs=IMAGENET, num_classes=1000, latencies=None)
    table = pricing.table("latency")
    light, heavy = (SPACE.encode([name] * 21).choices for name in ("3x3_MB3", "7x7_MB6"))
    assert 10 < table.total(light) < table.total(heavy) < 1000


class Device:
    """A device on which layers take what their parameters say, and networks a bit less."""

    def __init__(self, scale: float = 0.8, overhead: float = 2.0) -> None:
        self.scale, self.overhead = scale, overhead

    def __call__(self, specs: Sequence[BlockSpec]) -> float:
        alone = math.fsum(1 + random.Random(spec.id).random() for spec in specs)
        return alone if len(specs) == 1 else self.overhead + self.scale * alone


def test_measured_layers_are_corrected_by_whole_networks() -> None:
    device = Device()
    found = measure_latencies(SMALL, device, **TASK)
    pricing = Pricing(SMALL, **TASK, latencies=found)
    table = pricing.table("latency")
    for seed in range(5):
        architecture = SMALL.sample(random.Random(seed))
        whole = device(SMALL.blocks(architecture, **TASK))
        assert table.total(architecture.choices) == pytest.approx(whole, rel=1e-9)
    assert found[OVERHEAD] == pytest.approx(2.0)


def test_a_cap_out_of_reach_names_the_smallest_network() -> None:
    latencies = {str(layer): 1.0 for layer in layers(SMALL, **TASK)}
    pricing = Pricing(SMALL, **TASK, latencies=latencies)

    def limit(metric: str, bound: float) -> Any:
        return SimpleNamespace(metric=metric, max=bound, min=None)

    with pytest.raises(
        InfeasibleError,
        match=r"latency_ms of at most 4: the smallest reachable is 5 \(zero zero \| 3x3_MB1\)",
    ) as caught:
        pricing.cap((limit("latency_ms", 4.0),))
    assert caught.value.nearest == {"choices": [4, 4, 0], "latency_ms": 5.0}
    cap = pricing.cap((limit("accuracy", 1.0), limit("latency_ms", 5.0)))
    assert cap is not None
    assert cap.max == 5
    assert pricing.cap(()) is None
    with pytest.raises(InvalidInputError, match="under one cap, not 2"):
        pricing.cap((limit("latency_ms", 9.0), limit("flops", 1e9)))


def problem(seed: int) -> tuple[list[list[float]], CostTable, list[tuple[int, ...]]]:
    """Return a random knapsack of 5 blocks; every second one has many ties."""
    rng = random.Random(seed)
    rows = [[rng.gauss(0, 1) for _ in range(rng.choice((1, 2, 3, 4)))] for _ in range(5)]
    costs = [[rng.random() for _ in range(4)] for _ in range(5)]
    if seed % 2:
        rows = [[float(round(value)) for value in row] for row in rows]
        costs = [[float(rng.randrange(3)) for _ in row] for row in costs]
    table = CostTable(rng.random(), torch.tensor(costs, dtype=torch.float64))
    return rows, table, list(itertools.product(*(range(len(row)) for row in rows)))


def score(rows: list[list[float]], choices: tuple[int, ...]) -> float:
    return sum(row[op] for row, op in zip(rows, choices, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_the_derived_network_is_the_likeliest_within_the_cap(seed: int) -> None:
    rows, table, everyone = problem(seed)
    rng = random.Random(seed)
    for _ in range(4):
        cap = table.total(rng.choice(everyone))
        found = best_within(rows, table, cap)
        wanted = max(score(rows, c) for c in everyone if table.total(c) <= cap)
        assert table.total(found) <= cap
        assert score(rows, found) == pytest.approx(wanted, abs=1e-12)
        offered = list(within(rows, table, cap))
        assert offered[0] == found
        assert sorted(offered) == sorted(c for c in everyone if table.total(c) <= cap)
        assert smallest(table, rows) in offered[:10]
    least = min(map(table.total, everyone))
    assert table.total(smallest(table, rows)) == least
    with pytest.raises(InfeasibleError, match="the smallest network costs"):
        best_within(rows, table, least - 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_networks_come_from_the_likeliest_on_each_once(seed: int) -> None:
    rows, _, everyone = problem(seed)
    found = list(likeliest(rows))
    assert sorted(found) == sorted(everyone)
    scores = [score(rows, choices) for choices in found]
    assert all(first >= second - 1e-12 for first, second in itertools.pairwise(scores))


def test_of_equal_operations_the_first_is_derived() -> None:
    assert next(likeliest([[0.0, 0.0], [1.0, 2.0, 2.0]])) == (0, 1)


def test_a_cap_over_the_whole_imagenet_space_is_solved_exactly_enough_to_be_used_at_once() -> None:
    table = latency_tensor(SPACE, made_up)
    alphas = torch.randn(21, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [
        torch.log_softmax(row[:n], 0).tolist()
        for row, n in zip(alphas, SPACE.cardinalities(), strict=True)
    ]
    free = next(likeliest(rows))
    cap = 0.9 * table.total(free)
    found = best_within(rows, table, cap)
    assert 0.97 * cap < table.total(found) <= cap
    assert score(rows, found) < score(rows, free)
    for at, choice in enumerate(found):
        for other in range(SPACE.cardinalities()[at]):
            changed = (*found[:at], other, *found[at + 1 :])
            if other != choice and table.total(changed) <= cap:
                assert score(rows, changed) <= score(rows, found)
