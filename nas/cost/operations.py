"""The operations that a network executes, one by one, and each of them on its own.

A network in eval mode is traced on the meta device down to PyTorch's own operators
(convolution, batch norm, addition, concatenation, …), so any module can be priced from a
table of operators, whatever family it comes from, and nothing that it executes is missed.
Fused attention is traced as the two products and the softmax that it stands for, which take
longer apart than in one kernel.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nas.cost.tracing import BlockRuns, run, sample_layout
from nas.protocols import SearchSpace
from zoo.canonical import Json, canonical_json
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import Architecture, TensorSpec

NAMED: dict[str, dict[str, Any]] = {
    kind: {str(value).removeprefix("torch."): value for value in values}
    for kind, values in {
        "dtype": (
            torch.float16,
            torch.bfloat16,
            torch.float32,
            torch.float64,
            torch.uint8,
            torch.int32,
            torch.int64,
            torch.bool,
        ),
        "memory_format": (
            torch.contiguous_format,
            torch.channels_last,
            torch.preserve_format,
        ),
        "layout": (torch.strided,),
    }.items()
}
"""Torch's own constants that may be an operator's argument, by kind and name."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operator with the shapes and settings that determine its cost.

    ``arguments`` and ``settings`` are JSON; a tensor is ``{"tensor": shape, "dtype": …}``.
    ``macs`` are multiply-accumulates, ``moved_bytes`` what is read and written.
    """

    name: str
    arguments: Sequence[Json]
    settings: Mapping[str, Json] = field(default_factory=dict)
    macs: int = 0
    moved_bytes: int = 0

    @cached_property
    def key(self) -> str:
        """The text under which tables keep the operation: equal keys cost the same."""
        content = {"op": self.name, "args": list(self.arguments), "kwargs": dict(self.settings)}
        return canonical_json(content).decode()

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name,
            "arguments": list(self.arguments),
            "settings": dict(self.settings),
            "macs": self.macs,
            "moved_bytes": self.moved_bytes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Operation:
        return cls(
            name=data["name"],
            arguments=data["arguments"],
            settings=data["settings"],
            macs=data["macs"],
            moved_bytes=data["moved_bytes"],
        )


def trace(module: nn.Module, inputs: TensorSpec, *, batch: int = 1) -> tuple[Operation, ...]:
    """Return what ``module`` executes for a batch, in order; views are free and left out.

    Raises:
        IncompatibleShapeError: ``inputs`` has a free dimension or ``module`` rejects it.
        InvalidInputError: An operator's argument is of a kind that cannot be written down, or
            its multiply-accumulates cannot be counted.
    """
    recorder = _Recorder()
    run(module, [sample_layout(inputs, batch=batch)], watch=recorder)
    return tuple(recorder.operations)


def distinct(operations: Sequence[Operation]) -> dict[str, Operation]:
    """Return each different operation once, by key."""
    return {operation.key: operation for operation in operations}


def operations_of(
    space: SearchSpace,
    inputs: TensorSpec,
    num_classes: int,
    *,
    batch: int = 1,
    samples: int = 64,
    seed: int = 0,
) -> dict[str, Operation]:
    """Return every distinct operation of a space, by key.

    Architectures are drawn at random, and every single change of the first one is looked
    at, so that every option of every choice is seen at least once.

    Args:
        space: The space.
        inputs: One sample of the task's input.
        num_classes: Classes of the task.
        batch: Samples computed at once.
        samples: Architectures drawn.
        seed: Determines which.
    """
    recorder = _Recorder()
    runs = BlockRuns(recorder)
    sample = sample_layout(inputs, batch=batch)
    for architecture in _looked_at(space, samples, random.Random(derive_seed(seed, "operations"))):
        # The recorder is told of what is run.
        runs.of(space.blocks(architecture, inputs=inputs, num_classes=num_classes), sample)
    return distinct(recorder.operations)


def _looked_at(space: SearchSpace, samples: int, rng: random.Random) -> Iterator[Architecture]:
    first = space.sample(rng)
    yield first
    yield from space.neighbours(first)
    for _ in range(samples - 1):
        yield space.sample(rng)


class Replay:
    """One operation with random tensors on a device, to be called again and again.

    Args:
        operation: What to execute.
        device: Where.
        dtype: Type of its floating-point tensors.
        channels_last: Memory layout of its 4-dimensional tensors, as the runner has it.

    Raises:
        InvalidInputError: PyTorch has no such operator.
    """

    def __init__(
        self, operation: Operation, *, device: torch.device, dtype: torch.dtype, channels_last: bool
    ) -> None:
        packet, _, overload = operation.name.partition(".")
        try:
            self._operator: Any = getattr(getattr(torch.ops.aten, packet), overload)
        except (AttributeError, RuntimeError) as error:
            raise InvalidInputError(f"PyTorch has no operator aten.{operation.name}") from error
        self._device, self._dtype, self._channels_last = device, dtype, channels_last
        self._arguments = [self._real(item) for item in operation.arguments]
        self._settings = {name: self._real(item) for name, item in operation.settings.items()}

    def __call__(self) -> None:
        """Execute the operation once."""
        with torch.inference_mode():
            self._operator(*self._arguments, **self._settings)

    def _real(self, item: Any) -> Any:
        if isinstance(item, list):
            return [self._real(part) for part in item]
        if not isinstance(item, dict):
            return item
        if "tensor" not in item:
            (kind, name), *_ = item.items()
            return self._device if kind == "device" else NAMED[kind][name]
        dtype = NAMED["dtype"][item["dtype"]]
        if not dtype.is_floating_point:
            return torch.zeros(item["tensor"], dtype=dtype, device=self._device)
        # Positive values: a variance may be among them.
        tensor = torch.rand(item["tensor"], device=self._device).add_(0.5).to(self._dtype)
        last = self._channels_last and tensor.ndim == 4
        return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


class _Recorder:
    """Writes down every operator that computes something."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def __call__(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        read: Sequence[Tensor],
        written: Sequence[Tensor],
        macs: int,
    ) -> None:
        if not any(tensor.numel() for tensor in (*read, *written)):
            return
        memory = {tensor.untyped_storage()._cdata for tensor in read}
        views = all(tensor.untyped_storage()._cdata in memory for tensor in written)
        if views and not func._schema.is_mutable:
            return
        self.operations.append(
            Operation(
                name=f"{func.overloadpacket.__name__}.{func._overloadname}",
                arguments=[_json(item) for item in args],
                settings={name: _json(item) for name, item in kwargs.items()},
                macs=macs,
                moved_bytes=sum(t.numel() * t.element_size() for t in (*read, *written)),
            )
        )


def _json(item: Any) -> Json:
    if isinstance(item, Tensor):
        return {"tensor": list(item.shape), "dtype": str(item.dtype).removeprefix("torch.")}
    if isinstance(item, list | tuple):
        return [_json(part) for part in item]
    if item is None or isinstance(item, bool | int | float | str):
        return item
    if isinstance(item, torch.device):
        return {"device": "own"}
    for kind, values in NAMED.items():
        for name, value in values.items():
            if item is value or item == value:
                return {kind: name}
    raise InvalidInputError(f"an operator's argument {item!r} cannot be written down")
