"""The state of a search as one safetensors file: no pickle, bit for bit, torn files noticed.

The tensors are the file's tensors; everything else is JSON in the file's metadata,
behind the sha256 of the whole file (taken with zeros in the sha256's own place).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zoo.errors import CorruptArtifactError, InvalidInputError

_KEY = "blockyard"
_HEADER = b'{"__metadata__":{"' + _KEY.encode() + b'":"'
_DIGEST = slice(8 + len(_HEADER), 8 + len(_HEADER) + 64)
_ZEROS = "0" * 64

_NATIVE = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.uint16, torch.uint32, torch.uint64),
    }
)
"""Types that a safetensors file names itself; others are kept as their bytes."""


def pack(state: object) -> bytes:
    """Encode nested dicts, lists, tensors, numbers, strings and None as one file.

    Equal states give equal bytes. Tensors of every dtype and shape come back bit for bit,
    on the CPU; tuples come back as lists; integers may have any length, dict keys may be
    strings or integers (as in an optimiser's state).

    Raises:
        InvalidInputError: The state holds anything else; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    try:
        skeleton = json.dumps(_encode(state, tensors, "state"), separators=(",", ":"))
    except RecursionError as error:
        raise InvalidInputError("the state is nested too deeply, or contains itself") from error
    data = save(tensors, {_KEY: _ZEROS + skeleton})
    return data[: _DIGEST.start] + hashlib.sha256(data).hexdigest().encode() + data[_DIGEST.stop :]


def unpack(data: bytes) -> Any:
    """Decode what ``pack`` made; tensors are on the CPU.

    Raises:
        CorruptArtifactError: The bytes are torn, changed, or no checkpoint at all.
    """
    if data[8 : _DIGEST.start] != _HEADER:
        raise CorruptArtifactError(f"{len(data)} bytes are not a checkpoint of a search")
    zeroed = data[: _DIGEST.start] + _ZEROS.encode() + data[_DIGEST.stop :]
    if hashlib.sha256(zeroed).hexdigest().encode() != data[_DIGEST]:
        raise CorruptArtifactError(
            f"the checkpoint ({len(data)} bytes) is torn or changed; use the one before it"
        )
    try:
        tensors = load(data)
        length = struct.unpack("<Q", data[:8])[0]
        skeleton = json.loads(data[8 : 8 + length])["__metadata__"][_KEY][64:]
        return _decode(json.loads(skeleton), tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptArtifactError(f"the checkpoint cannot be decoded: {error}") from error


def _encode(value: object, tensors: dict[str, Tensor], where: str) -> object:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**53 else {"$int": hex(value)}
    if isinstance(value, float):
        plain = float(value)
        return plain if math.isfinite(plain) else {"$float": struct.pack("<d", plain).hex()}
    if isinstance(value, Tensor):
        return _encode_tensor(value, tensors, where)
    if isinstance(value, list | tuple):
        return [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _encode_mapping(value, tensors, where)
    raise InvalidInputError(
        f"{where} is a {type(value).__name__}; a checkpoint holds dicts, lists, tensors, "
        "numbers, strings and None: convert it first"
    )


def _encode_mapping(value: Mapping[Any, Any], tensors: dict[str, Tensor], where: str) -> object:
    items: list[tuple[str | int, object]] = []
    for key, item in value.items():
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise InvalidInputError(f"{where} has the key {key!r}; keys are strings or integers")
        items.append((key, _encode(item, tensors, f"{where}[{key!r}]")))
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
        return dict(items)
    return {"$dict": [[_encode(key, tensors, where), item] for key, item in items]}


def _encode_tensor(value: Tensor, tensors: dict[str, Tensor], where: str) -> object:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        kind = "meta" if value.is_meta else "quantized" if value.is_quantized else value.layout
        raise InvalidInputError(f"{where} is a {kind} tensor; a checkpoint holds dense tensors")
    # clone also resolves lazy conjugation, and unties tensors that share storage.
    plain = value.detach().cpu().resolve_conj().resolve_neg().clone().contiguous()
    name = f"{len(tensors):06d}"
    if plain.dtype in _NATIVE:
        tensors[name] = plain
        return {"$tensor": name}
    tensors[name] = plain.reshape(-1).view(torch.uint8)
    return {
        "$tensor": name,
        "dtype": str(plain.dtype).removeprefix("torch."),
        "shape": list(plain.shape),
    }


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        stored = tensors[value["$tensor"]]
        if "dtype" not in value:
            return stored
        return stored.view(getattr(torch, value["dtype"])).reshape(value["shape"])
    if "$int" in value:
        return int(value["$int"], 16)
    if "$float" in value:
        return struct.unpack("<d", bytes.fromhex(value["$float"]))[0]
    if "$dict" in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["$dict"]}
    return {key: _decode(item, tensors) for key, item in value.items()}
