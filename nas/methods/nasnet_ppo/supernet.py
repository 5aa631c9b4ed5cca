"""All networks of a NASNet space at once, sharing weights; one of them is run at a time.

Every side of every block has, for each state that it may read, each operation with weights
of its own, as in ENAS. What a cell returns varies in number, so whatever reads it has one
matrix for each state that may be there, and adds what those that are there give: the 1x1
convolution (or classifier) of their concatenation. A child thus computes exactly what the
network derived from it does in training, and weights that it does not use get no gradient.

Normalisation is always by the statistics of the batch: running ones would mix children.

Source:
    Pham et al. (2018), "Efficient Neural Architecture Search via Parameter Sharing",
    arXiv:1802.03268.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.spaces.nasnet import NasnetGenotype, NasnetSpace
from nas.spaces.nasnet_settings import NasnetSettings, Site
from zoo.families.nasnet import Stem, Wiring, fixed_image, stem_spec
from zoo.families.nasnet_operations import conv_norm, even_and_odd, operation, output_fit
from zoo.spec import TensorSpec

Parts: TypeAlias = Mapping[int, Tensor]
"""What a cell returns, by state, not yet concatenated; a stem returns state 0."""


@dataclass(frozen=True)
class Source:
    """What may be read: up to ``slots`` states of ``width`` channels and ``size`` pixels."""

    slots: int
    width: int
    size: tuple[int, int]

    def halved(self) -> tuple[int, int]:
        return (self.size[0] + 1) // 2, (self.size[1] + 1) // 2


class PartwiseConv(nn.Module):
    """A 1x1 convolution of a concatenation, of which some parts may be absent."""

    def __init__(self, source: Source, out_chans: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(source.width, out_chans, 1, bias=False) for _ in range(source.slots)
        )

    def forward(self, parts: Parts) -> Tensor:
        return reduce(add, [self.convs[state](part) for state, part in parts.items()])


class SharedInput(nn.Module):
    """ReLU, 1x1 convolution or factorised reduction, and batch norm of a cell's input."""

    def __init__(self, source: Source, out_chans: int, *, halve: bool, eps: float) -> None:
        super().__init__()
        widths = (out_chans // 2, out_chans - out_chans // 2) if halve else (out_chans,)
        self.convs = nn.ModuleList(PartwiseConv(source, width) for width in widths)
        self.norm = nn.BatchNorm2d(out_chans, eps=eps)

    def forward(self, parts: Parts) -> Tensor:
        rectified = {state: F.relu(part) for state, part in parts.items()}
        if len(self.convs) == 1:
            return self.norm(self.convs[0](rectified))
        pixels = {state: even_and_odd(part) for state, part in rectified.items()}
        halves = [
            conv({state: pair[at] for state, pair in pixels.items()})
            for at, conv in enumerate(self.convs)
        ]
        return self.norm(torch.cat(halves, dim=1))


class SharedCell(nn.Module):
    """Every cell of one place.

    Args:
        settings: Of the space.
        site: The place.
        previous: What the cell before the last returns; None if there is none.
        current: What the last cell, or the stem, returns.
    """

    def __init__(
        self, settings: NasnetSettings, site: Site, previous: Source | None, current: Source
    ) -> None:
        super().__init__()
        channels, eps = site.channels, settings.eps
        size = current.halved() if site.reduction else current.size
        self.source = Source(settings.num_blocks + 2, channels, size)
        self.current = SharedInput(current, channels, halve=False, eps=eps)
        self.previous: SharedInput | None = None
        self._raw_width = 0
        widths = [channels] * (settings.num_blocks + 2)
        if previous is None:
            widths[1] = current.width
        else:
            halve = previous.size != current.size
            self._raw_width = 0 if halve else channels
            self.previous = SharedInput(previous, channels, halve=halve, eps=eps)
        self.paths = nn.ModuleList(
            nn.ModuleList(
                operation(
                    name,
                    widths[state],
                    channels,
                    stride=2 if site.reduction and state < 2 else 1,
                    eps=eps,
                )
                for _side in range(2)
                for state in range(block + 2)
                for name in settings.ops
            )
            for block in range(settings.num_blocks)
        )
        self.joins = nn.ModuleList(
            nn.Sequential(*conv_norm(2 * channels, channels, 1, eps=eps))
            for _ in range(settings.num_blocks if "concat" in settings.combines else 0)
        )
        self.outputs = nn.ModuleList(
            output_fit(widths[state], channels, halve=size != current.size, eps=eps)
            for state in range(2)
        )
        self._ops = settings.ops

    def path(self, block: int, side: int, name: str, state: int) -> nn.Module:
        """Return the operation of one side of a block on one state."""
        return self.paths[block][
            (side * (block + 2) + state) * len(self._ops) + self._ops.index(name)
        ]

    def forward(self, previous: Parts | None, current: Parts, wiring: Wiring) -> dict[int, Tensor]:
        states = [self.current(current), self._previous(previous, current)]
        for block, (*sides, combine) in enumerate(wiring.blocks):
            left, right = (
                self.path(block, side, name, state)(states[state])
                for side, (name, state) in enumerate(sides)
            )
            if combine == "add":
                states.append(left + right)
            else:
                states.append(self.joins[block](torch.cat([left, right], dim=1)))
        return {
            state: self.outputs[state](states[state]) if state < 2 else states[state]
            for state in wiring.outputs
        }

    def _previous(self, previous: Parts | None, current: Parts) -> Tensor:
        if previous is None or self.previous is None:
            return current[0]
        if sum(part.shape[1] for part in previous.values()) == self._raw_width:
            return torch.cat(list(previous.values()), dim=1)
        return self.previous(previous)


class SharedHead(nn.Module):
    """ReLU, global average pooling and a linear classifier of a concatenation's parts."""

    def __init__(self, source: Source, num_classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(
            nn.Linear(source.width, num_classes, bias=False) for _ in range(source.slots)
        )
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, parts: Parts) -> Tensor:
        pooled = {state: F.relu(part).mean((2, 3)) for state, part in parts.items()}
        return reduce(add, [self.linears[state](part) for state, part in pooled.items()], self.bias)


class Supernet(nn.Module):
    """The weights of all networks of a space.

    Args:
        space: Whose networks.
        inputs: One image.
        num_classes: Number of logits.
    """

    def __init__(self, space: NasnetSpace, *, inputs: TensorSpec, num_classes: int) -> None:
        super().__init__()
        settings = space.settings
        self.sites = settings.sites
        width, stride = settings.stem_channels, 2 if settings.stem == "imagenet" else 1
        spec = stem_spec(inputs, channels=width, stride=stride, eps=settings.eps)
        self.stem = Stem(fixed_image(inputs)[0], width, stride=stride, eps=settings.eps)
        _, *size = fixed_image(spec.outputs[0])
        previous, current = None, Source(1, width, (size[0], size[1]))
        self.cells = nn.ModuleList()
        for site in self.sites:
            cell = SharedCell(settings, site, previous, current)
            self.cells.append(cell)
            previous = (previous or current) if site.skip else current
            current = cell.source
        self.head = SharedHead(current, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def forward(self, images: Tensor, genotype: NasnetGenotype) -> Tensor:
        """Run one child: ``(batch, in_chans, height, width)`` to logits."""
        previous: Parts | None = None
        current: Parts = {0: self.stem(images)}
        for cell, site in zip(self.cells, self.sites, strict=True):
            new = cell(previous, current, genotype.of(site))
            previous = (previous or current) if site.skip else current
            current = new
        return self.head(current)
