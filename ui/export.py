"""Chains and blocks as files, and the few lines of Python that load them back."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import CorruptArtifactError, StorageFullError

if TYPE_CHECKING:
    from zoo.client import Zoo
    from zoo.spec import Chain

_PREFIX = struct.Struct("<Q")


def chain_weights(zoo: Zoo, chain: Chain) -> bytes:
    """Return the weights of every block of a chain as one safetensors file.

    Tensors are named ``blocks.<position>.<name in the block>``; the file's metadata
    holds the chain itself (specs, interfaces, card) as JSON under ``chain``.
    """
    parts = [(f"blocks.{position}.", block) for position, block in enumerate(chain.blocks)]
    return merge(
        ((prefix, zoo.files.get(block.weights)) for prefix, block in parts),
        metadata={"chain": json.dumps(chain.to_json())},
    )


def merge(parts: Iterable[tuple[str, bytes]], *, metadata: dict[str, str]) -> bytes:
    """Join safetensors files into one without decoding a tensor, whatever its type.

    Raises:
        CorruptArtifactError: A part is no safetensors file.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    bodies: list[bytes] = []
    offset = 0
    for prefix, data in parts:
        entries, body = _split(data)
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            moved = [start + offset, end + offset]
            header[prefix + name] = {**entry, "data_offsets": moved}
        bodies.append(body)
        offset += len(body)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join([_PREFIX.pack(len(encoded)), encoded, *bodies])


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        (length,) = _PREFIX.unpack_from(data)
        entries = json.loads(data[_PREFIX.size : _PREFIX.size + length])
        entries.pop("__metadata__", None)
    except (struct.error, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"not a safetensors file: {error}") from error
    return entries, data[_PREFIX.size + length :]


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageFullError: It cannot be written; nothing half-written remains.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageFullError(
            f"cannot write {path}: {error.strerror}; free space or name another path"
        ) from error


def snippet(url: str, reference: str) -> str:
    """Return Python that loads a chain or block from where it is now."""
    key = ', api_key="…"' if url.startswith("http") else ""
    return (
        "from zoo import Zoo\n\n"
        f'with Zoo("{hide_password(url)}"{key}) as zoo:\n'
        f'    model = zoo.load("{reference}")  # nn.Module in eval mode\n'
    )


def hide_password(url: str) -> str:
    """Return a URL without its password, fit to be shown."""
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}:…{at}{host}" if ":" in user else url
