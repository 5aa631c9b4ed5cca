"""The weight-sharing network of one-shot methods over the DARTS space, with partial channels.

Weights and architecture parameters are two modules, so that a step on one leaves the
other bit for bit alone: ``Supernet`` owns the weights and is given a ``Mixture`` (how
much of which operation and edge) for every kind of cell; ``ArchParameters`` owns the
alphas and betas and makes the mixtures.

Source:
    Xu et al. (2020), "PC-DARTS", arXiv:1907.05737. The order of modules and parameters
    is that of the official search network, so that its weights can be loaded in order.
    Differs: ``none`` costs nothing (it adds zeros); odd sizes are halved upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.spaces.darts import DartsSpace
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.darts import ImageNetStem, Stem
from zoo.families.darts_operations import Zero, operation, preprocess

KINDS = ("normal", "reduce")


@dataclass(frozen=True)
class Mixture:
    """The weights of one kind of cell.

    ``ops`` is ``(edges, operations)``, each row summing to 1, or as ``max_w`` weighs them;
    ``edges`` is ``(edges,)``, summing to 1 over the edges into each node, or all 1 without
    edge normalisation. Edges are in the order of their node, then of the state that they read.
    """

    ops: Tensor
    edges: Tensor


def num_edges(nodes: int) -> int:
    """Return the number of edges of a cell in which every node reads all earlier states."""
    return sum(node + 2 for node in range(nodes))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave equal groups of channels: ``g * (C / groups) + q`` goes to ``q * groups + g``.

    Args:
        x: ``(batch, C, height, width)``; ``groups`` divides C.
        groups: Number of equal runs of channels.
    """
    return torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def max_w(weights: Tensor, *, stop_gradient: bool = False) -> Tensor:
    """Return ``1 - max_k w_k + w_o``: the strongest operation always has the weight 1.

    Args:
        weights: ``(…, operations)``, the softmax of an edge's alphas in each row.
        stop_gradient: Whether the maximum counts as a constant. Else its gradient flows to
            the strongest operation, in equal shares to several that tie.

    Source:
        Hundt et al. (2019), "sharpDARTS", arXiv:1903.09900, Max-W regularisation.
    """
    largest = weights.amax(dim=-1, keepdim=True)
    return 1 - (largest.detach() if stop_gradient else largest) + weights


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "scalar": lambda weights: weights,
    "max_w": max_w,
    "max_w_stopped": partial(max_w, stop_gradient=True),
}
"""What is made of an edge's softmax before it weighs the operations: nothing, or Max-W with
the gradient of sharpDARTS's released code, or with that of the comment beside it."""


class ArchParameters(nn.Module):
    """Alphas ``(edges, operations)`` and betas ``(edges,)`` for each kind of cell.

    All start at 1e-3 times a standard normal draw from ``generator``. Without
    ``edge_normalisation`` there are no betas, and every edge has the share 1.
    ``weighting`` is one of ``WEIGHTINGS``.
    """

    def __init__(
        self,
        nodes: int,
        num_ops: int,
        *,
        generator: torch.Generator,
        edge_normalisation: bool = True,
        weighting: str = "scalar",
    ) -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting of operations", weighting, WEIGHTINGS)
        self.nodes = nodes
        self.edge_normalisation = edge_normalisation
        self.weighting = weighting
        edges = num_edges(nodes)
        shapes: dict[str, tuple[int, ...]] = {"alphas": (edges, num_ops), "betas": (edges,)}
        if not edge_normalisation:
            del shapes["betas"]
        for name, shape in shapes.items():
            for kind in KINDS:
                value = 1e-3 * torch.randn(shape, generator=generator)
                self.register_parameter(f"{name}_{kind}", nn.Parameter(value))

    def forward(self) -> dict[str, Mixture]:
        """Return the mixture of every kind of cell, differentiable in the parameters."""
        weigh = WEIGHTINGS[self.weighting]
        return {
            kind: Mixture(ops=weigh(shares.ops), edges=shares.edges)
            for kind, shares in self.shares().items()
        }

    def shares(self) -> dict[str, Mixture]:
        """Return the softmaxes alone, by which cells are derived whatever the weighting."""
        return {
            kind: Mixture(
                ops=F.softmax(self.get_parameter(f"alphas_{kind}"), dim=-1),
                edges=self._edges(kind),
            )
            for kind in KINDS
        }

    def _edges(self, kind: str) -> Tensor:
        if not self.edge_normalisation:
            alphas = self.get_parameter(f"alphas_{kind}")
            return alphas.new_ones(len(alphas))
        betas = self.get_parameter(f"betas_{kind}")
        segments = torch.split(betas, [node + 2 for node in range(self.nodes)])
        return torch.cat([F.softmax(segment, dim=-1) for segment in segments])


class MixedOp(nn.Module):
    """The weighted sum of all operations on the first 1/k of the channels; the rest bypasses.

    The bypassed channels are max-pooled where the edge strides. Afterwards the channels
    are shuffled in k groups, so that another part is processed by the next edge.
    """

    def __init__(self, ops: tuple[str, ...], channels: int, *, stride: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.stride = stride
        self.part = channels // k
        self.ops = nn.ModuleList(_search_op(name, self.part, stride) for name in ops)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        part = x[:, : self.part]
        terms = [
            weight * op(part)
            for weight, op in zip(weights.unbind(), self.ops, strict=True)
            if not isinstance(op, Zero)
        ]
        mixed = reduce(add, terms)
        if self.k == 1:
            return mixed
        rest = x[:, self.part :]
        if self.stride == 2:
            rest = F.max_pool2d(rest, 2, ceil_mode=True)
        return channel_shuffle(torch.cat([mixed, rest], dim=1), self.k)


def _search_op(name: str, channels: int, stride: int) -> nn.Module:
    op = operation(name, channels, stride=stride, affine=False)
    if name.endswith("_pool_3x3"):
        return nn.Sequential(op, nn.BatchNorm2d(channels, affine=False))
    return op


class SearchCell(nn.Module):
    """A cell in which every node adds a mixed operation on every earlier state.

    Maps ``s0``, ``s1`` and a mixture to the nodes side by side,
    ``(batch, nodes * channels, height, width)``.
    """

    def __init__(
        self,
        space: DartsSpace,
        in_chans: tuple[int, int],
        channels: int,
        *,
        k: int,
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__()
        self.nodes = space.nodes
        self.preprocess0 = preprocess(in_chans[0], channels, halve=reduction_prev, affine=False)
        self.preprocess1 = preprocess(in_chans[1], channels, halve=False, affine=False)
        self.edges = nn.ModuleList(
            MixedOp(space.ops, channels, stride=2 if reduction and state < 2 else 1, k=k)
            for node in range(space.nodes)
            for state in range(node + 2)
        )

    def forward(self, s0: Tensor, s1: Tensor, mixture: Mixture) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = zip(self.edges, mixture.ops.unbind(), mixture.edges.unbind(), strict=True)
        for _ in range(self.nodes):
            terms = []
            for state in states:
                edge, ops, share = next(edges)
                terms.append(share * edge(state, ops))
            states.append(reduce(add, terms))
        return torch.cat(states[2:], dim=1)


class Supernet(nn.Module):
    """All architectures of a DARTS space at once, sharing weights.

    Args:
        space: Depth, width, nodes and operations.
        in_chans: Channels of the images.
        num_classes: Number of logits.
        k: The operations see 1/k of the channels; 1 gives the supernet of DARTS with
            edge normalisation.
        cell: Class of the cells: ``SearchCell``, or one with its arguments.

    Raises:
        InvalidInputError: ``k`` does not divide ``space.channels``.
    """

    def __init__(
        self,
        space: DartsSpace,
        *,
        in_chans: int,
        num_classes: int,
        k: int,
        cell: Callable[..., nn.Module] = SearchCell,
    ) -> None:
        super().__init__()
        if k < 1 or space.channels % k:
            raise InvalidInputError(
                f"k is {k}, but must divide the {space.channels} channels of the first cell; "
                "choose another k or width"
            )
        width = space.stem_multiplier * space.channels
        self.stem = (ImageNetStem if space.stem == "imagenet" else Stem)(in_chans, width)
        self.cells = nn.ModuleList()
        self.kinds = [KINDS[position in space.reductions] for position in range(space.cells)]
        in_prev, in_last, channels = width, width, space.channels
        for position in range(space.cells):
            reduction = position in space.reductions
            channels *= 2 if reduction else 1
            self.cells.append(
                cell(
                    space,
                    (in_prev, in_last),
                    channels,
                    k=k,
                    reduction=reduction,
                    reduction_prev=space.reduced_before(position),
                )
            )
            in_prev, in_last = in_last, space.nodes * channels
        self.classifier = nn.Linear(in_last, num_classes)

    def forward(self, images: Tensor, mixtures: Mapping[str, Mixture]) -> Tensor:
        """Map ``(batch, in_chans, height, width)`` to logits ``(batch, num_classes)``."""
        s0, s1 = self.stem(images)
        for cell, kind in zip(self.cells, self.kinds, strict=True):
            s0, s1 = s1, cell(s0, s1, mixtures[kind])
        return self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1))
