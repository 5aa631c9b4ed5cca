"""What lets a ProxylessNAS search be split: see ``nas.methods.one_shot.OneShot``."""

from __future__ import annotations

import abc
import random
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.data import DataSet
from nas.masks import allowed, full_mask
from nas.methods.one_shot import Confinement, OperationGradients, gradient_rows, untouched
from nas.methods.proxyless.batches import Batches
from nas.methods.proxyless.costs import CostTable
from nas.methods.proxyless.derive import smallest
from nas.methods.proxyless.parameters import ArchParameters
from nas.methods.proxyless.supernet import Supernet
from nas.methods.proxyless.target import Cap
from nas.spaces.mbconv import MBConvSpace
from zoo.errors import InvalidInputError
from zoo.spec import Architecture


class Splitting(abc.ABC):
    """The part of ``Proxyless`` that splitting asks for; its attributes are the search's."""

    space: MBConvSpace
    arch: ArchParameters
    supernet: Supernet
    cap: Cap | None
    batch_size: int
    warmup_epochs: int
    epochs: int
    _batches: Batches
    _data: DataSet
    _mask: Tensor
    _frozen: bool
    _seed: int
    _smoothing: float
    _held_out: float
    _augment: bool
    _device: torch.device

    @abc.abstractmethod
    def _start(self) -> None:
        """Draw weights and alphas, with fresh optimisers and at step 0."""

    @abc.abstractmethod
    def best(self, k: int) -> list[Architecture]:
        """Return the ``k`` likeliest networks of the mask."""

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.per_epoch(self.batch_size)

    def options(self) -> Tensor:
        """Return the mask of all operations, ``zero`` where a block may have it."""
        return full_mask(self.space.cardinalities())

    def splittable(self) -> tuple[int, ...]:
        """Return all searched blocks."""
        return tuple(range(len(self.space.edges)))

    def confine(self, terms: Confinement) -> None:
        """Train under these terms from now on; weights and state are left as they are.

        Raises:
            InvalidInputError: The schedule ends within the warm-up.
        """
        if terms.epochs <= self.warmup_epochs:
            raise InvalidInputError(
                f"a schedule of {terms.epochs} epochs leaves none after the warm-up of "
                f"{self.warmup_epochs}; set warmup_epochs lower"
            )
        self.epochs = terms.epochs - self.warmup_epochs
        self._mask, self._frozen = terms.mask, terms.frozen
        if terms.seed != self._seed:
            self._seed = terms.seed
            self._batches = Batches(
                self._data, held_out=self._held_out, seed=terms.seed, augment=self._augment
            )
        self.arch.confine(terms.mask, seed=terms.seed)

    def restart(self) -> None:
        """Draw weights and alphas anew; forget optimisers and steps."""
        self._start()

    def operation_gradients(self, edge: int, batch: int, *, hard: bool) -> OperationGradients:
        """Return the gradients of the weights' loss with ``edge`` set to each allowed operation.

        The other blocks run one sampled path, the same for all. Weights of paths that are
        not run have no gradient under any operation, and are left out. A path has weight 1
        anyway, so ``hard`` makes no difference.
        """
        lap, index = divmod(batch, self.steps_per_epoch)
        images, labels = self._batches.train(-1 - lap, index, self.batch_size)
        paths = self.arch.draw("match", batch).paths
        self.supernet.requires_grad_(True)

        def loss(op: int) -> Tensor:
            logits = self.supernet(images, [*paths[:edge], op, *paths[edge + 1 :]])
            return F.cross_entropy(logits, labels, label_smoothing=self._smoothing)

        net = self.supernet
        blocks = [block for at, block in enumerate(self.supernet.blocks) if at != edge]
        run = [
            ops[path] for ops, path in zip(map(_paths, blocks), _without(paths, edge), strict=True)
        ]
        modules = [net.stem, net.first, *filter(None, run), net.last, net.classifier]
        parameters = [weight for module in modules for weight in module.parameters()]
        with untouched(net):
            losses = [partial(loss, op) for op in allowed(self._mask)[edge]]
            return gradient_rows(losses, parameters)

    def propose(self, count: int, rng: random.Random) -> list[Architecture]:
        """Return the likeliest networks of the mask; none if none of them meets the cap."""
        if self.cap is not None:
            rows = allowed(self._mask)
            table = confined(self.cap.table, rows)
            if table.total(smallest(table, [[0.0] * len(row) for row in rows])) > self.cap.max:
                return []
        return self.best(count)

    @torch.no_grad()
    def correct(self, architecture: Architecture, images: Tensor, labels: Tensor) -> Tensor:
        """Count what one path gets right, with the statistics of ``images`` themselves."""
        images = images.contiguous(memory_format=torch.channels_last)
        with untouched(self.supernet):
            return (self.supernet(images, architecture.choices).argmax(1) == labels).sum()


def confined(table: CostTable, rows: Sequence[Sequence[int]]) -> CostTable:
    """Return the costs of the operations of ``rows`` alone, in their order."""
    ops = table.ops.new_zeros(len(rows), max(map(len, rows)))
    for at, row in enumerate(rows):
        ops[at, : len(row)] = table.ops[at, list(row)]
    return CostTable(table.fixed, ops)


def _paths(block: torch.nn.Module) -> list[torch.nn.Module | None]:
    """Return the modules of a block's operations, None for ``zero``."""
    found: list[torch.nn.Module | None] = block.ops  # type: ignore[assignment]
    return found


def _without(paths: Sequence[int], edge: int) -> list[int]:
    return [*paths[:edge], *paths[edge + 1 :]]
