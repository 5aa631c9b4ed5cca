"""Tensors on the wire: KServe V2 JSON and its binary tensor data extension.

A binary message is a JSON header of ``Inference-Header-Content-Length`` bytes, then the
raw little-endian, row-major bytes of each binary tensor in the header's order.

Source:
    Open Inference Protocol V2, and Triton's extension_binary_data.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serving.api.ports import BINARY_ONLY, DATATYPES, Interface, Port
from serving.runners.checks import DTYPES
from zoo.errors import IncompatibleShapeError, InvalidInputError

_TORCH = {name: DTYPES[dtype] for dtype, name in DATATYPES.items()}
_NUMPY: dict[str, type[np.generic]] = {
    "FP32": np.float32,
    "FP64": np.float64,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
_KINDS = {"FP32": "iuf", "FP64": "iuf", "UINT8": "iu", "INT32": "iu", "INT64": "iu", "BOOL": "b"}


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A parsed request; ``wanted`` has, per answered output, its position and its form."""

    id: str | None
    inputs: tuple[Tensor, ...]
    wanted: tuple[tuple[int, bool], ...]
    timeout_s: float | None


def parse_request(body: bytearray, header_bytes: int | None, ports: Interface) -> InferRequest:
    """Read a request.

    Args:
        body: The HTTP body; binary tensors share its memory where they are aligned.
        header_bytes: Length of the JSON header, None if the body is all JSON.
        ports: What the model takes and returns.

    Raises:
        InvalidInputError: The message names what is wrong and the value it has.
        IncompatibleShapeError: A tensor's shape does not fit the model.
    """
    end = len(body) if header_bytes is None else header_bytes
    if not 0 <= end <= len(body):
        raise InvalidInputError(
            f"Inference-Header-Content-Length is {header_bytes}, but the body has {len(body)} bytes"
        )
    message = _json_object(bytes(memoryview(body)[:end]))
    parameters = _parameters(message, "request")
    inputs = _inputs(message.get("inputs"), body, end, ports.inputs)
    identifier = message.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise InvalidInputError(f"id is {_shown(identifier)}; give a string")
    return InferRequest(
        id=identifier or None,
        inputs=inputs,
        wanted=_wanted(message.get("outputs"), parameters, ports.outputs),
        timeout_s=_timeout(parameters),
    )


def encode_response(
    head: dict[str, Any],
    outputs: Sequence[Tensor],
    wanted: Sequence[tuple[int, bool]],
    ports: Interface,
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its header if it has binary parts.

    Raises:
        InvalidInputError: A value has no JSON form (NaN or infinity).
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for position, binary in wanted:
        port, tensor = ports.outputs[position], outputs[position].detach().cpu().contiguous()
        item: dict[str, Any] = {
            "name": port.name,
            "shape": list(tensor.shape),
            "datatype": port.datatype,
        }
        if binary:
            data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            item["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            item["data"] = tensor.reshape(-1).tolist()
        described.append(item)
    try:
        text = json.dumps(head | {"outputs": described}, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise InvalidInputError(
            "an output is NaN or infinite, which JSON cannot carry; "
            'ask for it with "parameters": {"binary_data": true}'
        ) from error
    header = text.encode()
    return (b"".join([header, *parts]), len(header)) if parts else (header, None)


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the body is no JSON: {error}") from error
    if not isinstance(message, dict):
        raise InvalidInputError(f"the body is {_shown(message)}; give a JSON object")
    return message


def _inputs(
    items: object, body: bytearray, start: int, ports: tuple[Port, ...]
) -> tuple[Tensor, ...]:
    if not isinstance(items, list) or not items:
        raise InvalidInputError(
            f"inputs is {_shown(items)}; give a list of {', '.join(port.name for port in ports)}"
        )
    known = {port.name: position for position, port in enumerate(ports)}
    found: dict[int, Tensor] = {}
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        position = known.get(name) if isinstance(name, str) else None
        if position is None:
            raise InvalidInputError(
                f"no input is named {_shown(name)}; the model takes {', '.join(known)}"
            )
        if position in found:
            raise InvalidInputError(f"input {name} is given twice")
        found[position], start = _input(item, ports[position], body, start)
    if start != len(body):
        raise InvalidInputError(
            f"the body has {len(body) - start} bytes more than its header speaks of"
        )
    missing = [port.name for position, port in enumerate(ports) if position not in found]
    if missing:
        raise InvalidInputError(f"the inputs {', '.join(missing)} are missing")
    tensors = tuple(found[position] for position in range(len(ports)))
    if len({tensor.shape[0] for tensor in tensors}) != 1:
        raise IncompatibleShapeError(
            f"the inputs have batch sizes {[tensor.shape[0] for tensor in tensors]}; give one"
        )
    return tensors


def _input(item: Mapping[str, Any], port: Port, body: bytearray, start: int) -> tuple[Tensor, int]:
    datatype = item.get("datatype")
    if datatype not in port.datatypes:
        raise InvalidInputError(
            f"{port.name} has datatype {_shown(datatype)}; "
            f"the model takes {' or '.join(port.datatypes)}"
        )
    shape = _shape(item.get("shape"), port)
    size = _parameters(item, port.name).get("binary_data_size")
    if size is None:
        tensor = _from_json(item, port.name, datatype, shape)
    elif "data" in item:
        raise InvalidInputError(f"{port.name} has both data and binary_data_size; give one")
    else:
        tensor = _from_bytes(body, start, size, port.name, datatype, shape)
        start += size
    if port.normalize is not None and datatype == "UINT8":
        tensor = port.normalize(tensor)
    return tensor, start


def _shape(shape: object, port: Port) -> list[int]:
    wanted = port.spec.shape
    fits = (
        isinstance(shape, list)
        and len(shape) == len(wanted) + 1
        and all(type(size) is int and size >= 1 for size in shape)
        and all(want is None or want == size for want, size in zip(wanted, shape[1:], strict=True))
    )
    if not fits:
        expected = ", ".join(["batch", *("any" if size is None else str(size) for size in wanted)])
        raise IncompatibleShapeError(
            f"{port.name} has shape {_shown(shape)}; the model takes [{expected}]"
        )
    return shape  # type: ignore[return-value]  # a list of integers, as was just checked


def _from_json(item: Mapping[str, Any], name: str, datatype: str, shape: list[int]) -> Tensor:
    if datatype in BINARY_ONLY:
        raise InvalidInputError(
            f"{name} is {datatype}, which has no JSON form; send it as binary tensor data"
        )
    data = item.get("data")
    if not isinstance(data, list):
        raise InvalidInputError(f"{name} has data {_shown(data)}; give a list")
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{name} has data of no regular shape: {error}") from error
    if array.dtype.kind not in _KINDS[datatype]:
        raise InvalidInputError(f"{name} has data that are not all {datatype} values")
    if array.size != math.prod(shape):
        raise IncompatibleShapeError(
            f"{name} has {array.size} values; shape {_shown(shape)} needs {math.prod(shape)}"
        )
    target = _NUMPY[datatype]
    _check_range(array, target, name, datatype)
    return torch.from_numpy(array.astype(target).reshape(shape))


def _check_range(array: Any, target: type[np.generic], name: str, datatype: str) -> None:
    """Refuse integers that would wrap around, and numbers that are not finite in ``target``."""
    if issubclass(target, np.integer):
        bounds = np.iinfo(target)
    elif issubclass(target, np.floating):
        bounds = np.finfo(target)  # type: ignore[assignment]
    else:
        return
    low, high = array.min(), array.max()
    if not (bounds.min <= low and high <= bounds.max):
        raise InvalidInputError(f"{name} has values from {low} to {high}, beyond {datatype}")


def _from_bytes(
    body: bytearray, start: int, size: object, name: str, datatype: str, shape: list[int]
) -> Tensor:
    dtype = _TORCH[datatype]
    count = math.prod(shape)
    if type(size) is not int or size != count * dtype.itemsize:
        raise InvalidInputError(
            f"{name} has binary_data_size {_shown(size)}; "
            f"{datatype}{shape} has {count * dtype.itemsize} bytes"
        )
    if start + size > len(body):
        raise InvalidInputError(
            f"{name} needs {size} bytes, but {len(body) - start} are left in the body"
        )
    if start % dtype.itemsize:
        body, start = body[start : start + size], 0
    if dtype == torch.bool:
        return torch.frombuffer(body, dtype=torch.uint8, count=count, offset=start).view(shape) != 0
    return torch.frombuffer(body, dtype=dtype, count=count, offset=start).view(shape)


def _wanted(
    items: object, parameters: Mapping[str, Any], ports: tuple[Port, ...]
) -> tuple[tuple[int, bool], ...]:
    default = _flag(parameters, "binary_data_output", "request", default=False)
    if items is None or items == []:
        wanted = [(position, default) for position in range(len(ports))]
    elif isinstance(items, list):
        wanted = [_output(item, default, ports) for item in items]
    else:
        raise InvalidInputError(f"outputs is {_shown(items)}; give a list")
    if len({position for position, _ in wanted}) != len(wanted):
        raise InvalidInputError("an output is asked for twice")
    for position, binary in wanted:
        if not binary and ports[position].datatype in BINARY_ONLY:
            raise InvalidInputError(
                f"{ports[position].name} is {ports[position].datatype}, which has no JSON form; "
                'ask for it with "parameters": {"binary_data": true}'
            )
    return tuple(wanted)


def _output(item: object, default: bool, ports: tuple[Port, ...]) -> tuple[int, bool]:
    name = item.get("name") if isinstance(item, dict) else None
    for position, port in enumerate(ports):
        if port.name == name and isinstance(item, dict):
            parameters = _parameters(item, port.name)
            return position, _flag(parameters, "binary_data", port.name, default=default)
    raise InvalidInputError(
        f"no output is named {_shown(name)}; "
        f"the model returns {', '.join(port.name for port in ports)}"
    )


def _parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInputError(f"parameters of {where} is {_shown(parameters)}; give an object")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} of {where} is {_shown(value)}; give true or false")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Return the parameter ``timeout`` (microseconds, as in Triton) in seconds."""
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or not 0 < timeout < 2**63:
        raise InvalidInputError(f"timeout is {_shown(timeout)}; give microseconds above 0")
    return timeout / 1e6


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deep"
    return text if len(text) <= 80 else text[:77] + "..."
