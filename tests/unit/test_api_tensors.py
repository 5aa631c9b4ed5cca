"""KServe V2 messages: what goes in comes out, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serving.api.ports import DATATYPES, interface
from serving.api.tensors import encode_response, parse_request
from serving.runners.checks import DTYPES
from zoo.errors import BlockyardError, InvalidInputError
from zoo.spec import TensorSpec

FLOATS = (TensorSpec(shape=(2, 3)),)
CARD = {"normalization": {"mean": [0.5, 0.25], "std": [0.5, 2.0]}}


def ask(*inputs: dict[str, Any], **rest: Any) -> bytearray:
    return bytearray(json.dumps({"inputs": list(inputs), **rest}).encode())


def tensor_json(**changes: Any) -> dict[str, Any]:
    given = {"name": "input_0", "shape": [1, 2, 3], "datatype": "FP32", "data": [1.0] * 6}
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


def random_tensor(dtype: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(dtype))
    if DTYPES[dtype].is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DTYPES[dtype])
    return torch.randint(0, 2, shape, generator=generator).to(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DATATYPES)
@pytest.mark.parametrize("odd", [0, 1, 3])
def test_every_datatype_survives_the_way_there_and_back_as_bytes(dtype: str, odd: int) -> None:
    specs = (TensorSpec(shape=(3,), dtype=dtype), TensorSpec(shape=(None,), dtype=dtype))
    ports = interface(specs, specs, {})
    tensors = [random_tensor(dtype, 2, 3), random_tensor(dtype, 2, 5)]
    parts = [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
    header = (
        json.dumps(
            {
                "inputs": [
                    {
                        "name": f"input_{index}",
                        "shape": list(tensors[index].shape),
                        "datatype": DATATYPES[dtype],
                        "parameters": {"binary_data_size": len(parts[index])},
                    }
                    for index in (1, 0)
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        + b" " * odd
    )
    body = bytearray(header + parts[1] + parts[0])
    request = parse_request(body, len(header), ports)
    for parsed, tensor in zip(request.inputs, tensors, strict=True):
        assert parsed.dtype == tensor.dtype
        assert torch.equal(parsed, tensor)
    data, length = encode_response({}, request.inputs, request.wanted, ports)
    assert length is not None
    described = json.loads(data[:length])["outputs"]
    assert [item["datatype"] for item in described] == [DATATYPES[dtype]] * 2
    assert data[length:] == parts[0] + parts[1]


@pytest.mark.parametrize("dtype", [name for name in DATATYPES if "float16" not in name])
def test_every_datatype_with_a_json_form_survives_it(dtype: str) -> None:
    specs = (TensorSpec(shape=(4,), dtype=dtype),)
    ports = interface(specs, specs, {})
    tensor = random_tensor(dtype, 3, 4)
    for data in (tensor.tolist(), tensor.flatten().tolist()):
        item = tensor_json(shape=[3, 4], datatype=DATATYPES[dtype], data=data)
        request = parse_request(ask(item), None, ports)
        assert torch.equal(request.inputs[0], tensor)
        body, length = encode_response({}, request.inputs, request.wanted, ports)
        assert length is None
        assert json.loads(body)["outputs"][0]["data"] == tensor.flatten().tolist()


def test_raw_images_are_normalised_as_the_card_says() -> None:
    specs = (TensorSpec(shape=(2, 1, 2)),)
    ports = interface(specs, FLOATS, CARD)
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    item = tensor_json(shape=[1, 2, 1, 2], datatype="UINT8", data=images.flatten().tolist())
    (parsed,) = parse_request(ask(item), None, ports).inputs
    mean, std = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 2.0])
    expected = (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(parsed, expected)
    ready = tensor_json(shape=[1, 2, 1, 2], data=[1.0] * 4)
    assert torch.equal(parse_request(ask(ready), None, ports).inputs[0], torch.ones(1, 2, 1, 2))


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"normalization": None},
        {"normalization": {"mean": [0.5], "std": [0.5, 1.0]}},
        {"normalization": {"mean": [0.5, 0.5], "std": [0.5, 0.0]}},
        {"normalization": {"mean": ["a", "b"], "std": [1, 1]}},
    ],
)
def test_without_a_usable_card_raw_images_are_refused(card: dict[str, Any]) -> None:
    ports = interface((TensorSpec(shape=(2, 1, 2)),), FLOATS, card)
    item = tensor_json(shape=[1, 2, 1, 2], datatype="UINT8", data=[0] * 4)
    with pytest.raises(InvalidInputError, match="UINT8.*FP32"):
        parse_request(ask(item), None, ports)


WRONG = {
    "name": (ask(tensor_json(name="image")), "'image'.*input_0"),
    "no name": (ask(tensor_json(name=None)), "None.*input_0"),
    "twice": (ask(tensor_json(), tensor_json()), "input_0 is given twice"),
    "datatype": (ask(tensor_json(datatype="FP64")), "'FP64'.*FP32"),
    "unknown datatype": (ask(tensor_json(datatype=["FP32"])), "datatype.*FP32"),
    "shape": (ask(tensor_json(shape=[1, 2, 4])), r"\[1, 2, 4\].*\[batch, 2, 3\]"),
    "rank": (ask(tensor_json(shape=[2, 3])), r"\[2, 3\]"),
    "no batch": (ask(tensor_json(shape=[0, 2, 3], data=[])), r"\[0, 2, 3\]"),
    "negative": (ask(tensor_json(shape=[-1, 2, 3])), r"\[-1, 2, 3\]"),
    "float size": (ask(tensor_json(shape=[1.0, 2, 3])), r"\[1.0, 2, 3\]"),
    "bool size": (ask(tensor_json(shape=[True, 2, 3])), r"\[True, 2, 3\]"),
    "no shape": (ask(tensor_json(shape=None)), "shape None"),
    "huge": (ask(tensor_json(shape=[10**18, 2, 3])), "6 values"),
    "too few": (ask(tensor_json(data=[1.0] * 5)), "5 values.*needs 6"),
    "ragged": (ask(tensor_json(data=[[1.0], [1.0, 2.0]])), "input_0"),
    "texts": (ask(tensor_json(data=["1"] * 6)), "input_0.*FP32"),
    "booleans": (ask(tensor_json(data=[True] * 6)), "input_0.*FP32"),
    "null": (ask(tensor_json(data=[None] * 6)), "input_0.*FP32"),
    "object": (ask(tensor_json(data={"a": 1})), "input_0 has data"),
    "too large": (ask(tensor_json(data=[1e300] * 6)), "1e.?300.*FP32"),
    "beyond": (ask(tensor_json(data=[10**400] * 6)), "input_0"),
    "no data": (ask(tensor_json(data=None)), "input_0 has data None"),
    "both": (ask(tensor_json(parameters={"binary_data_size": 24})), "both data"),
    "size": (ask(tensor_json(data=None, parameters={"binary_data_size": 23})), "23.*24"),
    "size type": (ask(tensor_json(data=None, parameters={"binary_data_size": "24"})), "'24'"),
    "missing bytes": (ask(tensor_json(data=None, parameters={"binary_data_size": 24})), "24 bytes"),
    "parameters": (ask(tensor_json(parameters=[1])), r"parameters of input_0 is \[1\]"),
    "output": (ask(tensor_json(), outputs=[{"name": "logits"}]), "'logits'.*output_0"),
    "outputs": (ask(tensor_json(), outputs={"name": "output_0"}), "outputs is"),
    "output twice": (ask(tensor_json(), outputs=[{"name": "output_0"}] * 2), "twice"),
    "flag": (ask(tensor_json(), parameters={"binary_data_output": 1}), "binary_data_output.*1"),
    "timeout": (ask(tensor_json(), parameters={"timeout": -5}), "timeout is -5"),
    "id": (ask(tensor_json(), id=5), "id is 5"),
    "no inputs": (ask(), r"inputs is \[\].*input_0"),
    "inputs": (bytearray(b'{"inputs": 5}'), "inputs is 5"),
    "input": (bytearray(b'{"inputs": [5]}'), "None"),
    "no object": (bytearray(b"[1, 2]"), r"\[1, 2\]"),
    "no JSON": (bytearray(b"{"), "no JSON"),
    "nothing": (bytearray(), "no JSON"),
    "no text": (bytearray(b"\xff\xfe\x00\xd8"), "no JSON"),
    "too deep": (bytearray(b"[" * 100_000), "no JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    body, message = WRONG[case]
    with pytest.raises(InvalidInputError, match=message):
        parse_request(body, None, interface(FLOATS, FLOATS, {}))


@pytest.mark.parametrize("length", [-1, 10**6])
def test_a_header_longer_than_the_body_is_refused(length: int) -> None:
    with pytest.raises(InvalidInputError, match=str(length)):
        parse_request(ask(tensor_json()), length, interface(FLOATS, FLOATS, {}))


def test_bytes_that_no_tensor_takes_are_refused() -> None:
    header = ask(tensor_json())
    with pytest.raises(InvalidInputError, match="7 bytes more"):
        parse_request(header + bytes(7), len(header), interface(FLOATS, FLOATS, {}))


def test_half_precision_has_no_json_form() -> None:
    halves = (TensorSpec(shape=(2,), dtype="float16"),)
    item = tensor_json(shape=[1, 2], datatype="FP16", data=[1.0, 2.0])
    with pytest.raises(InvalidInputError, match="FP16.*binary"):
        parse_request(ask(item), None, interface(halves, FLOATS, {}))
    with pytest.raises(InvalidInputError, match="output_0 is FP16.*binary"):
        parse_request(ask(tensor_json()), None, interface(FLOATS, halves, {}))


def test_integers_never_wrap_around() -> None:
    small = (TensorSpec(shape=(2,), dtype="uint8"),)
    for data in ([0, 256], [-1, 0], [0.5, 1]):
        item = tensor_json(shape=[1, 2], datatype="UINT8", data=data)
        with pytest.raises(InvalidInputError, match="UINT8"):
            parse_request(ask(item), None, interface(small, FLOATS, {}))


def test_a_truth_value_is_any_byte_but_zero() -> None:
    flags = (TensorSpec(shape=(3,), dtype="bool"),)
    parameters = {"binary_data_size": 3}
    header = ask(tensor_json(shape=[1, 3], datatype="BOOL", data=None, parameters=parameters))
    request = parse_request(header + b"\x00\x01\xff", len(header), interface(flags, flags, {}))
    assert request.inputs[0].tolist() == [[False, True, True]]


def test_an_infinite_output_needs_the_binary_form() -> None:
    ports = interface(FLOATS, FLOATS, {})
    outputs = (torch.full((1, 2, 3), float("inf")),)
    with pytest.raises(InvalidInputError, match="binary_data"):
        encode_response({}, outputs, [(0, False)], ports)
    data, length = encode_response({}, outputs, [(0, True)], ports)
    assert data[length:] == outputs[0].numpy().tobytes()


def test_inputs_of_different_batch_sizes_are_refused() -> None:
    ports = interface((*FLOATS, TensorSpec(shape=(1,))), FLOATS, {})
    second = tensor_json(name="input_1", shape=[2, 1], data=[1.0, 2.0])
    with pytest.raises(InvalidInputError, match=r"\[1, 2\]"):
        parse_request(ask(tensor_json(), second), None, ports)
    with pytest.raises(InvalidInputError, match="input_1 are missing"):
        parse_request(ask(tensor_json()), None, ports)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@given(st.dictionaries(FIELDS, JSON), st.dictionaries(st.sampled_from(["id", "outputs"]), JSON))
def test_no_message_causes_more_than_a_deliberate_error(
    changes: dict[str, Any], rest: dict[str, Any]
) -> None:
    body = ask({**tensor_json(), **changes}, **rest)
    with contextlib.suppress(BlockyardError):
        request = parse_request(body, None, interface(FLOATS, FLOATS, {}))
        assert request.inputs[0].shape[1:] == (2, 3)
