"""The values that everything else passes around: frozen, torch-free, content-addressed.

A chain is linear: block ``i`` returns the tuple of tensors that block ``i + 1`` takes.
A cell that needs two earlier states therefore takes ``(s0, s1)`` and returns ``(s1, s2)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

from zoo.canonical import Json, content_id, plain
from zoo.errors import IncompatibleShapeError, InvalidInputError

DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int32", "int64", "bool")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and type of one tensor, without its leading batch dimension.

    ``None`` stands for a dimension that may vary from request to request.
    """

    shape: tuple[int | None, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidInputError(f"dtype {self.dtype!r} is not one of: {', '.join(DTYPES)}")
        if any(size is not None and size < 1 for size in self.shape):
            raise IncompatibleShapeError(f"shape {self.shape} has a dimension below 1")

    def accepts(self, other: TensorSpec) -> bool:
        """Say whether a tensor of ``other`` may stand where this one is expected."""
        return (
            self.dtype == other.dtype
            and len(self.shape) == len(other.shape)
            and all(a is None or a == b for a, b in zip(self.shape, other.shape, strict=True))
        )

    def to_json(self) -> dict[str, Json]:
        return {"shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(shape=tuple(data["shape"]), dtype=data["dtype"])


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """What a block computes before it has weights: an operation, its settings, its interface.

    ``op`` names a builder registered in ``zoo.builders``; ``params`` are its JSON settings.
    """

    op: str
    params: Mapping[str, Json] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __hash__(self) -> int:
        return hash(self.id)

    @cached_property
    def id(self) -> str:
        return content_id(self.to_json())

    def to_json(self) -> dict[str, Json]:
        return {
            "op": self.op,
            "params": plain(self.params),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            op=data["op"],
            params=data["params"],
            inputs=tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            outputs=tuple(TensorSpec.from_json(item) for item in data["outputs"]),
        )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every choice of one search space made.

    ``space`` is the space's own description (name and parameters), so that an
    architecture can be decoded wherever the space's plug-in is installed.
    ``choices`` is what the space's ``decode`` takes: one integer a variable.
    """

    space: Mapping[str, Json]
    choices: tuple[int, ...]

    def __hash__(self) -> int:
        return hash(self.id)

    @cached_property
    def id(self) -> str:
        return content_id(self.to_json())

    def to_json(self) -> dict[str, Json]:
        return {"space": plain(self.space), "choices": list(self.choices)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(space=data["space"], choices=tuple(data["choices"]))


@dataclass(frozen=True, kw_only=True)
class Block:
    """A spec with weights; equal specs with equal weights are one block.

    ``weights`` is the sha256 of a safetensors file. ``signature`` is an index for
    finding blocks that compute the same; it is no part of the identity.
    """

    spec: BlockSpec
    weights: str
    num_params: int
    size_bytes: int
    signature: str | None = None

    @cached_property
    def id(self) -> str:
        return content_id({"spec": self.spec.id, "weights": self.weights})

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "spec": self.spec.to_json(),
            "weights": self.weights,
            "num_params": self.num_params,
            "size_bytes": self.size_bytes,
            "signature": self.signature,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            spec=BlockSpec.from_json(data["spec"]),
            weights=data["weights"],
            num_params=data["num_params"],
            size_bytes=data["size_bytes"],
            signature=data["signature"],
        )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Ordered blocks whose interfaces were checked when the chain was made.

    ``card`` says what the chain is good for (task, data digest, metrics, recipe, seed,
    versions, licence, class names, input normalisation); it is no part of the identity.
    """

    blocks: tuple[Block, ...]
    card: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_interfaces([block.spec for block in self.blocks])

    def __hash__(self) -> int:
        return hash(self.id)

    @cached_property
    def id(self) -> str:
        return content_id({"blocks": [block.id for block in self.blocks]})

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.blocks[0].spec.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.blocks[-1].spec.outputs

    @property
    def num_params(self) -> int:
        return sum(block.num_params for block in self.blocks)

    @property
    def size_bytes(self) -> int:
        """Bytes of the distinct blocks' weights."""
        return sum({block.id: block.size_bytes for block in self.blocks}.values())

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "blocks": [block.to_json() for block in self.blocks],
            "card": plain(self.card),
            "num_params": self.num_params,
            "size_bytes": self.size_bytes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            blocks=tuple(Block.from_json(item) for item in data["blocks"]), card=data["card"]
        )


def check_interfaces(specs: Sequence[BlockSpec]) -> None:
    """Check that every block takes what the block before it returns.

    Raises:
        IncompatibleShapeError: There is no block, or two neighbours do not fit.
    """
    if not specs:
        raise IncompatibleShapeError("a chain needs at least one block")
    for position, (left, right) in enumerate(zip(specs, specs[1:], strict=False)):
        fits = len(left.outputs) == len(right.inputs) and all(
            wanted.accepts(given) for wanted, given in zip(right.inputs, left.outputs, strict=True)
        )
        if not fits:
            raise IncompatibleShapeError(
                f"block {position} ({left.op}) returns {_shapes(left.outputs)}, but "
                f"block {position + 1} ({right.op}) takes {_shapes(right.inputs)}"
            )


def _shapes(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.dtype}{list(tensor.shape)}" for tensor in tensors) or "nothing"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measured latency of a block or chain on one device, runtime, precision and batch size.

    ``subject`` is a block or chain id, ``device`` a device fingerprint. Times are
    milliseconds per call (not per sample); ``samples`` are the single measurements.
    """

    subject: str
    device: str
    runtime: str
    precision: str
    batch: int
    median_ms: float
    p95_ms: float
    samples: tuple[float, ...] = ()
    peak_bytes: int | None = None

    def to_json(self) -> dict[str, Json]:
        return dataclasses.asdict(self) | {"samples": list(self.samples)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        names = [item.name for item in dataclasses.fields(cls)]
        return cls(**({name: data[name] for name in names} | {"samples": tuple(data["samples"])}))


METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "latency_ms": "minimize",
    "flops": "minimize",
    "num_params": "minimize",
    "peak_bytes": "minimize",
    "size_bytes": "minimize",
}
"""Every metric that an objective or a limit may name, and which way is better."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one architecture scored under a stated budget.

    ``metrics`` uses the names of ``METRICS``, and ``latency_p95_ms`` beside them;
    ``cost_s`` is the device time it took to obtain, ``repeats`` the number of runs the
    metrics are the mean of, and ``job`` the job that paid for it. ``device`` is where
    latency was measured.
    """

    metrics: Mapping[str, float]
    cost_s: float
    repeats: int = 1
    job: str | None = None
    device: str | None = None

    def to_json(self) -> dict[str, Json]:
        return {
            "metrics": plain(self.metrics),
            "cost_s": self.cost_s,
            "repeats": self.repeats,
            "job": self.job,
            "device": self.device,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{item.name: data[item.name] for item in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where blocks run. ``id`` is the fingerprint of what determines its speed.

    Equal devices share measurements. ``place`` tells them apart: it names the one piece of
    hardware that a process has before it, so that two processes on it take turns. It is
    no part of the identity and is not written down; unknown, it is the id.
    """

    name: str
    kind: str
    info: Mapping[str, Json]
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", self.place or self.id)

    @cached_property
    def id(self) -> str:
        return content_id({"kind": self.kind, "info": plain(self.info)})[:16]

    def to_json(self) -> dict[str, Json]:
        return {"id": self.id, "name": self.name, "kind": self.kind, "info": plain(self.info)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(name=data["name"], kind=data["kind"], info=data["info"])
