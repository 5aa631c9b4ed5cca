"""What one block costs: by its family's formula, else by counting what it executes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch

from nas.cost.analytic import count_macs
from zoo.builders import BlockCost, build, operation
from zoo.spec import BlockSpec


@lru_cache(maxsize=4096)
def block_cost(spec: BlockSpec) -> BlockCost:
    """Return multiply-accumulates and parameters of a block for one sample.

    A family that gives no formula has its block traced on the meta device.

    Raises:
        UnknownNameError: No family registers ``spec.op``.
        IncompatibleShapeError: A dimension of the inputs is free.
        InvalidInputError: It executes something that cannot be counted.
    """
    formula = operation(spec.op).cost
    return traced_cost(spec) if formula is None else formula(spec)


def chain_cost(specs: Iterable[BlockSpec]) -> BlockCost:
    """Return the sum of the blocks' costs.

    Raises:
        BlockyardError: As for ``block_cost``.
    """
    return sum(map(block_cost, specs), BlockCost())


def traced_cost(spec: BlockSpec) -> BlockCost:
    """Return what is counted while the block runs on the meta device, formula or not.

    Raises:
        BlockyardError: As for ``block_cost``.
    """
    with torch.device("meta"):
        module = build(spec)
    num_params = sum(parameter.numel() for parameter in module.parameters())
    return BlockCost(macs=count_macs(module, spec.inputs), num_params=num_params)
