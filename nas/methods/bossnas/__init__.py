"""BossNAS: block-wise self-supervised search, with its rankings and derivation."""

from nas.methods.bossnas.derive import Option, best_networks
from nas.methods.bossnas.ensemble import (
    ensemble_centre,
    ensemble_target,
    network_score,
    path_loss,
    path_losses,
)
from nas.methods.bossnas.lars import Lars, lars_groups, lars_step, local_rate
from nas.methods.bossnas.paths import fair_paths, random_paths
from nas.methods.bossnas.ranking import BlockRanking
from nas.methods.bossnas.schedules import ema_momentum, learning_rate
from nas.methods.bossnas.search import BossNAS
from nas.methods.bossnas.supernets import blockwise

__all__ = [
    "BlockRanking",
    "BossNAS",
    "Lars",
    "Option",
    "best_networks",
    "blockwise",
    "ema_momentum",
    "ensemble_centre",
    "ensemble_target",
    "fair_paths",
    "lars_groups",
    "lars_step",
    "learning_rate",
    "local_rate",
    "network_score",
    "path_loss",
    "path_losses",
    "random_paths",
]
