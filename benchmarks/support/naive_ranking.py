"""The ranking loop of BossNAS's official code, on our networks: what the trie is compared with.

For every batch of validation images and every path: all batch norms are reset, the frozen
blocks and the path are run on the calibration images of both views in training mode, then
on the batch in evaluation mode, by the online and the target network. All projections are
kept until all paths were run. (The statistics are the average over both views here too, so
that results can be compared.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.blockwise import Path
from nas.methods.bossnas.ensemble import ensemble_centre, path_losses
from nas.methods.bossnas.heads import Stage
from nas.methods.bossnas.ranking import Views, batch_norms


@dataclass
class Forwards:
    """Block forwards that were run: of frozen blocks and of the block that is ranked."""

    frozen: int = 0
    ranked: int = 0


@torch.no_grad()
def rank(
    online: Stage,
    target: Stage,
    frozen: Sequence[nn.Module],
    paths: Sequence[Path],
    interface: Callable[[Path], int],
    calibration: Views,
    batches: Sequence[Views],
) -> tuple[Tensor, Forwards]:
    """Return every path's loss summed over all batches, and what that took."""
    done = Forwards()
    sums = torch.zeros(len(paths), dtype=torch.float64)
    for batch in batches:
        projections: list[tuple[list[Tensor], list[Tensor]]] = []
        for path in paths:
            outputs: list[list[Tensor]] = []
            calibrated = [_prefix(frozen, view, done) for view in calibration]
            images = [_prefix(frozen, view, done) for view in batch]
            for stage in (online, target):
                _recalibrate(stage, path, interface(path), calibrated, done)
                stage.eval()
                done.ranked += len(images)
                outputs.append([stage(view, path, interface(path)) for view in images])
            projections.append((outputs[0], outputs[1]))
        centre = tuple(
            ensemble_centre([target_views[view] for _, target_views in projections])
            for view in range(2)
        )
        for at, (predicted, _) in enumerate(projections):
            losses = path_losses((predicted[0], predicted[1]), (centre[0], centre[1]))
            sums[at] += losses.double().sum()
    return sums, done


def _prefix(frozen: Sequence[nn.Module], images: Tensor, done: Forwards) -> Tensor:
    for block in frozen:
        images = block(images)
        done.frozen += 1
    return images


def _recalibrate(
    stage: Stage, path: Path, interface: int, images: Sequence[Tensor], done: Forwards
) -> None:
    for norm in batch_norms(stage):
        norm.reset_running_stats()
        norm.momentum = None
    stage.train()
    for view in images:
        stage(view, path, interface)
        done.ranked += 1
