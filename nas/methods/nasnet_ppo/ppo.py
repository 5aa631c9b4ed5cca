"""Proximal policy optimisation of a controller whose whole architecture is one action.

Source:
    Schulman et al. (2017), "Proximal Policy Optimization Algorithms", arXiv:1707.06347,
    equation 7; the reward under a limit is that of Tan et al. (2019), "MnasNet",
    arXiv:1807.11626, equation 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nas.methods.nasnet_ppo.controller import Controller


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip: float
) -> Tensor:
    """Return ``mean(min(r A, clamp(r, 1 - clip, 1 + clip) A))``, which is to be maximised.

    ``r`` is the ratio of an architecture's probability to the one that it was drawn with.

    Args:
        log_probs: ``(batch,)``, of whole architectures, with gradient.
        old_log_probs: ``(batch,)``, when they were drawn.
        advantages: ``(batch,)``, rewards less a baseline.
        clip: How far a ratio may be from 1 before it is no longer followed.
    """
    ratios = (log_probs - old_log_probs).exp()
    clipped = ratios.clamp(1 - clip, 1 + clip)
    return torch.minimum(ratios * advantages, clipped * advantages).mean()


def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    entropies: Tensor,
    *,
    clip: float,
    entropy_weight: float,
) -> Tensor:
    """Return minus the clipped surrogate, less ``entropy_weight`` times the mean entropy.

    Arguments as for ``clipped_surrogate``; ``entropies`` are ``(batch,)``, each the sum
    over an architecture's decisions.
    """
    surrogate = clipped_surrogate(log_probs, old_log_probs, advantages, clip=clip)
    return -surrogate - entropy_weight * entropies.mean()


def moving_baseline(baseline: float | None, rewards: Iterable[float], *, decay: float) -> float:
    """Return the exponential moving average of all rewards: ``b <- decay b + (1 - decay) r``.

    It begins at the mean of the first rewards; ``baseline`` is then None.
    """
    values = list(rewards)
    if baseline is None:
        return sum(values) / len(values)
    for reward in values:
        baseline = decay * baseline + (1 - decay) * reward
    return baseline


def constrained_reward(accuracy: float, cost: float, *, ref: float, exponent: float) -> float:
    """Return ``accuracy * (ref / cost) ** exponent``: what costs more than ``ref`` earns less."""
    return float(accuracy * (ref / cost) ** exponent)


class Policy:
    """A controller, its optimiser and its baseline.

    Args:
        controller: The distribution that is trained.
        lr: Adam's learning rate.
        clip: Of the ratios.
        entropy_weight: Of the entropy's bonus.
        decay: Of the baseline.
        epochs: Passes over the same architectures in one update.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        lr: float,
        clip: float,
        entropy_weight: float,
        decay: float,
        epochs: int,
    ) -> None:
        self.controller = controller
        self.baseline: float | None = None
        self._clip, self._entropy_weight = clip, entropy_weight
        self._decay, self._epochs = decay, epochs
        self._optimizer = torch.optim.Adam(controller.parameters(), lr=lr, foreach=True)

    def learn(self, choices: Tensor, rewards: Tensor) -> dict[str, float]:
        """Move towards the better ones of architectures that were drawn just now.

        The advantage is what a reward exceeds the baseline of all before it by; at first,
        their mean.

        Args:
            choices: ``(batch, T)``, int64.
            rewards: ``(batch,)``.

        Returns:
            ``baseline`` (that the advantages were taken from), and ``entropy`` of the
            controller before the update, in nats a whole architecture.
        """
        values = rewards.tolist()
        used = moving_baseline(None, values, decay=0) if self.baseline is None else self.baseline
        advantages = (rewards - used).to(self.controller.bias.dtype)
        old: Tensor | None = None
        entropy = 0.0
        for _ in range(self._epochs):
            each, entropies = (found.sum(1) for found in self.controller(choices))
            if old is None:
                old, entropy = each.detach(), float(entropies.detach().mean())
            loss = ppo_loss(
                each,
                old,
                advantages,
                entropies,
                clip=self._clip,
                entropy_weight=self._entropy_weight,
            )
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
        self.baseline = moving_baseline(self.baseline, values, decay=self._decay)
        return {"baseline": used, "entropy": entropy}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of controller, optimiser and baseline."""
        moments = [self._optimizer.state.get(item, {}) for item in self.controller.parameters()]
        return {
            "controller": {
                name: tensor.detach().clone()
                for name, tensor in self.controller.state_dict().items()
            },
            "adam": [{name: kept.clone() for name, kept in one.items()} for one in moments],
            "baseline": self.baseline,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            KeyError: Part of it is missing.
            RuntimeError: It is of another controller.
            ValueError: As above.
        """
        self.controller.load_state_dict(state["controller"])
        kept = zip(self.controller.parameters(), state["adam"], strict=True)
        for parameter, moments in kept:
            self._optimizer.state.pop(parameter, None)
            if moments:
                self._optimizer.state[parameter] = {k: v.clone() for k, v in moments.items()}
        self.baseline = state["baseline"]
