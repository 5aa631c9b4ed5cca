"""Duties without torch, so that a trainer that must die starts in an instant."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from workers.wire import Message
from zoo.errors import ConflictError, UnknownNameError


class Duties:
    def __init__(self, *, data_root: str | None, progress: Any) -> None:
        self._root = data_root
        self._report = progress

    def perform(self, call: str, args: Mapping[str, Any], blobs: tuple[bytes, ...]) -> Message:
        if call == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if call == "exit":
            sys.exit(3)
        if call == "hang":
            time.sleep(3600)
        if call == "memory":
            kept = []
            while True:
                kept.append(bytearray(b"1") * 20_000_000)
        if call == "raise":
            raise ValueError("this candidate cannot be trained")
        if call == "full":
            raise MemoryError("no room")
        if call == "conflict":
            raise ConflictError("no method is open")
        if call == "unknown":
            raise UnknownNameError("duty", "juggle", ["sit", "stay"])
        for done in range(args.get("reports", 0)):
            self._report(done=done, total=args["reports"], message=f"{done}")
            time.sleep(0.1)
        return Message({"kind": "echo", "args": dict(args), "root": self._root}, blobs)
