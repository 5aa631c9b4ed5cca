"""Ranking all legal paths of a block, as a trie: what paths share is computed once.

Every path is scored with batch statistics of its own, and those of a layer depend only on
the path up to it. So statistics are taken once a node of the trie (a prefix of paths), in
one walk over the calibration batches in training mode, and images are scored in walks in
evaluation mode. A walk holds the features of one path at a time; scores are kept as one
number a path, whatever the number of images.

Per validation batch there are two walks: one of the target network, whose projections
are summed into the ensemble's centre, and one of the online network, whose predictions
are compared with it.

Differs from the official code, on purpose: statistics are the average over all calibration
batches, of both views (the original kept those of view 2 only), and are taken once, not
for every batch of validation images; afterwards the network is as it was, where the
original left all batch norms at momentum 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nas.blockwise import Path
from nas.methods.bossnas.ensemble import path_losses
from nas.methods.bossnas.heads import Stage

Views: TypeAlias = tuple[Tensor, Tensor]
"""View 1 and view 2 of a batch: the input of a stage."""

Statistics: TypeAlias = tuple[tuple[nn.modules.batchnorm._BatchNorm, Tensor, Tensor], ...]
"""Mean and variance ``(channels,)`` of every batch norm that a node runs."""


Key: TypeAlias = tuple[int | str, ...]
"""A prefix of paths; ``ENTRY``; or ``("head", *path)``."""

ENTRY: Key = ("entry",)


@dataclass(frozen=True)
class Node:
    """A prefix of legal paths; ``path`` is any path that begins with it, ``leaf`` its end."""

    depth: int
    path: Path
    leaf: bool
    children: tuple[Node, ...]

    def __len__(self) -> int:
        """Return the number of layers that a walk runs: the nodes below the root."""
        return sum(1 + len(child) for child in self.children)


def trie(paths: Sequence[Path]) -> Node:
    """Return the root of the trie of distinct ``paths``, all of one length.

    Its leaves come in the order of the paths if they are in lexical order.
    """

    def grow(depth: int, members: Sequence[Path]) -> Node:
        branches: dict[int, list[Path]] = {}
        if depth < len(members[0]):
            for path in members:
                branches.setdefault(path[depth], []).append(path)
        children = tuple(grow(depth + 1, branch) for branch in branches.values())
        return Node(depth, members[0], not children, children)

    return grow(0, paths)


@dataclass
class Work:
    """What a ranking ran: layers and heads, one for each batch of images of one view."""

    layers: int = 0
    heads: int = 0


@dataclass
class Walker:
    """One network's walks over the trie of its paths.

    Args:
        stage: Entry, block and head.
        root: The trie.
        interface: The interface that a path leaves, which chooses the head's adapter.
        work: Counts what was run.
    """

    stage: Stage
    root: Node
    interface: Callable[[Path], int]
    work: Work = field(default_factory=Work)
    statistics: dict[Key, Statistics] = field(default_factory=dict)

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Take the statistics of every node, the average over ``batches``; once is enough.

        Args:
            batches: Inputs of the stage ``(batch, channels, height, width)``, of all views.
        """
        features = self._measured(ENTRY, self.stage.entry, self.stage.entry, batches)
        self._calibrate(self.root, features)

    def _calibrate(self, node: Node, features: Sequence[Tensor]) -> None:
        if node.leaf:
            head = self._head(node.path)
            self.work.heads += len(features)
            self._measured(("head", *node.path), self.stage.head, head, features)
        for child in node.children:
            at, prefix = node.depth, child.path[: child.depth]
            part, run = self._part(child.path, at), self._layer(child.path, at)
            self.work.layers += len(features)
            self._calibrate(child, self._measured(prefix, part, run, features))

    def _measured(
        self,
        key: Key,
        part: nn.Module,
        run: Callable[[Tensor], Tensor],
        features: Sequence[Tensor],
    ) -> list[Tensor]:
        norms = batch_norms(part)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over batches
        part.train()
        outputs = [run(item) for item in features]
        self.statistics[key] = tuple(
            (norm, norm.running_mean.clone(), norm.running_var.clone())
            for norm in norms
            if norm.running_mean is not None
            and norm.running_var is not None
            and norm.num_batches_tracked
        )
        return outputs

    @torch.no_grad()
    def projections(self, views: Views) -> Iterator[tuple[Path, Views]]:
        """Yield every path with its projections of both views, ``(batch, dim)``.

        Both run as one batch: in evaluation mode images do not see each other.
        """
        entry = self._scored(ENTRY, self.stage.entry, self.stage.entry, torch.cat(views))
        for path, projected in self._walk(self.root, entry):
            yield path, (projected[: len(views[0])], projected[len(views[0]) :])

    def _walk(self, node: Node, features: Tensor) -> Iterator[tuple[Path, Tensor]]:
        if node.leaf:
            self.work.heads += 2
            head = self._head(node.path)
            yield node.path, self._scored(("head", *node.path), self.stage.head, head, features)
        for child in node.children:
            at, prefix = node.depth, child.path[: child.depth]
            part, run = self._part(child.path, at), self._layer(child.path, at)
            self.work.layers += 2
            yield from self._walk(child, self._scored(prefix, part, run, features))

    def _scored(
        self, key: Key, part: nn.Module, run: Callable[[Tensor], Tensor], features: Tensor
    ) -> Tensor:
        part.eval()
        load(self.statistics[key])
        return run(features)

    def _part(self, path: Path, depth: int) -> nn.Module:
        return self.stage.block.part(path, depth)

    def _layer(self, path: Path, depth: int) -> Callable[[Tensor], Tensor]:
        return lambda x: self.stage.block.layer(x, path, depth)

    def _head(self, path: Path) -> Callable[[Tensor], Tensor]:
        return lambda x: self.stage.head(x, self.interface(path))


class BlockRanking:
    """Scores all paths of a block; lower is better.

    The score of a path is the mean over images of -2 cos(q(z1), E2) - 2 cos(q(z2), E1),
    where E is the mean over all paths of the target's projections, not normalised.

    Args:
        online: The online network's stage, whose head predicts.
        target: The target network's stage.
        paths: All legal paths, distinct, of one length.
        interface: The interface that a path leaves.
        calibration: Batches of two views, inputs of a stage, that statistics are taken from.
    """

    def __init__(
        self,
        online: Stage,
        target: Stage,
        paths: Sequence[Path],
        interface: Callable[[Path], int],
        calibration: Sequence[Views],
    ) -> None:
        self.paths, self.work = tuple(paths), Work()
        self._places = {path: at for at, path in enumerate(self.paths)}
        root = trie(self.paths)
        self._online = Walker(online, root, interface, self.work)
        self._target = Walker(target, root, interface, self.work)
        flat = [view for views in calibration for view in views]
        for walker in (self._target, self._online):
            with untouched(walker.stage):
                walker.calibrate(flat)

    @torch.no_grad()
    def losses(self, views: Views) -> Tensor:
        """Return every path's loss summed over a batch of two views: ``(paths,)``, float64."""
        with untouched(self._target.stage), untouched(self._online.stage):
            sums = [torch.zeros(()), torch.zeros(())]
            for _, projected in self._target.projections(views):
                sums = [total + item for total, item in zip(sums, projected, strict=True)]
            centre = (sums[0] / len(self.paths), sums[1] / len(self.paths))
            found: list[Tensor] = [torch.empty(())] * len(self.paths)
            for path, predicted in self._online.projections(views):
                found[self._places[path]] = path_losses(predicted, centre).double().sum()
        return torch.stack(found)

    def install(self, path: Path) -> None:
        """Leave the statistics of ``path`` in the online network's batch norms."""
        keys: list[Key] = [
            ENTRY,
            *(path[: depth + 1] for depth in range(len(path))),
            ("head", *path),
        ]
        for key in keys:
            load(self._online.statistics[key])


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return all batch norms of a module that keep statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]


def load(statistics: Statistics) -> None:
    """Write kept means and variances into their batch norms."""
    for norm, mean, variance in statistics:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put back the batch norms' statistics and momentum, and all modes, at the end."""
    modes = [(part, part.training) for part in module.modules()]
    norms = batch_norms(module)
    kept = [
        (norm, norm.momentum, {name: item.clone() for name, item in norm.named_buffers()})
        for norm in norms
    ]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for norm, momentum, buffers in kept:
            norm.momentum = momentum
            for name, item in norm.named_buffers():
                item.copy_(buffers[name])
