"""Six networks from the DARTS space that share blocks, as fine-tuned variants do.

Four variants have the stem and all cells but the last in common, with a last cell and a
head of their own; one parts after the stem; one is another architecture and shares
nothing. Weights are random and a function of the seed: they decide what is answered, not
how long it takes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import nn

from nas.spaces.darts import DartsSpace
from zoo.builders import ChainModule, build
from zoo.rng import derive_seed
from zoo.spec import BlockSpec, TensorSpec

SIDE = 16
CLASSES = 10
INPUT = TensorSpec(shape=(3, SIDE, SIDE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One chain: its architecture's number, and from which block on its weights are its own."""

    name: str
    architecture: int
    own_from: int


def variants(cells: int) -> tuple[Variant, ...]:
    """Return the six variants of networks with ``cells`` cells (block 0 is the stem)."""
    return (
        *(Variant(name=f"variant-{n}", architecture=0, own_from=cells) for n in range(4)),
        Variant(name="early-branch", architecture=0, own_from=1),
        Variant(name="stranger", architecture=1, own_from=0),
    )


def specs(architecture: int, *, cells: int, seed: int) -> tuple[BlockSpec, ...]:
    """Return stem, cells and head of a random architecture of the space."""
    space = DartsSpace(cells=cells)
    choice = space.sample(random.Random(derive_seed(seed, "architecture", architecture)))
    return space.blocks(choice, inputs=INPUT, num_classes=CLASSES)


def networks(*, cells: int, seed: int) -> dict[str, tuple[tuple[BlockSpec, ...], ChainModule]]:
    """Return specs and network of every variant; shared blocks are shared modules."""
    shared: dict[tuple[int, int, str], nn.Module] = {}
    found = {}
    for variant in variants(cells):
        blocks = specs(variant.architecture, cells=cells, seed=seed)
        parts = []
        for position, spec in enumerate(blocks):
            owner = variant.name if position >= variant.own_from else "shared"
            key = (variant.architecture, position, owner)
            if key not in shared:
                shared[key] = _block(spec, derive_seed(seed, *key))
            parts.append(shared[key])
        found[variant.name] = blocks, ChainModule(*parts).eval()
    return found


def _block(spec: BlockSpec, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(spec)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
                nn.init.normal_(part.running_mean, 0.0, 0.1)
    return module.eval().requires_grad_(False)
