"""Functional signatures of blocks with weights."""

from __future__ import annotations

import copy
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.builders import build
from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.families.darts import stem_spec
from zoo.families.mbconv import block_spec
from zoo.signature import block_signature, functional_signature, hash_tensors, probes, uniform
from zoo.spec import TensorSpec

IMAGES = (TensorSpec(shape=(3, 8, 8)),)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def signature(module: nn.Module) -> str:
    return functional_signature(module, probes(IMAGES))


def digest(*values: float, bits: int = 16) -> str:
    return hash_tensors([torch.tensor(values, dtype=torch.float64)], mantissa_bits=bits)[0]


def test_the_generator_is_splitmix64() -> None:
    # The first outputs for seed 0, published with the algorithm.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    wanted = [(value >> 11) * 2.0**-52 - 1 for value in published]
    assert uniform((3,), 0).tolist() == wanted


def test_probes_fit_their_specs_and_never_change() -> None:
    specs = [
        TensorSpec(shape=(3, None)),
        TensorSpec(shape=(5,), dtype="int64"),
        TensorSpec(shape=(), dtype="bool"),
    ]
    made = probes(specs, batch=2)
    assert [tuple(item.shape) for item in made] == [(2, 3, 8), (2, 5), (2,)]
    assert [item.dtype for item in made] == [torch.float64, torch.int64, torch.bool]
    assert all(torch.equal(a, b) for a, b in zip(made, probes(specs, batch=2), strict=True))
    assert made[0].abs().max() <= 1


def test_the_signature_says_version_and_bits() -> None:
    value = functional_signature(network(), probes(IMAGES), mantissa_bits=20)
    assert value.startswith("fs4-m20-")
    assert len(value) == len("fs4-m20-") + 64


def test_equal_functions_written_differently_have_one_signature() -> None:
    plain = network()
    folded = copy.deepcopy(plain)
    with torch.no_grad():  # twice the weights, half of them in what follows
        folded[0].weight *= 2
        assert folded[0].bias is not None
        folded[0].bias *= 2
        folded[3].weight /= 2
    folded.insert(3, nn.Identity())
    assert signature(plain) == signature(folded)


def test_another_weight_another_activation_and_another_bias_are_seen() -> None:
    plain = network()
    others = [copy.deepcopy(plain) for _ in range(3)]
    with torch.no_grad():
        others[0][0].weight[1, 2, 0, 0] += 1e-3
        others[1][3].bias -= 1e-3
    others[2][2] = nn.LeakyReLU()
    assert len({signature(module) for module in (plain, network(1), *others)}) == 5


def test_a_block_of_the_zoo_is_not_the_same_without_the_bound_of_its_activation() -> None:
    spec = block_spec(
        TensorSpec(shape=(8, 8, 8)), channels=8, expand=3, kernel=3, stride=1, skip=True
    )
    block = build(spec)
    other = copy.deepcopy(block)
    for part in list(other.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(part, name, nn.ReLU())
    assert block_signature(spec, copy.deepcopy(block)) == block_signature(spec, block)
    assert block_signature(spec, other) != block_signature(spec, block)


def test_the_module_is_left_as_it_was() -> None:
    module = network().train()
    before = copy.deepcopy(module.state_dict())
    signature(module)
    assert module.training
    after = module.state_dict()
    assert all(
        after[name].dtype == value.dtype and torch.equal(after[name], value)
        for name, value in before.items()
    )


def test_saving_and_loading_and_precision_of_storage_change_nothing() -> None:
    module = network()
    again = network(5)
    again.load_state_dict(module.state_dict())
    assert signature(again) == signature(module)
    assert signature(module.double()) == signature(again)


def test_the_number_of_threads_changes_nothing() -> None:
    before = torch.get_num_threads()
    try:
        values = set()
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            values.add(signature(network()))
    finally:
        torch.set_num_threads(before)
    assert len(values) == 1


def test_a_block_is_probed_through_its_interface() -> None:
    spec = stem_spec(TensorSpec(shape=(1, 6, 6)), channels=4)

    class Stem(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, self.scale * x

    assert block_signature(spec, Stem(1)) == block_signature(spec, Stem(1.0))
    assert block_signature(spec, Stem(1)) != block_signature(spec, Stem(2))


def test_a_block_that_rejects_its_inputs_says_which() -> None:
    with pytest.raises(IncompatibleShapeError, match=r"rejects inputs of \[3, 3, 8, 8\]"):
        signature(nn.Conv2d(5, 1, 1))


@pytest.mark.parametrize("bits", [0, 53])
def test_an_impossible_number_of_bits_is_refused(bits: int) -> None:
    with pytest.raises(InvalidInputError, match=f"mantissa_bits is {bits}"):
        functional_signature(network(), probes(IMAGES), mantissa_bits=bits)


def test_sign_nan_and_infinity_are_told_apart() -> None:
    values = [1.0, -1.0, math.nan, math.inf, -math.inf, 0.0]
    assert len({digest(value) for value in values}) == len(values)
    other_nan = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000001))[0]
    assert digest(other_nan) == digest(math.nan)
    assert digest(0.0, 1.0) == digest(-0.0, 1.0)


def test_shape_is_part_of_the_hash() -> None:
    flat = torch.ones(4)
    square = flat.view(2, 2)
    assert hash_tensors([flat], mantissa_bits=16)[0] != hash_tensors([square], mantissa_bits=16)[0]


@given(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6), st.integers(1, 40))
def test_the_low_end_of_the_mantissa_is_cut(value: float, bits: int) -> None:
    mantissa, exponent = math.frexp(value)
    kept = math.ldexp(math.trunc(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)
    assert digest(value, bits=bits) == digest(kept, bits=bits)
    further = kept + math.copysign(math.ldexp(1.0, exponent - bits - 1), value)
    assert digest(value, bits=bits) != digest(further, bits=bits)


def test_rounding_noise_beside_large_values_is_zero() -> None:
    assert digest(1.0, 1e-16) == digest(1.0, -3e-17) == digest(1.0, 0.0)
    assert digest(1.0, 1e-9) != digest(1.0, 0.0)
