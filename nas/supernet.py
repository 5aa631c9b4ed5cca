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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    ``active`` names the operations of every edge that are run at all, as far as the network
    heeds it: the others' weights must be 0. None runs all.
    """

    ops: Tensor
    edges: Tensor
    active: tuple[tuple[int, ...], ...] | None = None


def num_edges(nodes: int) -> int:
    """Return the number of edges of a cell in which every node reads all earlier states."""
    return sum(node + 2 for node in range(nodes))


def masked_softmax(alphas: Tensor, mask: Tensor | None) -> Tensor:
    """Return the softmax over the last dimension of what ``mask`` allows.

    Where it is False the result is exactly 0, and so is the gradient.

    Args:
        alphas: ``(edges, operations)``.
        mask: Boolean, of the same shape, True somewhere in each row; None allows all.
    """
    if mask is not None:
        alphas = alphas.masked_fill(~mask, float("-inf"))
    return F.softmax(alphas, dim=-1)


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

    Args:
        nodes: Nodes of a cell; node i reads i + 2 states unless ``inputs`` says otherwise.
        num_ops: Operations of an edge.
        generator: Source of the start.
        edge_normalisation: Whether there are betas.
        weighting: One of ``WEIGHTINGS``.
        kinds: Kinds of cells.
        inputs: Edges into each node.
    """

    def __init__(
        self,
        nodes: int,
        num_ops: int,
        *,
        generator: torch.Generator,
        edge_normalisation: bool = True,
        weighting: str = "scalar",
        kinds: Sequence[str] = KINDS,
        inputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting of operations", weighting, WEIGHTINGS)
        self.nodes = nodes
        self.edge_normalisation = edge_normalisation
        self.weighting = weighting
        self.kinds = tuple(kinds)
        self.inputs = [node + 2 for node in range(nodes)] if inputs is None else list(inputs)
        self.num_ops = num_ops
        self._masks: dict[str, Tensor] = {}
        self._active: dict[str, tuple[tuple[int, ...], ...]] = {}
        edges = sum(self.inputs)
        shapes: dict[str, tuple[int, ...]] = {"alphas": (edges, num_ops), "betas": (edges,)}
        if not edge_normalisation:
            del shapes["betas"]
        for name, shape in shapes.items():
            for kind in self.kinds:
                value = 1e-3 * torch.randn(shape, generator=generator)
                self.register_parameter(f"{name}_{kind}", nn.Parameter(value))

    def restrict(self, mask: Tensor) -> None:
        """Allow only some operations; the others have weight 0 and get no gradient.

        Args:
            mask: Boolean, the edges of all kinds of cells below each other.
        """
        device = next(self.parameters()).device
        for kind, part in zip(self.kinds, torch.split(mask, sum(self.inputs)), strict=True):
            self._masks[kind] = part.to(device)
            rows = part.tolist()
            self._active[kind] = tuple(tuple(at for at, may in enumerate(r) if may) for r in rows)

    def forward(self) -> dict[str, Mixture]:
        """Return the mixture of every kind of cell, differentiable in the parameters."""
        return {
            kind: replace(shares, ops=self._weigh(kind, shares.ops))
            for kind, shares in self.shares().items()
        }

    def shares(self) -> dict[str, Mixture]:
        """Return the softmaxes alone, by which cells are derived whatever the weighting."""
        return {
            kind: Mixture(ops=self.weights(kind), edges=self._edges(kind), active=self.active(kind))
            for kind in self.kinds
        }

    def weights(self, kind: str) -> Tensor:
        """Return the weights of the operations on the edges of one kind of cell."""
        return masked_softmax(self.get_parameter(f"alphas_{kind}"), self._masks.get(kind))

    def active(self, kind: str) -> tuple[tuple[int, ...], ...] | None:
        """Return the operations that have a weight, or None if all have."""
        return self._active.get(kind)

    def _weigh(self, kind: str, shares: Tensor) -> Tensor:
        weights, mask = WEIGHTINGS[self.weighting](shares), self._masks.get(kind)
        return weights if mask is None else weights.masked_fill(~mask, 0.0)

    def _edges(self, kind: str) -> Tensor:
        if not self.edge_normalisation:
            alphas = self.get_parameter(f"alphas_{kind}")
            return alphas.new_ones(len(alphas))
        betas = self.get_parameter(f"betas_{kind}")
        segments = torch.split(betas, self.inputs)
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
        self.zero = Zero(stride=stride)
        self.ops = nn.ModuleList(_search_op(name, self.part, stride) for name in ops)

    def forward(self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None) -> Tensor:
        part = x[:, : self.part]
        terms = [
            weight * op(part)
            for at, (weight, op) in enumerate(zip(weights.unbind(), self.ops, strict=True))
            if not isinstance(op, Zero) and (active is None or at in active)
        ]
        mixed = reduce(add, terms) if terms else self.zero(part)
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
        active = mixture.active or [None] * len(self.edges)
        edges = zip(self.edges, mixture.ops.unbind(), mixture.edges.unbind(), active, strict=True)
        for _ in range(self.nodes):
            terms = []
            for state in states:
                edge, ops, share, run = next(edges)
                terms.append(share * edge(state, ops, run))
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
