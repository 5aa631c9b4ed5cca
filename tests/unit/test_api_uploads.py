"""What may not enter the zoo: anything but plain safetensors and self-contained ONNX."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor,
    make_tensor_value_info,
)
from safetensors.numpy import save

from serving.api.uploads import check_onnx, check_safetensors
from zoo.errors import InvalidInputError

WEIGHTS = save({"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.int64)})


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **changes}


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", content)
    return file.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was executed",)


@pytest.mark.parametrize("data", [WEIGHTS, save({}), save({"s": np.array(1.0)})])
def test_a_safetensors_file_is_accepted(data: bytes) -> None:
    check_safetensors(data)


REFUSED = {
    "empty": b"",
    "short": b"\x00" * 7,
    "pickle": pickle.dumps(Bomb()),
    "torch archive": zipped(pickle.dumps(Bomb())),
    "zip bomb": zipped(b"\x00" * 2**20),
    "header beyond the end": (2**40).to_bytes(8, "little") + b"{}",
    "header of 2^64": b"\xff" * 8 + b"{}",
    "header above the cap": packed(b" " * (17 * 2**20) + b"{}"),
    "no JSON": packed(b"{'a': 1}"),
    "no UTF-8": packed(b'{"\xff": 1}'),
    "too deep": packed(b"[" * 100_000),
    "a list": packed([]),
    "duplicate names": packed(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "trailing bytes": WEIGHTS + b"PK\x03\x04",
    "cut off": WEIGHTS[:-1],
    "gap": packed({"a": entry(0, 2), "b": entry(3, 4)}, b"xxxx"),
    "overlap": packed({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx"),
    "backwards": packed({"a": entry(0, 2, data_offsets=[2, 0])}, b"xx"),
    "size that lies": packed({"a": entry(0, 2, shape=[3])}, b"xx"),
    "negative size": packed({"a": entry(0, 2, shape=[-1, -2])}, b"xx"),
    "overflow": packed({"a": entry(0, 2, shape=[2**62, 4])}, b"xx"),
    "unknown type": packed({"a": entry(0, 2, dtype="PICKLE")}, b"xx"),
    "no type": packed({"a": {"shape": [2], "data_offsets": [0, 2]}}, b"xx"),
    "extra field": packed({"a": entry(0, 2, code="import os")}, b"xx"),
    "metadata": packed({"__metadata__": {"a": {"b": 1}}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused(case: str) -> None:
    with pytest.raises(InvalidInputError, match="no safetensors file"):
        check_safetensors(REFUSED[case])


def model(*nodes: Any, initializers: tuple[Any, ...] = (), **options: Any) -> Any:
    ports = [make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = make_graph(list(nodes), "g", ports[:1], ports[1:], initializer=list(initializers))
    return make_model(graph, opset_imports=[make_opsetid("", 18)], **options)


def external(name: str = "w") -> Any:
    tensor = make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    pair = tensor.external_data.add()
    pair.key, pair.value = "location", "../../etc/passwd"
    return tensor


IDENTITY = make_node("Identity", ["x"], ["y"])


def test_a_self_contained_model_is_accepted() -> None:
    weights = make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    check_onnx(
        model(make_node("Add", ["x", "w"], ["y"]), initializers=(weights,)).SerializeToString()
    )


def branching(tensor: Any) -> Any:
    output = [make_tensor_value_info("z", TensorProto.FLOAT, [2])]
    branch = make_graph([make_node("Constant", [], ["z"], value=tensor)], "b", [], output)
    return make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


def in_a_function(tensor: Any) -> Any:
    body = [make_node("Constant", [], ["b"], value=tensor)]
    function = onnx.helper.make_function("own", "F", ["a"], ["b"], body, [make_opsetid("", 18)])
    return model(make_node("F", ["x"], ["y"], domain="own"), functions=[function])


EXTERNAL = {
    "initializer": model(IDENTITY, initializers=(external(),)),
    "attribute": model(make_node("Constant", [], ["y"], value=external())),
    "subgraph": model(branching(external())),
    "function": in_a_function(external()),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_a_model_that_reads_other_files_is_refused(case: str) -> None:
    with pytest.raises(InvalidInputError, match="another file"):
        check_onnx(EXTERNAL[case].SerializeToString())


def test_a_function_of_the_model_itself_is_no_custom_operator() -> None:
    plain = make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    check_onnx(in_a_function(plain).SerializeToString())


def test_a_custom_operator_is_refused() -> None:
    node = make_node("Shell", ["x"], ["y"], domain="com.evil")
    with pytest.raises(InvalidInputError, match=r"com\.evil\.Shell"):
        check_onnx(model(node).SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, pickle.dumps(Bomb()), WEIGHTS, b"\xff" * 9])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="no ONNX model"):
        check_onnx(data)
