"""The latency predictor on networks whose latency is known by construction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nas.cost import encodings
from nas.cost.accuracy import Accuracy
from nas.cost.drift import Drift
from nas.cost.predictor import LatencyPredictor
from zoo.errors import CorruptArtifactError, InvalidInputError


def cells(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, size=(count, 6))


def encoded(ops: np.ndarray) -> dict[str, np.ndarray]:
    """Encode cells without the many pairs, which these latencies do not need."""
    return {name: group for name, group in encodings.nasbench201(ops).items() if name != "pairs"}


def true_ms(ops: np.ndarray) -> np.ndarray:
    return 1.0 + np.array([0.1, 0.2, 1.0, 3.0, 0.7])[ops].sum(axis=1)


def test_held_back_cells_are_predicted_from_others() -> None:
    ops = cells(600)
    noise = np.random.default_rng(1).normal(1, 0.02, 600)
    latency = true_ms(ops) * noise
    features = encoded(ops)
    model = LatencyPredictor.fit({k: v[:400] for k, v in features.items()}, latency[:400])
    predicted = model.predict({k: v[400:] for k, v in features.items()})
    assert np.abs(predicted / true_ms(ops)[400:] - 1).max() < 0.05


def test_a_fine_group_counts_for_nothing_where_the_coarse_one_says_all() -> None:
    rng = np.random.default_rng(0)
    coarse, fine = rng.normal(size=(300, 2)), rng.normal(size=(300, 40))
    latency = 10 + coarse @ [1.0, 2.0] + rng.normal(0, 0.1, 300)
    model = LatencyPredictor.fit({"coarse": coarse, "fine": fine}, latency)
    assert np.abs(model.weights[2:]).max() < 0.02
    assert model.weights[:2] == pytest.approx([1.0, 2.0], abs=0.03)


def test_a_hiccup_does_not_move_the_fit() -> None:
    rng = np.random.default_rng(0)
    group = rng.normal(size=(200, 1))
    latency = 10 + group[:, 0]
    spoilt = latency.copy()
    spoilt[:6] *= 8
    model = LatencyPredictor.fit({"group": group}, spoilt)
    assert model.predict({"group": group})[6:] == pytest.approx(latency[6:], rel=0.02)


def test_a_predictor_survives_its_file_and_is_no_code(tmp_path: Path) -> None:
    ops = cells(120)
    features = encoded(ops)
    model = LatencyPredictor.fit(features, true_ms(ops))
    model.save(tmp_path / "model.json")
    json.loads((tmp_path / "model.json").read_text())
    again = LatencyPredictor.load(tmp_path / "model.json")
    assert np.array_equal(again.predict(features), model.predict(features))


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "else"}', "cut"])
def test_a_damaged_predictor_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.json"
    if damage == "cut":
        data = LatencyPredictor.fit({"a": np.eye(3)}, [1.0, 2.0, 3.0]).to_json()
        data["weights"] = [1.0]
        damage = json.dumps(data)
    path.write_text(damage)
    with pytest.raises(CorruptArtifactError):
        LatencyPredictor.load(path)


def test_latency_must_be_above_zero_and_features_must_fit() -> None:
    with pytest.raises(InvalidInputError, match="above 0"):
        LatencyPredictor.fit({"a": np.eye(2)}, [1.0, 0.0])
    with pytest.raises(InvalidInputError, match="must be"):
        LatencyPredictor.fit({"a": np.eye(3)}, [1.0, 2.0])
    model = LatencyPredictor.fit({"a": np.eye(3)}, [1.0, 2.0, 3.0])
    with pytest.raises(InvalidInputError, match="this model has"):
        model.predict({"b": np.eye(3)})
    with pytest.raises(InvalidInputError, match="no series"):
        model.predict({"a": np.eye(3)}, order=[0, 1, 2])


def test_drift_of_the_series_is_told_from_the_networks() -> None:
    ops = cells(1500)
    places = np.arange(1500)
    drift = 0.15 * np.sin(places / 60)
    latency = true_ms(ops) * (1 + drift)
    features = encoded(ops)
    shuffled = np.random.default_rng(0).permutation(1500)
    held, kept = shuffled[:300], shuffled[300:]
    model = LatencyPredictor.fit(
        {k: v[kept] for k, v in features.items()}, latency[kept], order=kept
    )
    mine = {k: v[held] for k, v in features.items()}
    assert model.predict(mine) == pytest.approx(true_ms(ops)[held], rel=0.04)
    off = np.abs(model.predict(mine, order=held) / latency[held] - 1)
    assert np.median(off) < 0.02


def test_drift_never_looks_at_the_place_itself() -> None:
    rng = np.random.default_rng(0)
    errors = rng.normal(0, 0.1, 400)
    drift = Drift.fit(np.arange(400), errors)
    assert abs(np.corrcoef(drift.at(np.arange(400)), errors)[0, 1]) < 0.35
    other = drift.errors.copy()
    other[200] += 5
    changed = Drift(errors=other, known=drift.known, weights=drift.weights)
    assert changed.at([200]) == pytest.approx(drift.at([200]))


def test_where_operations_sit_changes_no_count_and_no_shape() -> None:
    """Layers of equal shape may change places: the encoding is the same."""
    ops = np.random.default_rng(0).integers(0, 9, size=(5, 22))
    swapped = ops.copy()
    swapped[:, [2, 3, 4]] = ops[:, [4, 2, 3]]
    for name, group in encodings.fbnet(ops).items():
        assert np.array_equal(group, encodings.fbnet(swapped)[name]), name
    moved = ops.copy()
    moved[:, [0, 1]] = [[0, 3]]
    moved_back = ops.copy()
    moved_back[:, [0, 1]] = [[3, 0]]
    assert not np.array_equal(
        encodings.fbnet(moved)["operations at shapes"],
        encodings.fbnet(moved_back)["operations at shapes"],
    )


def test_deeper_wider_and_larger_networks_count_more() -> None:
    def analytic(depth: int, expand: int, size: int) -> np.ndarray:
        found = encodings.ofa([[3] * 20], [[expand] * 20], [[depth] * 5], [size])
        return found["analytic"][0]

    small = analytic(2, 3, 128)
    assert (analytic(3, 3, 128)[:3] > small[:3]).all()
    assert (analytic(2, 4, 128)[:2] > small[:2]).all()
    assert (analytic(2, 3, 160)[:2] > small[:2]).all()


def test_the_multiply_accumulates_of_a_block_are_those_by_hand() -> None:
    skips = [8] * 22
    block = [*skips[:2], 3, *skips[3:]]
    (plain,), (one,) = (encodings.fbnet([ops])["analytic"][:, 0] for ops in (skips, block))
    # Layer 2: 24 channels at 56 pixels, kernel 3, expansion 6; a skip there is free.
    by_hand = 56 * 56 * (24 * 144 + 144 * 9 + 144 * 24)
    assert (one - plain) * 1e8 == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "encode",
    [
        lambda: encodings.nasbench201([[0, 1, 2, 3, 4, 5]]),
        lambda: encodings.nasbench201([[0, 1, 2]]),
        lambda: encodings.fbnet([[9] * 22]),
        lambda: encodings.ofa([[4] * 20], [[3] * 20], [[2] * 5], [224]),
        lambda: encodings.ofa([[3] * 20], [[3] * 20], [[2] * 5], [225]),
    ],
)
def test_what_is_not_in_a_space_is_not_encoded(encode: object) -> None:
    with pytest.raises(InvalidInputError):
        encode()  # type: ignore[operator]


def test_accuracy_is_what_it_is_by_hand() -> None:
    found = Accuracy.of([10.0, 20.0, 40.0, 80.0], [10.4, 18.1, 45.0, 100.0])
    assert found.within_5_percent == 0.25
    assert found.within_10_percent == 0.5
    assert found.within_15_percent == 0.75
    assert found.rmse == pytest.approx(((0.4**2 + 1.9**2 + 5**2 + 20**2) / 4) ** 0.5)
    assert found.rmspe == pytest.approx(((0.04**2 + 0.095**2 + 0.125**2 + 0.25**2) / 4) ** 0.5)
    assert found.spearman == pytest.approx(1.0)
    assert Accuracy.of([1.0, 2.0], [3.0, 3.0]).spearman != 1
    for measured, predicted in (([1.0], [1.0]), ([0.0, 1.0], [1.0, 1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(InvalidInputError):
            Accuracy.of(measured, predicted)
