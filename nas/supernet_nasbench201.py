"""The weight-sharing network of one-shot methods over the NAS-Bench-201 cells.

It has what ``nas.supernet.Supernet`` has: weights here, and a ``Mixture`` of the one kind
of cell given with every batch.

Source:
    Dong and Yang (2020), "NAS-Bench-201", arXiv:2001.00326; the search network of the
    official code: batch norms of operations without affine part, those of stem, reductions
    and head with one. Differs: ``none`` and operations of weight 0 are not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

from torch import Tensor, nn

from nas.spaces.nasbench201 import NasBench201Space
from nas.supernet import Mixture
from zoo.families.nasbench201 import EDGES, OPERATIONS, Reduction, operation

KIND = "cell"
"""The one kind of cell, as the key of its mixture."""


class MixedEdge(nn.Module):
    """The weighted sum of the five operations; None stands for ``none``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ops = nn.ModuleDict()
        for name in OPERATIONS:
            op = operation(name, channels, channels, affine=False)
            if op is not None:
                self.ops[name] = op

    def forward(
        self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None
    ) -> Tensor | None:
        """Return the sum, or None where it has no term."""
        terms = [
            weight * self.ops[name](x)
            for at, (name, weight) in enumerate(zip(OPERATIONS, weights.unbind(), strict=True))
            if name in self.ops and (active is None or at in active)
        ]
        return reduce(add, terms) if terms else None


class SearchCell(nn.Module):
    """A cell whose six edges are mixed; maps ``(batch, channels, height, width)`` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(MixedEdge(channels) for _ in EDGES)

    def forward(self, x: Tensor, mixture: Mixture) -> Tensor:
        states = [x]
        rows = mixture.ops.unbind()
        active = mixture.active or [None] * len(EDGES)
        for node in range(1, 4):
            terms = []
            for at, (source, target) in enumerate(EDGES):
                if target == node:
                    term = self.edges[at](states[source], rows[at], active[at])
                    if term is not None:
                        terms.append(term)
            states.append(reduce(add, terms) if terms else x.new_zeros(x.shape))
        return states[-1]


class NasBench201Supernet(nn.Module):
    """All cells of NAS-Bench-201 at once, sharing weights.

    Args:
        space: Width and cells of a stage.
        in_chans: Channels of the images.
        num_classes: Number of logits.
    """

    def __init__(self, space: NasBench201Space, *, in_chans: int, num_classes: int) -> None:
        super().__init__()
        width = space.channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(Reduction(width, 2 * width))
                width *= 2
            self.cells.extend(SearchCell(width) for _ in range(space.cells))
        self.head = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )

    def forward(self, images: Tensor, mixtures: Mapping[str, Mixture]) -> Tensor:
        """Map ``(batch, in_chans, height, width)`` to logits ``(batch, num_classes)``."""
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x, mixtures[KIND]) if isinstance(cell, SearchCell) else cell(x)
        return self.head(x)
