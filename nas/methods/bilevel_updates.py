"""The two updates of a bilevel search: weights on one half of the data, architecture on the other.

Source:
    Liu et al. (2019), "DARTS", arXiv:1806.09055, eq. 5 to 8; official code
    github.com/quark0/darts (``architect.py``).

Notation: w weights, α architecture parameters (alphas and betas), ξ the weights' learning
rate, w' = w − ξ·(momentum + ∇_w L_train) the next weights. The second-order gradient is
∇_α L_val(w', α) − ξ·(∇_α L_train(w⁺, α) − ∇_α L_train(w⁻, α)) / 2ε with
w± = w ± ε·∇_w' L_val(w', α) and ε = 0.01 / ‖∇_w' L_val(w', α)‖.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.methods.bilevel_settings import BilevelSettings
from nas.supernet import ArchParameters, Mixture, Supernet
from nas.supernet_fused import stack, unstack

FINITE_DIFFERENCE = 1e-2


class BilevelUpdates:
    """Both updates with their optimisers.

    On a GPU the optimisers are fused and keep their settings in tensors there, so that
    an update can be captured in a graph; nothing here waits for the device.

    Args:
        supernet: On its device, in training mode.
        arch: On the same device.
        settings: Rates, decays, norms, order.
        half_precision: Compute in bfloat16, but statistics, softmaxes and losses.
    """

    def __init__(
        self,
        supernet: Supernet,
        arch: ArchParameters,
        settings: BilevelSettings,
        *,
        half_precision: bool,
    ) -> None:
        self.supernet, self.arch = supernet, arch
        self._settings, self._half_precision = settings, half_precision
        self._device = next(arch.parameters()).device
        gpu = self._device.type == "cuda"
        self._weights: list[Tensor] = list(supernet.parameters())
        self.weight_optimizer = torch.optim.SGD(
            self._weights,
            lr=torch.tensor(settings.lr, device=self._device) if gpu else settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            foreach=not gpu,
            fused=gpu,
        )
        self.arch_optimizer = torch.optim.Adam(
            arch.parameters(),
            lr=settings.arch_lr,
            betas=(0.5, 0.999),
            weight_decay=settings.arch_weight_decay,
            capturable=gpu,
            fused=gpu,
        )

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the weights."""
        for group in self.weight_optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def weights(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Take one clipped step of SGD on the weights; return loss and accuracy."""
        self.supernet.requires_grad_(True)
        self.weight_optimizer.zero_grad(set_to_none=True)
        logits, loss = self._loss(images, labels, self.mixtures())
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._weights, self._settings.clip_norm, foreach=True)
        self.weight_optimizer.step()
        return {"loss": loss.detach(), "train_accuracy": _accuracy(logits, labels)}

    def architecture(
        self, images: Tensor, labels: Tensor, train_images: Tensor, train_labels: Tensor
    ) -> dict[str, Tensor]:
        """Take one step of Adam on the architecture; return loss and accuracy.

        The weights come out bit for bit as they went in. The batch of training data is
        read by the second-order step only.
        """
        self.arch_optimizer.zero_grad(set_to_none=True)
        if self._settings.order == 1:
            self.supernet.requires_grad_(False)
            logits, loss = self._loss(images, labels, self.arch())
            torch.autograd.backward(loss)
        else:
            self.supernet.requires_grad_(True)
            logits, loss = self._second_order(images, labels, train_images, train_labels)
        if self._settings.arch_clip_norm is not None:
            nn.utils.clip_grad_norm_(
                self.arch.parameters(), self._settings.arch_clip_norm, foreach=True
            )
        self.arch_optimizer.step()
        return {"arch_loss": loss.detach(), "arch_accuracy": _accuracy(logits, labels)}

    def mixtures(self) -> dict[str, Mixture]:
        """Return the mixtures of the present architecture parameters, detached."""
        with torch.no_grad():
            return self.arch()

    def shares(self) -> dict[str, Mixture]:
        """Return the softmaxes of the present architecture parameters, detached."""
        with torch.no_grad():
            return self.arch.shares()

    def momenta(self) -> dict[str, Tensor]:
        """Return a copy of the weights' momenta, by the names of the unfused network."""
        named = {
            name: state["momentum_buffer"].clone()
            for name, weight in self.supernet.named_parameters()
            if (state := self.weight_optimizer.state.get(weight))
        }
        unstack(self.supernet, named)
        return named

    def load_momenta(self, momenta: dict[str, Tensor]) -> None:
        """Take over what ``momenta`` returned.

        Raises:
            KeyError: A weight is missing.
        """
        named = dict(momenta)
        stack(self.supernet, named)
        self.weight_optimizer.state.clear()
        for name, weight in self.supernet.named_parameters() if named else ():
            buffer = torch.empty_like(weight).copy_(named[name])
            self.weight_optimizer.state[weight] = {"momentum_buffer": buffer}

    def _loss(
        self, images: Tensor, labels: Tensor, mixtures: dict[str, Mixture]
    ) -> tuple[Tensor, Tensor]:
        # Each weight is cast once a pass anyway, and a cache must not outlive a graph.
        autocast: AbstractContextManager[Any] = torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._half_precision, cache_enabled=False
        )
        with autocast:
            logits = self.supernet(images, mixtures)
            return logits, F.cross_entropy(logits, labels)

    def _second_order(
        self, images: Tensor, labels: Tensor, train_images: Tensor, train_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Leave the second-order gradient in ``grad`` of the architecture parameters."""
        arch = list(self.arch.parameters())
        before = [weight.detach().clone() for weight in self._weights]
        rate = self.weight_optimizer.param_groups[0]["lr"]
        _, loss = self._loss(train_images, train_labels, self.mixtures())
        ahead = self._ahead(torch.autograd.grad(loss, self._weights), rate)
        self._set_weights(ahead)
        logits, loss = self._loss(images, labels, self.arch())
        # A kind of cell that the network does not have leaves its parameters without gradient.
        gradients = torch.autograd.grad(loss, [*self._weights, *arch], allow_unused=True)
        vector, direct = gradients[: len(before)], gradients[len(before) :]
        epsilon = FINITE_DIFFERENCE / torch.nn.utils.get_total_norm(vector)
        sides = []
        for sign in (1, -1):
            shifts = torch._foreach_mul(vector, sign * epsilon)
            self._set_weights(torch._foreach_add(before, shifts))
            _, side = self._loss(train_images, train_labels, self.arch())
            sides.append(torch.autograd.grad(side, arch, allow_unused=True))
        self._set_weights(before)
        for parameter, first, plus, minus in zip(arch, direct, *sides, strict=True):
            if first is not None:
                parameter.grad = first - rate * (plus - minus) / (2 * epsilon)
        return logits, loss

    def _ahead(self, gradients: Sequence[Tensor], rate: float | Tensor) -> list[Tensor]:
        """Return the weights after a step of SGD, unclipped as in the original."""
        ahead = []
        for weight, gradient in zip(self._weights, gradients, strict=True):
            direction = gradient + self._settings.weight_decay * weight.detach()
            state = self.weight_optimizer.state.get(weight)
            if state:
                direction += self._settings.momentum * state["momentum_buffer"]
            ahead.append(weight.detach() - rate * direction)
        return ahead

    def _set_weights(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._weights, list(values))


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()
