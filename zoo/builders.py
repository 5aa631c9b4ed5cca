"""The registry of block builders: ``BlockSpec`` → ``nn.Module``.

A block family is one file: it registers a builder for each operation under the
entry-point group ``blockyard.blocks``. A module takes and returns tensors as its spec
says: one input or output is a tensor, several are a tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points

import torch
from torch import Tensor, nn

from zoo.errors import ConflictError, UnknownNameError
from zoo.spec import BlockSpec, check_interfaces

Builder = Callable[[BlockSpec], nn.Module]

GROUP = "blockyard.blocks"

_builders: dict[str, Builder] = {}


def register(op: str) -> Callable[[Builder], Builder]:
    """Register the decorated function as the builder of ``op``.

    Raises:
        ConflictError: Another builder has the name.
    """

    def decorate(builder: Builder) -> Builder:
        known = _builders.get(op)
        if known is not None and known.__qualname__ != builder.__qualname__:
            raise ConflictError(f"block operation {op!r} is already built by {known.__module__}")
        _builders[op] = builder
        return builder

    return decorate


@cache
def _load_families() -> None:
    for entry in entry_points(group=GROUP):
        entry.load()


def operations() -> tuple[str, ...]:
    """Return the names of all registered block operations."""
    _load_families()
    return tuple(sorted(_builders))


def build(spec: BlockSpec) -> nn.Module:
    """Build the module of ``spec`` with fresh weights from torch's global generator.

    Raises:
        UnknownNameError: No family registers ``spec.op``.
    """
    _load_families()
    if spec.op not in _builders:
        raise UnknownNameError("block operation", spec.op, _builders)
    return _builders[spec.op](spec)


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
