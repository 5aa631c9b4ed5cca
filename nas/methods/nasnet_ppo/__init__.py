"""NASNet's search: a controller trained by PPO, on children that share their weights."""

from nas.methods.nasnet_ppo.controller import Controller
from nas.methods.nasnet_ppo.ppo import (
    clipped_surrogate,
    constrained_reward,
    moving_baseline,
    ppo_loss,
)
from nas.methods.nasnet_ppo.search import NasnetPPO

__all__ = [
    "Controller",
    "NasnetPPO",
    "clipped_surrogate",
    "constrained_reward",
    "moving_baseline",
    "ppo_loss",
]
