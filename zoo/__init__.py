"""The zoo: blocks, chains and jobs in SQL, and ``Zoo``, the way in for programs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.client import Zoo

__all__ = ["Zoo"]


def __getattr__(name: str) -> Any:
    if name == "Zoo":
        return importlib.import_module("zoo.client").Zoo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
