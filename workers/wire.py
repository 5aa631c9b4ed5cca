"""Messages between a worker and its trainer: a JSON head and raw bytes, never pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class Message:
    """One frame: what is said, and the bytes (weights, states, files) that go with it."""

    head: Mapping[str, Any]
    blobs: tuple[bytes, ...] = field(default=())


def send(connection: Connection[Any, Any], message: Message) -> None:
    """Write one frame; a non-finite number in the head crosses as Python's JSON writes it.

    Raises:
        OSError: The other end is gone.
    """
    head = json.dumps(
        {"head": message.head, "sizes": [len(blob) for blob in message.blobs]}
    ).encode()
    connection.send_bytes(b"".join((_LENGTH.pack(len(head)), head, *message.blobs)))


def receive(connection: Connection[Any, Any]) -> Message:
    """Read one frame, waiting for it.

    Raises:
        EOFError: The other end closed the connection.
        OSError: The other end died in the middle of a frame.
    """
    data = memoryview(connection.recv_bytes())
    (length,) = _LENGTH.unpack(data[: _LENGTH.size])
    position = _LENGTH.size + length
    envelope = json.loads(bytes(data[_LENGTH.size : position]))
    blobs = []
    for size in envelope["sizes"]:
        blobs.append(bytes(data[position : position + size]))
        position += size
    return Message(envelope["head"], tuple(blobs))
