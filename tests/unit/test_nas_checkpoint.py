"""The state of a search survives as bytes, or is refused."""

from __future__ import annotations

import math
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nas.checkpoint import pack, unpack
from zoo.errors import CorruptArtifactError, InvalidInputError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5)], ids=str)
def test_tensors_of_every_type_come_back_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = (torch.randn(shape, generator=generator, dtype=torch.float64) * 3).abs().to(dtype)
    back = unpack(pack({"x": tensor}))["x"]
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert raw(back) == raw(tensor)


def test_unusual_tensors_come_back_as_their_values() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    base[0, 0], base[0, 1], base[0, 2] = math.nan, math.inf, -0.0
    state = {
        "transposed": base.t(),
        "strided": base[:, ::2],
        "expanded": torch.tensor(7).expand(3),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "tied": [base, base],
    }
    back = unpack(pack(state))
    assert raw(back["transposed"]) == raw(base.t())
    assert raw(back["strided"]) == raw(base[:, ::2])
    assert back["expanded"].tolist() == [7, 7, 7]
    assert back["conjugate"].tolist() == [1 - 2j]
    assert back["parameter"].tolist() == [1, 1]
    assert raw(back["tied"][1]) == raw(base)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$tensor", "$dict", "$int", "plain"]), inner)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=60, deadline=None)
def test_anything_nested_comes_back_equal_and_of_the_same_type(value: object) -> None:
    back = unpack(pack(value))
    assert back == value
    assert repr(back) == repr(value)


def test_special_floats_keep_their_bits() -> None:
    odd_nan = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
    back = unpack(pack([odd_nan, -math.inf, -0.0, 5e-324]))
    assert struct.pack("<d", back[0]).hex() == "010000000000f87f"
    assert back[1] == -math.inf
    assert math.copysign(1, back[2]) == -1
    assert back[3] == 5e-324


def test_a_generator_continues_from_its_packed_state() -> None:
    mine, torchs = random.Random(3), torch.Generator().manual_seed(3)
    mine.random()
    torch.rand(5, generator=torchs)
    state = unpack(pack({"python": mine.getstate(), "torch": torchs.get_state()}))
    again = random.Random()
    version, internal, gauss = state["python"]
    again.setstate((version, tuple(internal), gauss))
    assert again.random() == mine.random()
    fresh = torch.Generator()
    fresh.set_state(state["torch"])
    assert torch.equal(torch.rand(5, generator=fresh), torch.rand(5, generator=torchs))


def test_an_optimisers_state_comes_back_whole() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    other = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=1.0)
    other.load_state_dict(unpack(pack(optimizer.state_dict())))
    assert other.param_groups[0]["lr"] == 0.1
    mine, theirs = next(iter(optimizer.state.values())), next(iter(other.state.values()))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_equal_states_give_equal_bytes() -> None:
    def state() -> dict[str, object]:
        return {f"t{i}": torch.full((i,), float(i)) for i in range(12)} | {"n": 2**70}

    assert pack(state()) == pack(state())


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_flipped_bit_or_a_torn_end_is_noticed(data: st.DataObject) -> None:
    whole = pack({"weights": torch.arange(6.0), "steps": [1, 2], "name": "x"})
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(changed), whole[:at], whole + whole[:at] + b"\0"):
        with pytest.raises(CorruptArtifactError):
            unpack(damaged)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, {2}]}, r"state\['a'\]\[1\] is a set"),
        ({"a": b"bytes"}, "bytes"),
        ({("a", 1): 1}, r"key \('a', 1\)"),
        ({True: 1}, "key True"),
        ({"a": torch.eye(2).to_sparse()}, "sparse"),
        ({"a": torch.empty(2, device="meta")}, "meta"),
        ({"a": 1j}, "complex"),
    ],
)
def test_what_cannot_be_packed_is_named(value: object, where: str) -> None:
    with pytest.raises(InvalidInputError, match=where):
        pack(value)


def test_a_state_that_contains_itself_is_refused() -> None:
    state: list[object] = []
    state.append(state)
    with pytest.raises(InvalidInputError, match="contains itself"):
        pack(state)
