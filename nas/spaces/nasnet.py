"""The NASNet cell space: one normal and one reduction cell, stacked.

Every block of a cell takes two states, equal ones allowed, each through one operation,
and joins the results. ``Architecture.choices`` holds for the normal, then for the
reduction cell, five integers a block, in the order in which the paper's controller draws
them: two states, their operations (indices into ``ops``), the way of joining (into
``combines``). With ``outputs="free"`` there follows for every state but the last whether
it is returned even though a block reads it. Every tuple within ``cardinalities()`` is
legal. A block whose sides are exchanged computes the same: ``canonical`` orders them.

Source:
    Zoph et al. (2018), "Learning Transferable Architectures for Scalable Image
    Recognition", arXiv:1707.07012. There a cell returns the states that nothing reads;
    NASNet-A as released returns two more, hence ``free``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace
from nas.spaces.nasnet_graph import nasnet_graph
from nas.spaces.nasnet_settings import NasnetSettings, Site
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.nasnet import (
    Join,
    Side,
    Wiring,
    cell_spec,
    head_spec,
    stem_spec,
    unused_states,
)
from zoo.networks import network
from zoo.spec import Architecture, BlockSpec, TensorSpec

PER_BLOCK = 5
"""Choices that describe a block."""

_SIGNS = {"add": "+", "concat": "&"}

_BLOCK = re.compile(r"\s*(\w+)\((\d+)\)\s*([+&])\s*(\w+)\((\d+)\)\s*")


@dataclass(frozen=True)
class NasnetGenotype:
    """What is inside the normal and the reduction cell."""

    normal: Wiring
    reduce: Wiring

    def of(self, site: Site) -> Wiring:
        """Return the wiring of the cell at a place."""
        return self.reduce if site.reduction else self.normal

    def __str__(self) -> str:
        """Write ``normal: op(0) + op(1) | op(2) & op(0) -> 1 3; reduce: …``.

        Blocks stand between bars, ``+`` adds, ``&`` concatenates; the states that are
        returned follow the arrow.
        """
        return f"normal: {_write(self.normal)}; reduce: {_write(self.reduce)}"

    @classmethod
    def parse(cls, text: str) -> NasnetGenotype:
        """Read what ``str`` writes; white space is free.

        Raises:
            InvalidInputError: ``text`` is not of that form, or names no cell.
        """
        match = re.fullmatch(r"\s*normal:([^;]*);\s*reduce:([^;]*)", text)
        if match is None:
            raise InvalidInputError(
                f"genotype {text!r} is not of the form "
                "'normal: op(0) + op(1) | op(2) & op(0) -> 1 3; reduce: …'"
            )
        return cls(normal=_read(match[1]), reduce=_read(match[2]))


@final
class NasnetSpace(CategoricalSpace):
    """The cell space of NASNet, of any depth, width, number of blocks and set of operations.

    Reductions are extra cells before normal cells ``cells * i // (reductions + 1)``; each
    doubles the width. What is None is the preset's.

    Args:
        preset: ``small``, ``cifar``, ``mobile`` or ``large``.
        cells: Number of normal cells.
        channels: Width of a state in the first normal cell.
        num_blocks: Blocks of a cell.
        ops: Operations on offer.
        combines: Ways of joining on offer: ``add``, ``concat``.
        reductions: Number of reduction cells, those of the stem not counted.
        stem: ``cifar``, or ``imagenet``: a stride and two reduction cells.
        stem_channels: Width of the stem.
        skip: Whether the normal cell after a reduction reads one cell further back.
        outputs: ``unused``: a cell returns what nothing reads; ``free``: also others.
        dropout: Before the classifier.
        eps: Of every batch norm.

    Raises:
        UnknownNameError: A name is not on offer.
        InvalidInputError: A number is out of range, or a name repeated.
    """

    def __init__(
        self,
        *,
        preset: str = "small",
        cells: int | None = None,
        channels: int | None = None,
        num_blocks: int | None = None,
        ops: Sequence[str] | None = None,
        combines: Sequence[str] | None = None,
        reductions: int | None = None,
        stem: str | None = None,
        stem_channels: int | None = None,
        skip: bool | None = None,
        outputs: str | None = None,
        dropout: float | None = None,
        eps: float | None = None,
    ) -> None:
        self.settings = NasnetSettings.of(
            preset,
            {
                "cells": cells,
                "channels": channels,
                "num_blocks": num_blocks,
                "ops": ops,
                "combines": combines,
                "reductions": reductions,
                "stem": stem,
                "stem_channels": stem_channels,
                "skip": skip,
                "outputs": outputs,
                "dropout": dropout,
                "eps": eps,
            },
        )

    def describe(self) -> dict[str, Json]:
        return {"name": "nasnet", "params": self.settings.to_json()}

    def cardinalities(self) -> tuple[int, ...]:
        settings = self.settings
        num_ops, num_joins = len(settings.ops), len(settings.combines)
        cell: list[int] = []
        for block in range(settings.num_blocks):
            cell += [block + 2, block + 2, num_ops, num_ops, num_joins]
        if settings.outputs == "free":
            cell += [2] * (settings.num_blocks + 1)
        return tuple(cell * 2)

    def operation_choices(self) -> Iterator[int]:
        """Yield the places in ``choices`` that choose operations, two a block of either cell."""
        half = len(self.cardinalities()) // 2
        for cell in (0, half):
            for block in range(self.settings.num_blocks):
                at = cell + PER_BLOCK * block
                yield from (at + 2, at + 3)

    def encode(self, genotype: NasnetGenotype) -> Architecture:
        """Return the architecture of a genotype.

        Raises:
            InvalidInputError: It has another number of blocks, or returns what this space
                does not.
            UnknownNameError: It has an operation or a way of joining that this space lacks.
        """
        cells = (genotype.normal, genotype.reduce)
        return self.architecture([choice for cell in cells for choice in self._encode(cell)])

    def decode(self, architecture: Architecture) -> NasnetGenotype:
        self.check(architecture)
        half = len(architecture.choices) // 2
        return NasnetGenotype(
            normal=self._decode(architecture.choices[:half]),
            reduce=self._decode(architecture.choices[half:]),
        )

    def canonical(self, architecture: Architecture) -> Architecture:
        """Return the architecture with the sides of every block in order of state, operation.

        Those with equal results are one network, up to the order of a concatenation's parts.
        """
        genotype = self.decode(architecture)
        return self.encode(
            NasnetGenotype(self._sorted(genotype.normal), self._sorted(genotype.reduce))
        )

    def summary(self, architecture: Architecture) -> str:
        return str(self.decode(architecture))

    def parse(self, text: str) -> Architecture:
        return self.encode(NasnetGenotype.parse(text))

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        genotype, settings = self.decode(architecture), self.settings
        specs = [
            stem_spec(
                inputs,
                channels=settings.stem_channels,
                stride=2 if settings.stem == "imagenet" else 1,
                eps=settings.eps,
            )
        ]
        total = len(settings.sites)
        for position, site in enumerate(settings.sites):
            specs.append(
                cell_spec(
                    specs[-1].outputs,
                    channels=site.channels,
                    wiring=genotype.of(site),
                    reduction=site.reduction,
                    skip=site.skip,
                    last=position == total - 1,
                    position=position,
                    total=total,
                    eps=settings.eps,
                    feeds_auxiliary=site.feeds_auxiliary,
                )
            )
        specs.append(
            head_spec(specs[-1].outputs[0], num_classes=num_classes, dropout=settings.dropout)
        )
        return tuple(specs)

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``, two channels wide."""
        specs = self.blocks(architecture, inputs=inputs, num_classes=num_classes)
        genotype = self.decode(architecture)
        wirings = [genotype.of(site) for site in self.settings.sites]
        return nasnet_graph(specs, wirings, eps=self.settings.eps)

    def _encode(self, cell: Wiring) -> Iterator[int]:
        settings = self.settings
        if len(cell.blocks) != settings.num_blocks:
            raise InvalidInputError(
                f"a cell has {len(cell.blocks)} blocks; this space has {settings.num_blocks}"
            )
        for (left_op, left), (right_op, right), combine in cell.blocks:
            yield from (left, right)
            for name, offered in (
                (left_op, settings.ops),
                (right_op, settings.ops),
                (combine, settings.combines),
            ):
                if name not in offered:
                    raise UnknownNameError("choice of this space", name, offered)
                yield offered.index(name)
        extra = set(cell.outputs) - set(cell.unused)
        if settings.outputs == "free":
            yield from (int(state in extra) for state in range(settings.num_blocks + 1))
        elif extra:
            raise InvalidInputError(
                f"a cell returns states {sorted(extra)}, which blocks read; "
                "only a space with outputs='free' has such cells"
            )

    def _decode(self, choices: Sequence[int]) -> Wiring:
        settings = self.settings
        blocks: list[Join] = []
        for block in range(settings.num_blocks):
            at = PER_BLOCK * block
            left, right, left_op, right_op, combine = choices[at : at + PER_BLOCK]
            sides = (settings.ops[left_op], left), (settings.ops[right_op], right)
            blocks.append((*sides, settings.combines[combine]))
        returned = set(unused_states(blocks))
        bits = choices[PER_BLOCK * settings.num_blocks :]
        returned |= {state for state, bit in enumerate(bits) if bit}
        return Wiring(tuple(blocks), tuple(sorted(returned)))

    def _sorted(self, cell: Wiring) -> Wiring:
        def rank(side: Side) -> tuple[int, int]:
            return side[1], self.settings.ops.index(side[0])

        blocks = []
        for left, right, combine in cell.blocks:
            first, second = sorted((left, right), key=rank)
            blocks.append((first, second, combine))
        return Wiring(tuple(blocks), cell.outputs)


def _write(cell: Wiring) -> str:
    blocks = (
        f"{left[0]}({left[1]}) {_SIGNS[combine]} {right[0]}({right[1]})"
        for left, right, combine in cell.blocks
    )
    return f"{' | '.join(blocks)} -> {' '.join(map(str, cell.outputs))}"


def _read(text: str) -> Wiring:
    blocks, _, outputs = text.partition("->")
    joins: list[Join] = []
    for block in blocks.split("|"):
        match = _BLOCK.fullmatch(block)
        if match is None:
            raise InvalidInputError(
                f"{block.strip()!r} is not of the form 'op(0) + op(1)' or 'op(0) & op(1)'"
            )
        combine = next(name for name, sign in _SIGNS.items() if sign == match[3])
        joins.append(((match[1], int(match[2])), (match[4], int(match[5])), combine))
    states = outputs.split()
    if not states or not all(state.isdecimal() for state in states):
        raise InvalidInputError(f"{outputs.strip()!r} lists no states; write '-> 1 2', say")
    return Wiring(tuple(joins), tuple(map(int, states)))


NASNET_A = NasnetGenotype.parse(network("nasnet-a-cifar").genotype)
"""The published best cells; of the space with ``outputs="free"``, since states 1 and 3 are
read and yet returned."""
