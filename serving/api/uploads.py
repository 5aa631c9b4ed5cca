"""What uploaded bytes must look like before the zoo refers to them; nothing is executed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from zoo.errors import InvalidInputError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
METADATA = "__metadata__"

ITEM_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}

ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


def check_safetensors(data: bytes) -> None:
    """Check that ``data`` is one well-formed safetensors file and nothing else.

    The tensors must cover the bytes after the header exactly, without gap or overlap,
    so that nothing can hide between or behind them.

    Raises:
        InvalidInputError: It is not; the message says where.
    """
    if len(data) < 8:
        raise _refused(f"it has {len(data)} bytes; its header alone takes 8")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise _refused(f"its header claims {length} bytes")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _refused(
            f"its header is no JSON object of distinct names ({error!r:.200})"
        ) from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _refused(f"its header is no object of at most {MAX_TENSORS} tensors")
    _check_metadata(header.pop(METADATA, {}))
    ends = sorted(_extent(name, entry) for name, entry in header.items())
    position = 0
    for begin, end in ends:
        if begin != position:
            raise _refused(f"its tensors leave a gap or overlap at byte {position}")
        position = end
    if position != len(data) - 8 - length:
        raise _refused(f"its tensors have {position} bytes, it has {len(data) - 8 - length}")


def check_onnx(data: bytes) -> None:
    """Check that ``data`` is an ONNX model that needs no other file and no custom code.

    Raises:
        InvalidInputError: It is none, or refers to files or operators outside itself.
    """
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise InvalidInputError(f"the file is no ONNX model: {error!s:.200}") from error
    if not model.graph.node:
        raise InvalidInputError("the file is no ONNX model: it has no graph")
    local = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in ONNX_DOMAINS and (node.domain, node.op_type) not in local:
            raise InvalidInputError(
                f"the ONNX model uses operator {node.domain}.{node.op_type}, "
                "which is not of the standard; export it with standard operators"
            )
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise InvalidInputError(
                f"the ONNX model keeps tensor {tensor.name!r:.100} in another file; "
                "store the weights inside"
            )


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _refused("its metadata are no object of texts")


def _extent(name: str, entry: object) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end, checked against its shape and type."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refused(f"tensor {name!r:.100} lacks dtype, shape or data_offsets")
    bits = ITEM_BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if bits is None or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _refused(f"tensor {name!r:.100} is described by {entry!r:.200}")
    begin, end = offsets
    if end - begin != math.prod(shape) * bits // 8:
        raise _refused(f"tensor {name!r:.100} has {end - begin} bytes for shape {shape!r:.100}")
    return begin, end


def _sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(size) is int and 0 <= size < 2**48 for size in value)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _nodes(model: Any) -> Iterator[Any]:
    pending = [*model.graph.node, *(node for item in model.functions for node in item.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                pending.extend(graph.node)


def _tensors(model: Any) -> Iterator[Any]:
    graphs = [model.graph]
    for node in _nodes(model):
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
                yield from (sparse.values, sparse.indices)
            graphs.extend([attribute.g, *attribute.graphs])
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _refused(why: str) -> InvalidInputError:
    return InvalidInputError(f"the weights are no safetensors file: {why}")
