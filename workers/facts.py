"""What the worker needs to know of a data set that only the trainer holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.context import JobContext


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the worker needs to know of a data set that only the trainer holds."""

    name: str
    digest: str
    num_classes: int
    class_names: tuple[str, ...]
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inputs: Mapping[str, Any]


def load_facts(context: JobContext, data: str) -> Facts:
    """Have the trainer load a data set and describe it.

    Raises:
        MissingDataError: It is not there.
        UnknownNameError: No data set has this name.
    """
    with context.session.device(context.training_device(), "shared"):
        head = context.call("facts", {"data": data}).head
    return Facts(
        name=head["name"],
        digest=head["digest"],
        num_classes=head["num_classes"],
        class_names=tuple(head["class_names"]),
        licence=head["licence"],
        mean=tuple(head["mean"]),
        std=tuple(head["std"]),
        inputs=head["inputs"],
    )
