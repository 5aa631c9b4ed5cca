"""The spaces as relaxed one-shot methods see them: supernet, edges, derivation, single paths.

Edges are numbered over all kinds of cells, one kind after the other (DARTS: the normal
cell's, then the reduction cell's; MBConv: the searched blocks); a mask has one row an edge,
one column an operation.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from nas import supernet_elastic as elastic
from nas import supernet_nasbench201 as nasbench201
from nas.derivation import ranked
from nas.masks import Parts, allowed, full_mask, restricted
from nas.methods.proxyless.derive import likeliest
from nas.protocols import SearchSpace
from nas.spaces.darts import DartsSpace
from nas.spaces.mbconv import MBConvSpace
from nas.spaces.nasbench201 import NasBench201Space
from nas.supernet import KINDS, Mixture, Supernet, num_edges
from nas.supernet_fused import FusedCell
from zoo.errors import InvalidInputError
from zoo.families.nasbench201 import OPERATIONS
from zoo.spec import Architecture, TensorSpec

Mixtures = Mapping[str, Mixture]


class CellSpace(abc.ABC):
    """One cell space; ``ops`` name the columns of a mask, ``inputs`` count a node's edges."""

    kinds: tuple[str, ...]
    ops: tuple[str, ...]
    inputs: tuple[int, ...]

    @property
    def edges(self) -> int:
        """Edges of a cell."""
        return sum(self.inputs)

    @abc.abstractmethod
    def supernet(self, *, inputs: TensorSpec, num_classes: int, k: int, fused: bool) -> nn.Module:
        """Build the supernet with weights of the present random state."""

    @abc.abstractmethod
    def options(self) -> Tensor:
        """Return the mask of everything that a derived architecture may have."""

    def confined(self) -> Tensor | None:
        """Return the mask of what the supernet has, if that is not every operation."""
        return None

    @abc.abstractmethod
    def splittable(self) -> tuple[int, ...]:
        """Return the edges that the network has."""

    @abc.abstractmethod
    def ranked(self, mixtures: Mixtures, mask: Tensor | None) -> Iterator[Architecture]:
        """Yield the architectures that ``mask`` allows, from the derived one on."""

    @abc.abstractmethod
    def parts(self, mask: Tensor) -> Parts:
        """Return the choices that ``mask`` allows, for ``nas.masks.distinct``."""

    @abc.abstractmethod
    def architecture(self, choices: Sequence[int]) -> Architecture:
        """Return the architecture of these choices."""

    @abc.abstractmethod
    def path(self, architecture: Architecture, mixtures: Mixtures) -> dict[str, Mixture]:
        """Return the mixtures that run one architecture; ``mixtures`` give edges their shares."""

    @abc.abstractmethod
    def shared(self, supernet: nn.Module, edge: int, mask: Tensor) -> list[Tensor]:
        """Return the weights of allowed operations, but not of those on ``edge``."""

    def set_edge(self, mixtures: Mixtures, edge: int, op: int, *, hard: bool) -> dict[str, Mixture]:
        """Return ``mixtures`` with ``edge`` set to one operation, of weight 1 if ``hard``."""
        at, row = divmod(edge, self.edges)
        mixture = mixtures[self.kinds[at]]
        ops = mixture.ops.clone()
        ops[row] = 0
        ops[row, op] = 1.0 if hard else mixture.ops[row, op]
        active = list(mixture.active or [tuple(range(len(self.ops)))] * self.edges)
        active[row] = (op,)
        return {**mixtures, self.kinds[at]: replace(mixture, ops=ops, active=tuple(active))}


class DartsCells(CellSpace):
    """``DartsSpace``; ``none`` is in no architecture, so it is in no mask either."""

    kinds = KINDS

    def __init__(self, space: DartsSpace) -> None:
        self.space, self.ops = space, space.ops
        self.inputs = tuple(node + 2 for node in range(space.nodes))

    def supernet(self, *, inputs: TensorSpec, num_classes: int, k: int, fused: bool) -> nn.Module:
        in_chans = int(inputs.shape[0] or 1)
        make = partial(Supernet, self.space, in_chans=in_chans, num_classes=num_classes, k=k)
        supernet = make()
        if fused:
            drawn = supernet.state_dict()
            supernet = make(cell=FusedCell)
            supernet.load_state_dict(drawn)
        return supernet

    def options(self) -> Tensor:
        row = torch.tensor([op != "none" for op in self.ops])
        return row.repeat(len(self.kinds) * num_edges(self.space.nodes), 1)

    def splittable(self) -> tuple[int, ...]:
        only_reductions = self.space.cells == len(self.space.reductions)
        return tuple(range(self.edges if only_reductions else 0, 2 * self.edges))

    def ranked(self, mixtures: Mixtures, mask: Tensor | None) -> Iterator[Architecture]:
        found = ranked(self.space, mixtures)
        if mask is None:
            return found
        legal = [set(part) for part in self.parts(mask)]
        return (item for item in found if self._within(item, legal))

    def _within(self, architecture: Architecture, legal: Sequence[set[tuple[int, ...]]]) -> bool:
        choices = architecture.choices
        return all(choices[3 * at : 3 * at + 3] in part for at, part in enumerate(legal))

    def parts(self, mask: Tensor) -> Parts:
        columns = [self.ops.index(op) for op in self.space.edge_ops]
        rows = [[columns.index(op) for op in row] for row in allowed(mask & self.options())]
        found, first = [], 0
        for inputs in self.inputs * len(self.kinds):
            edges = rows[first : first + inputs]
            found.append(
                [
                    (pair, low, high)
                    for pair, (a, b) in enumerate(combinations(range(inputs), 2))
                    for low in edges[a]
                    for high in edges[b]
                ]
            )
            first += inputs
        return found

    def architecture(self, choices: Sequence[int]) -> Architecture:
        return Architecture(space=self.space.describe(), choices=tuple(choices))

    def path(self, architecture: Architecture, mixtures: Mixtures) -> dict[str, Mixture]:
        genotype = self.space.decode(architecture)
        found = {}
        for kind, nodes in zip(self.kinds, (genotype.normal, genotype.reduce), strict=True):
            whole = mixtures[kind]
            ops, shares = torch.zeros_like(whole.ops), torch.zeros_like(whole.edges)
            active: list[tuple[int, ...]] = [()] * self.edges
            first = 0
            for inputs, edges in zip(self.inputs, nodes, strict=True):
                rows = [first + state for _, state in edges]
                for row, (name, _) in zip(rows, edges, strict=True):
                    ops[row, self.ops.index(name)] = 1
                    active[row] = (self.ops.index(name),)
                # Shares that sum to 1 over the node's edges do so over the kept ones.
                kept, before = whole.edges[rows], whole.edges[first : first + inputs]
                shares[rows] = kept * before.sum() / kept.sum() if self._normalised(whole) else kept
                first += inputs
            found[kind] = Mixture(ops=ops, edges=shares, active=tuple(active))
        return found

    def _normalised(self, mixture: Mixture) -> bool:
        return bool((mixture.edges != 1).any())

    def shared(self, supernet: nn.Module, edge: int, mask: Tensor) -> list[Tensor]:
        kind, row = divmod(edge, self.edges)
        net: Any = supernet
        if any(isinstance(cell, FusedCell) for cell in net.cells):
            raise InvalidInputError(
                "gradients of single operations need the unfused supernet; set fused to false "
                "(in gm-nas: in base_params)"
            )
        rows = allowed(mask)
        return [
            weight
            for cell, name in zip(net.cells, net.kinds, strict=True)
            for at, mixed in enumerate(cell.edges)
            if (name, at) != (self.kinds[kind], row)
            for op in rows[self.kinds.index(name) * self.edges + at]
            for weight in mixed.ops[op].parameters()
        ]


class IndependentCells(CellSpace):
    """Spaces whose choices are one operation for every edge, independently."""

    def __init__(self, space: SearchSpace) -> None:
        self._described, self._cardinalities = space.describe(), space.cardinalities()

    def options(self) -> Tensor:
        return full_mask(self._cardinalities)

    def splittable(self) -> tuple[int, ...]:
        return tuple(range(self.edges))

    def ranked(self, mixtures: Mixtures, mask: Tensor | None) -> Iterator[Architecture]:
        mask = self.options() if mask is None else mask
        # Added to 0, so that an operation of share 0 is last rather than impossible.
        shares = mixtures[self.kinds[0]].ops.detach().cpu().double()
        scores = restricted((shares + 1e-300).log().tolist(), mask)
        rows = allowed(mask)
        for found in likeliest(scores):
            yield self.architecture([row[at] for row, at in zip(rows, found, strict=True)])

    def parts(self, mask: Tensor) -> Parts:
        return [[(op,) for op in row] for row in allowed(mask)]

    def architecture(self, choices: Sequence[int]) -> Architecture:
        return Architecture(space=self._described, choices=tuple(choices))

    def path(self, architecture: Architecture, mixtures: Mixtures) -> dict[str, Mixture]:
        whole = mixtures[self.kinds[0]]
        ops = torch.zeros_like(whole.ops)
        ops[range(self.edges), list(architecture.choices)] = 1
        active = tuple((op,) for op in architecture.choices)
        return {self.kinds[0]: Mixture(ops=ops, edges=whole.edges, active=active)}


class NasBench201Cells(IndependentCells):
    """``NasBench201Space``: six edges of one kind of cell, five operations each."""

    kinds = (nasbench201.KIND,)
    ops = OPERATIONS
    inputs = (1, 2, 3)

    def __init__(self, space: NasBench201Space) -> None:
        super().__init__(space)
        self.space = space

    def supernet(self, *, inputs: TensorSpec, num_classes: int, k: int, fused: bool) -> nn.Module:
        _all_channels(k, "nas-bench-201")
        in_chans = int(inputs.shape[0] or 1)
        return nasbench201.NasBench201Supernet(
            self.space, in_chans=in_chans, num_classes=num_classes
        )

    def shared(self, supernet: nn.Module, edge: int, mask: Tensor) -> list[Tensor]:
        net: Any = supernet
        rows = allowed(mask)
        found: list[Tensor] = []
        for cell in net.cells:
            if not isinstance(cell, nasbench201.SearchCell):
                found += cell.parameters()
                continue
            for at, mixed in enumerate(cell.edges):
                names = [OPERATIONS[op] for op in rows[at]] if at != edge else []
                weighted: Any = mixed.ops
                found += [w for n in names if n in weighted for w in weighted[n].parameters()]
        return found


class MBConvBlocks(IndependentCells):
    """``MBConvSpace`` with elastic kernels; a searched block is an edge."""

    kinds = (elastic.KIND,)

    def __init__(self, space: MBConvSpace) -> None:
        super().__init__(space)
        self.space = space
        self.ops = max((edge.names for edge in space.edges), key=len)
        self.inputs = (1,) * len(space.edges)

    def supernet(self, *, inputs: TensorSpec, num_classes: int, k: int, fused: bool) -> nn.Module:
        _all_channels(k, "mbconv")
        return elastic.ElasticSupernet(self.space, inputs=inputs, num_classes=num_classes)

    def confined(self) -> Tensor:
        return self.options()

    def shared(self, supernet: nn.Module, edge: int, mask: Tensor) -> list[Tensor]:
        net: Any = supernet
        own = {id(weight) for weight in net.blocks[edge].parameters()}
        return [weight for weight in net.parameters() if id(weight) not in own]


def _all_channels(k: int, space: str) -> None:
    if k != 1:
        raise InvalidInputError(f"k is {k}; on {space} all channels are searched, k = 1")


def cell_space(space: SearchSpace, method: str) -> CellSpace:
    """Return what a space is to relaxed one-shot methods.

    Raises:
        InvalidInputError: ``space`` has no supernet for them; the message names ``method``.
    """
    if isinstance(space, DartsSpace):
        return DartsCells(space)
    if isinstance(space, NasBench201Space):
        return NasBench201Cells(space)
    if isinstance(space, MBConvSpace):
        return MBConvBlocks(space)
    raise InvalidInputError(
        f"{method} searches the spaces 'darts', 'mbconv' and 'nas-bench-201', "
        f"not {space.describe()['name']!r}"
    )
