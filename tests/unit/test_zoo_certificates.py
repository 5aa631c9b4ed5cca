"""Hashes next door, and the confirmation of hits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.certificates import CONFIRMED_BITS, Certificate, Proof, Signature
from zoo.errors import InvalidInputError
from zoo.signature import hash_tensors, probes, weight_proof, weight_signature
from zoo.spec import TensorSpec

VECTOR = TensorSpec(shape=(6,))


def hashed(value: float) -> tuple[str, tuple[str, ...]]:
    tensor = torch.tensor([value, 1.3], dtype=torch.float64)
    return hash_tensors([tensor], mantissa_bits=16)


@pytest.mark.parametrize("edge", [1.5, 2.0, -0.75])
def test_two_roundings_that_straddle_an_edge_find_each_other(edge: float) -> None:
    below, above = (edge * (1 + sign * 1e-12) for sign in (-1, 1))
    (first, next_to_first), (second, next_to_second) = hashed(below), hashed(above)
    assert first != second
    assert second in next_to_first
    assert first in next_to_second


def test_a_number_within_its_bucket_has_no_neighbours() -> None:
    assert hashed(1.3) == (hashed(1.3)[0], ())


def test_at_most_seven_hashes_are_next_door() -> None:
    _, alternates = hash_tensors([torch.ones(12)], mantissa_bits=16)
    assert len(alternates) == 7
    assert len(set(alternates)) == 7


def test_a_signature_is_the_known_one_of_its_neighbours() -> None:
    signature = Signature(key="a", alternates=("b", "c"))
    assert signature.among({"c", "d"}) == "c"
    assert signature.among({"a", "b"}) == "a"
    assert signature.among(set()) == "a"


def proof(*values: float, probe: str = "p", learns_constant: bool = False) -> Proof:
    return Proof(probe=probe, values=values, learns_constant=learns_constant)


def test_equal_up_to_rounding_is_confirmed_with_its_deviation() -> None:
    certificate = proof(1.0, 4.0).compare(proof(1.0, 4.0 + 2.0**-40))
    assert certificate.confirmed
    assert certificate.deviation == pytest.approx(2.0**-42)
    assert (certificate.probe, certificate.bits) == ("p", CONFIRMED_BITS)
    assert Certificate(**certificate.to_json()) == certificate  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (proof(1.0, 4.0 + 2.0**-30), "the second probes differ"),
        (proof(1.0, 4.0, probe="q"), "different probes"),
        (proof(1.0), "different probes"),
        (proof(1.0, math.nan), "finite where the other is not"),
        (proof(1.0, 4.0, learns_constant=True), "learn a constant"),
    ],
)
def test_what_is_not_the_same_is_refused_with_the_reason(other: Proof, reason: str) -> None:
    certificate = proof(1.0, 4.0).compare(other)
    assert not certificate.confirmed
    assert reason in certificate.reason


def test_nan_equals_nan_and_zeros_equal_zeros() -> None:
    assert proof(math.nan, -math.inf).compare(proof(math.nan, -math.inf)).confirmed
    assert not proof(math.inf).compare(proof(-math.inf)).confirmed
    assert proof(0.0, 0.0).compare(proof(0.0, 0.0)).deviation == 0.0


def test_a_proof_survives_json_bit_for_bit() -> None:
    made = proof(0.1, math.inf, -1e-300, learns_constant=True)
    assert Proof.from_json(made.to_json()) == made
    with pytest.raises(InvalidInputError, match="no proof"):
        Proof.from_json({"probe": "p"})


def layers(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Otherwise(nn.Module):
    """The same layers, coded by hand, with an output in a dictionary."""

    def __init__(self, source: nn.Sequential) -> None:
        super().__init__()
        state = source.state_dict()
        self.weights = nn.ParameterList([state["0.weight"].T, state["2.weight"].T])
        self.offsets = nn.ParameterList([state["0.bias"], state["2.bias"]])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(x @ self.weights[0] + self.offsets[0])
        return {"logits": hidden @ self.weights[1] + self.offsets[1]}


def test_modules_coded_differently_and_functions_on_arrays_agree() -> None:
    module = layers()
    arrays = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def function(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        hidden = np.tanh(x @ arrays["0.weight"].T + arrays["0.bias"])
        return hidden @ arrays["2.weight"].T + arrays["2.bias"]  # type: ignore[no-any-return]

    ways = (module, Otherwise(module), function)
    inputs = probes([VECTOR])
    assert len({weight_signature(way, inputs).key for way in ways}) == 1
    first, *others = (weight_proof(way, [VECTOR]) for way in ways)
    assert all(first.compare(other).confirmed for other in others)
    assert weight_signature(layers(1), inputs).key != weight_signature(module, inputs).key
    assert not first.compare(weight_proof(layers(1), [VECTOR])).confirmed


def test_a_difference_beyond_the_hash_is_caught_by_the_proof() -> None:
    module, other = layers(), layers()
    with torch.no_grad():
        other[2].bias += 1e-7
    inputs = probes([VECTOR])
    low = [weight_signature(way, inputs, mantissa_bits=4).key for way in (module, other)]
    assert low[0] == low[1]
    certificate = weight_proof(module, [VECTOR]).compare(weight_proof(other, [VECTOR]))
    assert not certificate.confirmed
    assert certificate.deviation is not None


def test_what_is_no_array_cannot_be_hashed() -> None:
    with pytest.raises(InvalidInputError, match="a str cannot be hashed"):
        weight_signature(lambda x: "logits", probes([VECTOR]))


@pytest.fixture
def _vision_schemas() -> Iterator[None]:
    """Declare what torchvision's binary would, where torch is too plain to load it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    with contextlib.suppress(RuntimeError):
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    library._destroy()


@pytest.mark.slow
@pytest.mark.usefixtures("_vision_schemas")
def test_imported_models_are_hashed_by_what_they_compute() -> None:
    from timm.models.vision_transformer import VisionTransformer
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    tokens = TensorSpec(shape=(5,), dtype="int64")
    images = TensorSpec(shape=(3, 8, 8))

    def vit() -> nn.Module:
        return VisionTransformer(
            img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3
        )

    for make, spec in ((lambda: BertModel(config), tokens), (vit, images)):
        model, again = make(), make()
        again.load_state_dict(model.state_dict())
        keys = [weight_signature(m, probes([spec])).key for m in (model, again, make())]
        assert keys[0] == keys[1] != keys[2]
