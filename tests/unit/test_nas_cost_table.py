"""Latency tables, what they expect of architecture parameters, and models fitted to them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas.cost import cost
from nas.cost.energy import EnergyModel
from nas.cost.expected import ChoiceCosts, choice_costs
from nas.cost.operations import Operation, Replay, distinct, operations_of, trace
from nas.cost.proxyless_yaml import from_proxyless_yaml, mobile_key
from nas.cost.residual import OperationModel
from nas.cost.roofline import Roofline
from nas.cost.table import Additivity, Entry, LatencyTable
from nas.spaces.darts import DartsSpace
from tests import toys
from zoo.errors import (
    CorruptArtifactError,
    IncompatibleShapeError,
    InvalidInputError,
    NotFoundError,
)
from zoo.spec import Architecture, TensorSpec

IMAGE = TensorSpec(shape=(3, 8, 8))


def network(layers: int = 2) -> nn.Sequential:
    convs = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(3 * 64, 10))


def table(entries: dict[str, float], **changes: object) -> LatencyTable:
    filled = {
        key: Entry(median_ms=ms, spread_ms=0.1, count=50, macs=7, moved_bytes=9)
        for key, ms in entries.items()
    }
    fields = {"runtime": "torch", "precision": "float32", "batch": 1} | changes
    return LatencyTable(device={"id": "d"}, entries=filled, **fields)  # type: ignore[arg-type]


def test_a_network_costs_the_sum_of_what_it_executes() -> None:
    found = table({"a": 1.5, "b": 0.25})
    assert found.total_ms(["a", "b", "a"]) == 3.25
    assert found.total_ms(["b", "a", "a"]) == 3.25


def test_an_unknown_operation_is_an_error_or_measured_but_never_free() -> None:
    found = table({"a": 1.5})
    with pytest.raises(NotFoundError, match="operation new"):
        found.total_ms(["a", "new"])
    asked: list[str] = []

    def measure(key: str) -> Entry:
        asked.append(key)
        return Entry(median_ms=4.0, spread_ms=0.0, count=50)

    fuller = found.completed(["a", "new", "new"], measure)
    assert asked == ["new"]
    assert fuller.total_ms(["a", "new"]) == 5.5
    assert "new" not in found


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    saved = table(
        {"a": 1.5, "b": 0.25},
        clocks={"cur_mhz": 2000},
        space={"name": "darts"},
        overhead_ms=0.004,
        additivity=Additivity(errors=(0.1, -0.2), plain_errors=(0.0, -0.3), spearman=0.9),
        energy={"joules_per_mac": 1e-9},
    )
    saved.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == saved


@pytest.mark.parametrize("change", ["format", "version", "entries", "text"])
def test_a_damaged_or_future_table_is_refused(tmp_path: Path, change: str) -> None:
    data = table({"a": 1.0}).to_json()
    if change == "format":
        data["format"] = "pickle"
    elif change == "version":
        data["version"] = 2
    elif change == "entries":
        data["entries"] = {"a": {"median_ms": -1.0, "spread_ms": 0.0, "count": 1}}
    path = tmp_path / "t.json"
    path.write_text("nonsense" if change == "text" else json.dumps(data))
    with pytest.raises(CorruptArtifactError):
        LatencyTable.load(path)


def test_additivity_is_the_error_of_sums_by_hand() -> None:
    found = Additivity.compare([1.1, 1.8, 3.0], [1.0, 2.0, 3.0], [1, 1, 1])
    assert found.plain_errors == pytest.approx((0.1, -0.1, 0.0))
    # The others' median overhead: (0.2 + 0) / 2, none, (0.2 - 0.1) / 2.
    assert found.errors == pytest.approx((0.2, -0.1, 0.05 / 3))
    assert found.median_error == pytest.approx(0.1)
    assert found.spearman == pytest.approx(1.0)
    with pytest.raises(InvalidInputError):
        Additivity.compare([], [], [])


def test_the_overhead_of_calls_is_learned_from_the_other_networks() -> None:
    sums, counts = [1.0, 2.0, 4.0, 3.0], [10, 15, 40, 20]
    measured = [ms + 0.05 * count for ms, count in zip(sums, counts, strict=True)]
    found = Additivity.compare(sums, measured, counts)
    assert found.errors == pytest.approx((0, 0, 0, 0), abs=1e-12)
    assert max(found.plain_errors) < -0.2
    priced = table({"a": 1.0, "b": 2.0}, overhead_ms=0.25)
    assert priced.total_ms(["a", "b", "b"]) == 5.75


YAML = """
Conv-input:224x224x3-output:112x112x32: {count: 10, mean: 2.5, var: 0.04}
expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0:
  count: 20
  mean: 1.25
  var: 0.0
Logits-input:7x7x1280-output:1000: {count: 5, mean: 0.75, var: 0.01}
"""


def test_the_proxyless_form_is_read_under_its_keys() -> None:
    found = from_proxyless_yaml(YAML, device="pixel1")
    keys = [
        mobile_key("Conv", (224, 224, 3), (112, 112, 32)),
        mobile_key(
            "expanded_conv",
            (112, 112, 32),
            (112, 112, 16),
            expand=1,
            kernel=3,
            stride=1,
            idskip=False,
        ),
        mobile_key("Logits", (7, 7, 1280), 1000),
    ]
    assert found.total_ms(keys) == 4.5
    assert found.entry(keys[0]).spread_ms == pytest.approx(1.349 * 0.2)
    assert found.device["name"] == "pixel1"
    with pytest.raises(NotFoundError):
        found.total_ms([mobile_key("Logits", (7, 7, 432), 1000)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b",
        "a: {count: 1, mean: 1, var: 0}",
        "Logits-input:7x7x1280-output:1000: 3",
        "Logits-input:7x7x1280-output:1000: {count: 1, mean: no, var: 0}",
        "Logits-input:7x7x1280-output:1000: {count: 1, mean: -2, var: 0}",
        "!!python/object/apply:os.system ['true']",
        "Logits-input:7x7x1280-output:1000: !!python/name:os.system",
    ],
)
def test_what_is_no_proxyless_table_is_refused_and_never_run(text: str) -> None:
    with pytest.raises(InvalidInputError):
        from_proxyless_yaml(text, device="pixel1")


def test_a_trace_counts_the_same_macs_as_the_analytic_model() -> None:
    module = network()
    assert sum(item.macs for item in trace(module, IMAGE)) == cost(module, IMAGE).flops
    twice = trace(module, IMAGE, batch=2)
    assert sum(item.macs for item in twice) == 2 * cost(module, IMAGE).flops
    assert module.training


def test_a_deeper_network_executes_more_of_the_same() -> None:
    shallow, deep = trace(network(1), IMAGE), trace(network(4), IMAGE)
    assert set(distinct(deep)) == set(distinct(shallow))
    priced = table(dict.fromkeys(distinct(deep), 1.0))
    sums = [priced.total_ms(item.key for item in part) for part in (shallow, deep)]
    assert sums[1] > sums[0] > 0


def test_reshaping_is_free_and_computing_is_not() -> None:
    names = [item.name for item in trace(network(1), IMAGE)]
    assert names == ["convolution.default", "relu.default", "addmm.default"]


def test_a_wrong_input_is_named() -> None:
    with pytest.raises(IncompatibleShapeError, match="rejects"):
        trace(network(), TensorSpec(shape=(5, 8, 8)))


def test_every_operation_of_a_space_is_found_and_can_be_replayed() -> None:
    space = DartsSpace(cells=1, channels=4, nodes=1)
    found = operations_of(space, IMAGE, 10, samples=4)
    rng = random.Random(7)
    for _ in range(8):
        module = space.build(space.sample(rng), inputs=IMAGE, num_classes=10)
        assert {item.key for item in trace(module, IMAGE)} <= set(found)
    for item in found.values():
        again = Operation.from_json(json.loads(json.dumps(item.to_json())))
        assert again.key == item.key
        device = torch.device("cpu")
        Replay(again, device=device, dtype=torch.float32, channels_last=True)()


def test_an_operator_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no operator"):
        Replay(
            Operation(name="juggle.default", arguments=[]),
            device=torch.device("cpu"),
            dtype=torch.float32,
            channels_last=False,
        )


COSTS = ChoiceCosts(base=2.0, options=((0.0, 1.0, 4.0), (0.5, 3.0)))


def softmaxes(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.softmax(-1) for value in values]


def test_the_expected_cost_of_one_hot_chances_is_the_exact_one() -> None:
    for first in range(3):
        for second in range(2):
            chances = [torch.eye(3)[first], torch.eye(2)[second]]
            assert COSTS.expected(chances).item() == pytest.approx(COSTS.exact((first, second)))


def test_the_gradient_of_the_expected_cost_is_that_of_the_formula() -> None:
    alphas = [
        torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for values in ([0.3, -0.2, 0.5], [0.1, 0.7])
    ]
    assert torch.autograd.gradcheck(lambda *a: COSTS.expected(softmaxes(a)), tuple(alphas))
    chances = softmaxes(alphas)
    COSTS.expected(chances).backward()
    for alpha, p, costs in zip(alphas, chances, COSTS.options, strict=True):
        values = torch.tensor(costs, dtype=torch.float64)
        assert alpha.grad == pytest.approx((p * (values - (p * values).sum())).tolist())


def test_costs_of_options_come_from_prices_and_must_add_up() -> None:
    toys.install()
    from blockyard_toys import ToySpace

    space = ToySpace(widths=(4, 8, 16))

    def price(architecture: Architecture) -> float:
        return 1.0 + space.widths[architecture.choices[0]] + 0.5 * architecture.choices[1]

    found = choice_costs(space, price)
    for choices in ((0, 0), (1, 1), (2, 0)):
        assert found.exact(choices) == pytest.approx(1 + (4, 8, 16)[choices[0]] + choices[1] / 2)
    with pytest.raises(InvalidInputError, match="not a sum"):
        choice_costs(space, lambda item: price(item) ** (1 + item.choices[1]), checks=32)
    with pytest.raises(InvalidInputError, match="2 options"):
        COSTS.expected([torch.ones(3), torch.ones(4)])


def test_a_roofline_is_found_again_from_what_it_predicts() -> None:
    real = Roofline(macs_per_ms=1e6, bytes_per_ms=2e5, launch_ms=0.01)
    rng = random.Random(0)
    entries = {}
    for number in range(60):
        macs, moved = 10 ** rng.uniform(2, 8), 10 ** rng.uniform(2, 6)
        item = Operation(name="x", arguments=[number], macs=int(macs), moved_bytes=int(moved))
        entries[item.key] = Entry(
            median_ms=real.latency_ms([item]),
            spread_ms=0.0,
            count=50,
            macs=item.macs,
            moved_bytes=item.moved_bytes,
        )
    found = Roofline.fit(
        LatencyTable(device={}, runtime="torch", precision="float32", batch=1, entries=entries)
    )
    assert found.macs_per_ms == pytest.approx(real.macs_per_ms, rel=0.02)
    assert found.bytes_per_ms == pytest.approx(real.bytes_per_ms, rel=0.02)
    assert found.launch_ms == pytest.approx(real.launch_ms, rel=0.02)


def test_a_model_of_operations_predicts_shapes_that_were_not_measured() -> None:
    def operation(kind: str, size: int) -> Operation:
        return Operation(name=kind, arguments=[size], macs=size * 100, moved_bytes=size * 8)

    def true_ms(item: Operation) -> float:
        return 0.02 + item.macs * (3e-7 if item.name == "conv" else 1e-7)

    measured = [operation(kind, size) for kind in ("conv", "mm") for size in range(100, 4000, 130)]
    entries = {
        item.key: Entry(
            median_ms=true_ms(item),
            spread_ms=0.0,
            count=50,
            macs=item.macs,
            moved_bytes=item.moved_bytes,
        )
        for item in measured
    }
    model = OperationModel.fit(
        LatencyTable(device={}, runtime="torch", precision="float32", batch=1, entries=entries)
    )
    new = [operation("conv", 1111), operation("mm", 2222)]
    assert model.latency_ms(new) == pytest.approx(sum(map(true_ms, new)), rel=0.05)
    with pytest.raises(NotFoundError, match="attention"):
        model.latency_ms([operation("attention", 10)])


def test_fitted_energy_is_marked_and_follows_the_meter() -> None:
    macs, moved = [1e6, 2e6, 5e6], [4e5, 1e5, 3e5]
    joules = [2e-9 * a + 3e-9 * b for a, b in zip(macs, moved, strict=True)]
    model = EnergyModel.fit(macs, moved, joules, meter="rapl")
    found = model.estimate(macs=3e6, moved_bytes=2e5)
    assert found.joules == pytest.approx(2e-9 * 3e6 + 3e-9 * 2e5, rel=1e-6)
    assert not found.measured
    assert "rapl" in found.source
    assert EnergyModel.from_json(model.to_json()) == model
    with pytest.raises(InvalidInputError):
        EnergyModel.fit([1.0], [1.0], [1.0], meter="rapl")
