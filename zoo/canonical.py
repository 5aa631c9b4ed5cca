"""Canonical JSON and the content ids made from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TypeAlias

from zoo.errors import InvalidInputError

Json: TypeAlias = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def canonical_json(value: object) -> bytes:
    """Encode ``value`` so that equal values give equal bytes on every machine.

    Keys are sorted, tuples are lists, an integral float equals the integer
    (as in RFC 8785), and there is no white space.

    Raises:
        InvalidInputError: A value is not JSON: NaN, infinity, a non-string key, an object.
    """
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def content_id(value: object) -> str:
    """Return the sha256 of the canonical JSON of ``value``, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest(data: bytes) -> str:
    """Return the sha256 of ``data``, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def plain(value: object) -> Json:
    """Return ``value`` as plain JSON types, integral floats as integers.

    Raises:
        InvalidInputError: As for ``canonical_json``.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInputError(f"{value} has no JSON form; use a finite number or null")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidInputError(f"key {key!r} is not a string; JSON keys are strings")
        return {key: plain(item) for key, item in value.items()}
    raise InvalidInputError(f"{type(value).__name__} has no JSON form: {value!r}")
