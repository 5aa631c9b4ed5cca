"""The registry of block operations: how one is described, built, and what it costs.

A block family is one file, registered under the entry-point group ``blockyard.blocks``. For
each operation it has a function that describes a block (``BlockSpec``), a builder that makes
the module, a formula for its cost, and a few examples, on which the contract suite of the
tests runs by itself. Only the builder must be there. A module takes and returns tensors as
its spec says: one input or output is a tensor, several are a tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from inspect import signature

import torch
from torch import Tensor, nn

from zoo.errors import BlockyardError, ConflictError, InvalidInputError, UnknownNameError
from zoo.spec import BlockSpec, TensorSpec, check_interfaces

Builder = Callable[[BlockSpec], nn.Module]

GROUP = "blockyard.blocks"


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Cost of one block for one sample.

    ``macs`` are the multiply-accumulates of convolutions and matrix products (attention
    included), ``num_params`` the parameters; normalisation, activation and pooling count
    no ``macs``. Costs of blocks add.
    """

    macs: int = 0
    num_params: int = 0

    def __add__(self, other: BlockCost) -> BlockCost:
        return BlockCost(macs=self.macs + other.macs, num_params=self.num_params + other.num_params)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """All that a family says of one of its operations.

    ``describe`` takes the input's ``TensorSpec`` and the operation's settings. An image
    operation whose settings include ``channels`` and ``stride``, with defaults for all
    others, can stand wherever a space places blocks by name. ``cost`` is exact; without
    it a block is counted by tracing it.
    """

    build: Builder
    describe: Callable[..., BlockSpec] | None = None
    cost: Callable[[BlockSpec], BlockCost] | None = None
    examples: tuple[BlockSpec, ...] = ()


_operations: dict[str, Operation] = {}


def register(
    op: str,
    *,
    describe: Callable[..., BlockSpec] | None = None,
    cost: Callable[[BlockSpec], BlockCost] | None = None,
    examples: Sequence[BlockSpec] = (),
) -> Callable[[Builder], Builder]:
    """Register the decorated function as the builder of ``op``, with what ``Operation`` says.

    Raises:
        ConflictError: Another builder has the name.
    """

    def decorate(builder: Builder) -> Builder:
        known = _operations.get(op)
        if known is not None and _place(known.build) != _place(builder):
            raise ConflictError(
                f"block operation {op!r} is already built by {known.build.__module__}"
            )
        _operations[op] = Operation(
            build=builder, describe=describe, cost=cost, examples=tuple(examples)
        )
        return builder

    return decorate


def _place(builder: Builder) -> tuple[str, str]:
    """Say where a builder is defined; a module that is loaded again defines it again."""
    return builder.__module__, builder.__qualname__


@cache
def _load_families() -> tuple[str, ...]:
    """Load all families; return what is wrong with those that cannot be loaded.

    Raises:
        ConflictError: Two of them build an operation of one name.
    """
    broken = []
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except BlockyardError:
            raise
        except Exception as error:
            broken.append(f"{entry.name} ({entry.value}): {type(error).__name__}: {error}")
    return tuple(broken)


def operations() -> tuple[str, ...]:
    """Return the names of all registered block operations."""
    _load_families()
    return tuple(sorted(_operations))


def operation(op: str) -> Operation:
    """Return what is registered as ``op``.

    A family that cannot be loaded takes nothing down but its own operations.

    Raises:
        UnknownNameError: No family registers it.
        InvalidInputError: Nor does one that can be loaded, but some cannot be.
    """
    broken = _load_families()
    if op in _operations:
        return _operations[op]
    unknown = UnknownNameError("block operation", op, _operations)
    if broken:
        text = "; ".join(broken)
        raise InvalidInputError(f"{unknown}; block families that cannot be loaded: {text}")
    raise unknown


def placed(op: str, inputs: TensorSpec, /, **settings: object) -> BlockSpec:
    """Describe a block of ``op`` on ``inputs``.

    Args:
        op: A registered operation.
        inputs: What the block takes.
        settings: As the operation's ``describe`` takes them, e.g. ``channels``, ``stride``.

    Raises:
        UnknownNameError: ``op`` or a setting is unknown.
        InvalidInputError: The operation cannot be placed by name, lacks a setting or refuses one.
    """
    describe = operation(op).describe
    if describe is None:
        raise InvalidInputError(
            f"block operation {op!r} registers no describe function; it cannot be placed by name"
        )
    legal = dict(list(signature(describe).parameters.items())[1:])
    for name in settings:
        if name not in legal:
            raise UnknownNameError(f"setting of block operation {op!r}", name, legal)
    for name, parameter in legal.items():
        if parameter.default is parameter.empty and name not in settings:
            raise InvalidInputError(f"block operation {op!r} needs the setting {name!r}")
    return describe(inputs, **settings)


def build(spec: BlockSpec) -> nn.Module:
    """Build the module of ``spec`` with fresh weights from torch's global generator.

    Raises:
        UnknownNameError: No family registers ``spec.op``.
    """
    return operation(spec.op).build(spec)


class ChainModule(nn.Sequential):
    """Blocks run one after another, tuples unpacked between them.

    Submodule ``i`` is block ``i``; a single output is returned as a tensor.
    """

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        for block in self:
            outputs = block(*inputs)
            inputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return inputs[0] if len(inputs) == 1 else inputs


def build_chain(specs: Sequence[BlockSpec], *, seed: int | None = None) -> ChainModule:
    """Build the blocks of a chain; with ``seed`` the fresh weights are a function of it.

    Raises:
        IncompatibleShapeError: Two neighbours do not fit.
    """
    check_interfaces(specs)
    if seed is None:
        return ChainModule(*(build(spec) for spec in specs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ChainModule(*(build(spec) for spec in specs))
