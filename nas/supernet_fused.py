"""The search cell computed once a source state instead of once an edge: the same function.

All edges that leave one state read the same channels, so what they do to them is done
together (E edges leave the state, ops see c channels):

- the partial channels, their ReLU and both pools with their batch norms: once for all E;
- all first convolutions of a width in one, but the dilated 5x5 and the 7x7: smaller kernels
  are embedded in 5x5 (a dilated 3x3 is a 5x5 with holes), then one batch norm for all of
  them; likewise the second halves of the separable ones;
- between a depthwise and its pointwise convolution there is no nonlinearity: up to
  ``DENSE_CHANNELS`` channels the two are multiplied into one dense convolution, which
  runs faster than the pair and keeps no activation between them;
- an operation's share of its edge, times the edge's share of its node, is the scale of
  its batch norm, so mixing is a sum; pools and skips are mixed by one 1x1 convolution;
- shuffle and bypass are linear: they happen once a node, after the sum over its edges.

Weights are kept stacked, three tensors a state. ``state_dict`` speaks the names and shapes
of ``nas.supernet.SearchCell``, so that weights and checkpoints of either form fit the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain, product
from operator import add
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.spaces.darts import DartsSpace
from nas.supernet import Mixture
from zoo.families.darts_operations import SHARP_OPERATIONS, preprocess

DENSE_CHANNELS = 16
"""Up to so many channels a separable convolution is computed as a dense one."""

POOLS = ("max_pool_3x3", "avg_pool_3x3")

_KERNELS = {
    "sep_conv_3x3": (3, 1),
    "sep_conv_5x5": (5, 1),
    "dil_conv_3x3": (3, 2),
    "dil_conv_5x5": (5, 2),
} | {name: (shape.kernel, shape.dilation) for name, shape in SHARP_OPERATIONS.items()}
"""Operation → size and dilation of its first depthwise kernel."""

_JOINED = 5
"""Kernels that span at most so many pixels are convolved as one of this size."""

_BATCH_NORM = ("running_mean", "running_var")
_MOMENTUM, _EPS = 0.1, 1e-5  # of nn.BatchNorm2d, which the unfused cell uses


class _Width:
    """The convolutions of a state's edges that have ``mid`` channels after their first half.

    They stand in the order in which their results do: ``halves`` have a second half too,
    the ``wide`` ones of them a kernel that is larger than ``_JOINED`` there; the others are
    done after the first.
    """

    def __init__(self, mid: int, ops: Sequence[str]) -> None:
        self.mid = mid
        two = [op for op in ops if not op.startswith("dil_conv")]
        one = [op for op in ops if op not in two]
        self.wide = [op for op in two if _KERNELS[op][0] > _JOINED]
        far = [op for op in two if _far(op)]
        near = [op for op in two if op not in self.wide and op not in far]
        self.halves = [*self.wide, *far, *near]
        groups = [
            (self.wide, 1),
            (far, 2),
            (near + [op for op in one if not _far(op)], 1),
            ([op for op in one if _far(op)], 2),
        ]
        self.groups = [(group, dilation) for group, dilation in groups if group]
        self.ops = [op for group, _ in self.groups for op in group]


def _far(op: str) -> bool:
    """Return whether a kernel is dilated and spans too much to be embedded in another."""
    size, dilation = _KERNELS[op]
    return dilation > 1 and dilation * (size - 1) + 1 > _JOINED


def _mid_chans(op: str, channels: int) -> int:
    sharp = SHARP_OPERATIONS.get(op)
    return channels if sharp is None else sharp.mid_chans(channels)


class SourceEdges(nn.Module):
    """All edges that leave one state of a cell, on the partial channels.

    Maps ``(batch, part, height, width)`` and the coefficients ``(edges, operations)`` to
    ``(batch, edges * part, height / stride, width / stride)``, the edges' sums of
    operations side by side.

    Args:
        ops: All operations of the space, in its order.
        edges: The positions of these edges among all of the cell.
        part: Channels that the operations see.
        stride: 1 or 2.
        dense_channels: Up to so many channels between the halves, depthwise and pointwise
            kernels are multiplied into one.
    """

    def __init__(
        self,
        ops: Sequence[str],
        edges: Sequence[int],
        part: int,
        *,
        stride: int,
        dense_channels: int,
    ) -> None:
        super().__init__()
        self.ops, self.edges, self.part, self.stride = tuple(ops), tuple(edges), part, stride
        self.dense_channels = dense_channels
        self.pools = [op for op in ops if op in POOLS]
        mids = {op: _mid_chans(op, part) for op in ops if op in _KERNELS}
        self.widths = [
            _Width(mid, [op for op in mids if mids[op] == mid])
            for mid in dict.fromkeys(mids.values())
        ]
        self.reduces = stride == 2 and "skip_connect" in ops
        self._kernels = self._kernel_names()
        for name, keys in self._kernels.items():
            shape = self._kernel_shape(*keys[0])
            weight = torch.empty(len(keys) * len(edges), *shape)
            self.register_parameter(name, nn.Parameter(weight))
        if self.reduces:
            halves = torch.empty(2, len(edges), part // 2, part, 1, 1)
            self.halves = nn.Parameter(halves.flatten(0, 1))
        self._norms = {
            "pool": [(op, "1") for op in self.pools],
            **{self._first(width): [(op, "3") for op in width.ops] for width in self.widths},
            "second": [(op, "7") for width in self.widths for op in width.halves],
            "skip": [("skip_connect", "bn")] if self.reduces else [],
        }
        channels = {self._first(width): width.mid for width in self.widths}
        for name, norms in self._norms.items():
            count = len(norms) * (1 if name == "pool" else len(edges))
            if count:
                shape = (count, channels.get(name, part))
                self.register_buffer(f"{name}_running_mean", torch.zeros(shape))
                self.register_buffer(f"{name}_running_var", torch.ones(shape))
        if any(self._norms.values()):
            self.register_buffer("num_batches_tracked", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        if self.training and any(self._norms.values()):
            self.get_buffer("num_batches_tracked").add_(1)
        terms = list(self._convolutions(F.relu(x), shares)) if self.widths else []
        if self.reduces:
            terms.append(self._reduction(F.relu(x), shares))
        skips = [op for op in self.ops if op == "skip_connect" and self.stride == 1]
        shared = [*([self._pooled(x)] if self.pools else ()), *(x for _ in skips)]
        if shared:
            mixing = self._mixing([*self.pools, *skips], shares)
            terms.append(F.conv2d(torch.cat(shared, dim=1), mixing))
        return reduce(add, terms)

    def _convolutions(self, x: Tensor, shares: Tensor) -> Iterator[Tensor]:
        """Yield the separable and dilated convolutions, scaled, an operation at a time."""
        size = len(self.edges) * self.part
        seconds = []
        for width in self.widths:
            first = self._first_halves(x, width, shares)
            kept = len(width.halves) * len(self.edges) * width.mid
            if len(width.ops) > len(width.halves):
                yield from torch.split(first[:, kept:], size, dim=1)
            if kept:
                seconds += self._second_halves(F.relu(first[:, :kept]), width)
        if seconds:
            scale = self._scale([op for width in self.widths for op in width.halves], shares)
            yield from torch.split(self._norm("second", _joined(seconds), scale), size, dim=1)

    def _first_halves(self, x: Tensor, width: _Width, shares: Tensor) -> Tensor:
        results = [
            self._pair(x, ops, layer=1, dilation=dilation, stride=self.stride)
            for ops, dilation in width.groups
        ]
        # What a second half follows is mixed there, so it is not scaled here.
        kept = shares.new_ones(len(width.halves) * len(self.edges) * width.mid)
        done = [self._scale([op], shares) for op in width.ops[len(width.halves) :]]
        return self._norm(self._first(width), _joined(results), torch.cat([kept, *done]))

    def _second_halves(self, x: Tensor, width: _Width) -> list[Tensor]:
        wide = len(width.wide) * len(self.edges) * width.mid
        groups = [(x[:, :wide], width.wide), (x[:, wide:], width.halves[len(width.wide) :])]
        return [self._pair(part, ops, layer=5) for part, ops in groups if ops]

    def _pair(
        self, x: Tensor, ops: Sequence[str], *, layer: int, dilation: int = 1, stride: int = 1
    ) -> Tensor:
        """Convolve depthwise and pointwise: the state for every edge, or each edge's own part."""
        own = layer == 5
        kernels = [(self._kernel(op, layer), 1 if own else _KERNELS[op][1]) for op in ops]
        spread = [_spread(weight, factor // dilation) for weight, factor in kernels]
        size = max(weight.shape[-1] for weight in spread)
        depthwise = torch.cat([_embedded(weight, size) for weight in spread])
        pointwise = torch.cat([self._kernel(op, layer + 1) for op in ops])
        groups = len(pointwise)
        padding = dilation * (size // 2)
        if max(pointwise.shape[1:3]) <= self.dense_channels:
            weight = (pointwise * depthwise.transpose(1, 2)).flatten(0, 1)
            return F.conv2d(x, weight, None, stride, padding, dilation, groups=groups if own else 1)
        if own:
            depthwise = depthwise.flatten(0, 1)
            between = F.conv2d(x, depthwise, None, stride, padding, dilation, len(depthwise))
        else:
            weight = depthwise.transpose(0, 1).flatten(0, 1)
            between = F.conv2d(x, weight, None, stride, padding, dilation, self.part)
            between = shuffled(between, self.part)
        return F.conv2d(between, pointwise.flatten(0, 1), groups=groups)

    def _reduction(self, x: Tensor, shares: Tensor) -> Tensor:
        """Halve the size for every edge: even pixels to one half of it, odd ones to the other."""
        # Sliced, not strided, as in ``FactorizedReduce``; see there.
        odd_height, odd_width = x.shape[2] % 2, x.shape[3] % 2
        shifted = F.pad(x[:, :, 1::2, 1::2], (0, odd_width, 0, odd_height))
        even = F.conv2d(x[:, :, ::2, ::2], self.halves[: len(self.edges)].flatten(0, 1))
        odd = F.conv2d(shifted, self.halves[len(self.edges) :].flatten(0, 1))
        edges = [torch.split(half, self.part // 2, dim=1) for half in (even, odd)]
        joined = torch.cat([half for pair in zip(*edges, strict=True) for half in pair], dim=1)
        return self._norm("skip", joined, self._scale(["skip_connect"], shares))

    def _pooled(self, x: Tensor) -> Tensor:
        results = [
            F.max_pool2d(x, 3, self.stride, 1)
            if op == "max_pool_3x3"
            else F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
            for op in self.pools
        ]
        return self._norm("pool", _joined(results), None)

    def _mixing(self, names: Sequence[str], shares: Tensor) -> Tensor:
        """Return the 1x1 kernel that gives every edge its shares of the named states."""
        columns = self._columns(names, shares)
        identity = torch.eye(self.part, dtype=shares.dtype, device=shares.device)
        return torch.kron(columns, identity)[:, :, None, None]

    def _scale(self, ops: Sequence[str], shares: Tensor) -> Tensor:
        """Return the shares of ``ops``, one a channel: operation by operation, edge by edge."""
        columns = self._columns(ops, shares)
        # Contiguous, as the backward pass of PyTorch 2.13 on the CPU takes it to be.
        return columns.t().unsqueeze(2).expand(-1, -1, self.part).flatten().contiguous()

    def _columns(self, ops: Sequence[str], shares: Tensor) -> Tensor:
        # Stacked, not indexed by a list: the list would be copied to a GPU, which waits.
        return torch.stack([shares[:, self.ops.index(op)] for op in ops], dim=1)

    def _norm(self, name: str, x: Tensor, scale: Tensor | None) -> Tensor:
        mean, variance = (self.get_buffer(f"{name}_{kind}").view(-1) for kind in _BATCH_NORM)
        return F.batch_norm(x, mean, variance, scale, None, self.training, _MOMENTUM, _EPS)

    def _first(self, width: _Width) -> str:
        """Return the name of the batch norm after the first halves of a width."""
        return "first" if width.mid == self.part else f"first_{width.mid}"

    def _kernel_names(self) -> dict[str, list[tuple[str, int]]]:
        """Return which kernels are stacked together: those of one shape, by operation and layer.

        The layers are those of an unfused operation: 1 and 5 depthwise, 2 and 6 pointwise.
        """
        ops = [op for width in self.widths for op in width.ops]
        halves = [op for width in self.widths for op in width.halves]
        depthwise = [*((op, 1) for op in ops), *((op, 5) for op in halves)]
        keys = [*depthwise, *((op, layer + 1) for op, layer in depthwise)]
        names: dict[str, list[tuple[str, int]]] = {}
        for key in keys:
            names.setdefault(self._kernel_name(*key), []).append(key)
        return names

    def _kernel_shape(self, op: str, layer: int) -> tuple[int, int, int, int]:
        before, after = self.part, _mid_chans(op, self.part)
        if layer in (5, 6):
            before, after = after, before
        size = _KERNELS[op][0]
        return (before, 1, size, size) if layer in (1, 5) else (after, before, 1, 1)

    def _kernel_name(self, op: str, layer: int) -> str:
        out, into, size, _ = self._kernel_shape(op, layer)
        if layer in (1, 5):
            return f"depthwise_{size}" if out == self.part else f"depthwise_{size}_{out}"
        return "pointwise" if out == into else f"pointwise_{out}_{into}"

    def _kernel(self, op: str, layer: int) -> Tensor:
        """Return ``(edges, out, in, …)``: the kernels of one layer of one operation."""
        name = self._kernel_name(op, layer)
        at = self._kernels[name].index((op, layer)) * len(self.edges)
        return self.get_parameter(name)[at : at + len(self.edges)]

    def names(self) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        """Yield each stacked tensor's name, and what its rows are called in an unfused cell.

        A row that all edges share has several names.
        """
        for name, keys in self._kernels.items():
            rows = product(keys, self.edges)
            yield name, [(self._name(edge, op, f"{at}.weight"),) for (op, at), edge in rows]
        if self.reduces:
            halves = product(("conv_1.weight", "conv_2.weight"), self.edges)
            yield "halves", [(self._name(edge, "skip_connect", half),) for half, edge in halves]
        for name, kind in product(self._norms, _BATCH_NORM):
            named = self._norm_names(name, kind)
            if named:
                shared = len(self.edges) if name == "pool" else 1
                starts = range(0, len(named), shared)
                yield f"{name}_{kind}", [tuple(named[at : at + shared]) for at in starts]
        counters = [self._norm_names(name, "num_batches_tracked") for name in self._norms]
        if any(counters):
            yield "num_batches_tracked", [tuple(chain.from_iterable(counters))]

    def _norm_names(self, name: str, kind: str) -> list[str]:
        rows = product(self._norms[name], self.edges)
        return [self._name(edge, op, f"{layer}.{kind}") for (op, layer), edge in rows]

    def _name(self, edge: int, op: str, rest: str) -> str:
        return f"edges.{edge}.ops.{self.ops.index(op)}.{rest}"


class FusedCell(nn.Module):
    """``nas.supernet.SearchCell``, computed state by state; arguments and results are its."""

    def __init__(
        self,
        space: DartsSpace,
        in_chans: tuple[int, int],
        channels: int,
        *,
        k: int,
        reduction: bool,
        reduction_prev: bool,
        dense_channels: int = DENSE_CHANNELS,
    ) -> None:
        super().__init__()
        self.nodes, self.k, self.part = space.nodes, k, channels // k
        self.reduction = reduction
        self.preprocess0 = preprocess(in_chans[0], channels, halve=reduction_prev, affine=False)
        self.preprocess1 = preprocess(in_chans[1], channels, halve=False, affine=False)
        self.sources = nn.ModuleList(
            SourceEdges(
                space.ops,
                [node * (node + 3) // 2 + state for node in range(max(0, state - 1), space.nodes)],
                self.part,
                stride=2 if reduction and state < 2 else 1,
                dense_channels=dense_channels,
            )
            for state in range(space.nodes + 1)
        )
        self.register_state_dict_post_hook(_unstack_state)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_stack_state)  # type: ignore[no-untyped-call]

    def forward(self, s0: Tensor, s1: Tensor, mixture: Mixture) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        shares = mixture.ops * mixture.edges.unsqueeze(1)
        parts: list[list[Tensor]] = [[] for _ in range(self.nodes)]
        rests: list[Tensor | None] = [None] * self.nodes
        for at, source in self._numbered():
            state = states[at].contiguous(memory_format=torch.channels_last)
            own = torch.stack([shares[edge] for edge in source.edges])
            out = source(state[:, : self.part], own)
            rest = state[:, self.part :]
            if source.stride == 2 and self.k > 1:
                rest = F.max_pool2d(rest, 2, ceil_mode=True)
            edges = zip(source.edges, torch.split(out, self.part, dim=1), strict=True)
            for node, (edge, piece) in enumerate(edges, start=max(0, at - 1)):
                parts[node].append(piece)
                if self.k > 1:
                    bypass = mixture.edges[edge].to(rest.dtype) * rest
                    before = rests[node]
                    rests[node] = bypass if before is None else before + bypass
            if at >= 1:
                states.append(self._node(parts[at - 1], rests[at - 1]))
        return torch.cat(states[2:], dim=1)

    def _node(self, parts: Sequence[Tensor], rest: Tensor | None) -> Tensor:
        total = reduce(add, parts)
        return total if rest is None else shuffled(torch.cat([total, rest], dim=1), self.k)

    def _numbered(self) -> Iterator[tuple[int, SourceEdges]]:
        return enumerate(cast(Iterable[SourceEdges], self.sources))

    def unstack(self, tensors: dict[str, Tensor], prefix: str = "") -> None:
        """Replace, in place, tensors of this cell's parameters by those of an unfused cell's."""
        for at, source in self._numbered():
            for name, rows in source.names():
                tensor = tensors.pop(f"{prefix}sources.{at}.{name}", None)
                for row, names in zip(() if tensor is None else tensor, rows, strict=False):
                    tensors |= {prefix + unfused: row.clone() for unfused in names}

    def stack(self, tensors: dict[str, Tensor], prefix: str = "") -> None:
        """Undo ``unstack``; what is incomplete is left as it is."""
        for at, source in self._numbered():
            for name, rows in source.names():
                names = [[prefix + unfused for unfused in row] for row in rows]
                if all(unfused in tensors for row in names for unfused in row):
                    found = [[tensors.pop(unfused) for unfused in row][0] for row in names]
                    tensors[f"{prefix}sources.{at}.{name}"] = torch.stack(found)


def unstack(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Rename and split, in place, tensors named like the parameters of ``net`` as if unfused."""
    for name, module in net.named_modules():
        if isinstance(module, FusedCell):
            module.unstack(tensors, f"{name}.")


def stack(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Undo ``unstack``."""
    for name, module in net.named_modules():
        if isinstance(module, FusedCell):
            module.stack(tensors, f"{name}.")


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Return ``nas.supernet.channel_shuffle`` in the channels-last memory format."""
    by_pixel = x.permute(0, 2, 3, 1)
    split = torch.unflatten(by_pixel, 3, (groups, -1))
    return split.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


def _unstack_state(cell: FusedCell, state: dict[str, Any], prefix: str, _: Any) -> None:
    cell.unstack(state, prefix)


def _stack_state(cell: FusedCell, state: dict[str, Any], prefix: str, *_: Any) -> None:
    cell.stack(state, prefix)


def _joined(results: Sequence[Tensor]) -> Tensor:
    return results[0] if len(results) == 1 else torch.cat(list(results), dim=1)


def _spread(weight: Tensor, dilation: int) -> Tensor:
    """Return a dilated kernel as a plain one with holes."""
    if dilation == 1:
        return weight
    side = dilation * (weight.shape[-1] - 1) + 1
    holes = weight.new_zeros((*weight.shape[:-2], side, side))
    holes[..., ::dilation, ::dilation] = weight
    return holes


def _embedded(weight: Tensor, size: int) -> Tensor:
    """Return a kernel in the middle of a larger one."""
    margin = (size - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4) if margin else weight
