"""Ensemble bootstrapping: the target, the loss of a path, and the score of a ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

SCORE_OFFSET = 4.0
"""Added to a path's score, which is at least -4, so that sums over blocks start at 0."""


def ensemble_target(projections: Sequence[Tensor]) -> Tensor:
    """Return the mean of the paths' normalised projections, not normalised again.

    Args:
        projections: ``(batch, dim)`` of every path of the sampled set, of one view.

    Returns:
        ``(batch, dim)``, of norm at most 1.
    """
    return torch.stack([functional.normalize(item, dim=1) for item in projections]).mean(0)


def ensemble_centre(projections: Sequence[Tensor]) -> Tensor:
    """Return the mean over paths of projections as they are: what a ranking compares with."""
    return torch.stack(list(projections)).mean(0)


def path_loss(predictions: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Return -2 cos(q(z1), T2) - 2 cos(q(z2), T1), the mean over the batch, in [-4, 4].

    Each view's prediction is compared with the other view's target.

    Args:
        predictions: ``(batch, dim)`` of view 1 and of view 2.
        targets: ``(batch, dim)`` of view 1 and of view 2.
    """
    return path_losses(predictions, targets).mean()


def path_losses(predictions: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of every image, ``(batch,)``; see ``path_loss``."""
    first = functional.cosine_similarity(predictions[0], targets[1], dim=1)
    second = functional.cosine_similarity(predictions[1], targets[0], dim=1)
    return -2 * first - 2 * second


def network_score(scores: Sequence[float]) -> float:
    """Return the sum over blocks of score + 4; lower is better."""
    return sum(score + SCORE_OFFSET for score in scores)
