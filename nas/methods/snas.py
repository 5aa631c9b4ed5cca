"""SNAS: stochastic neural architecture search, by Gumbel-softmax samples of the cell.

Source:
    Xie et al. (2019), "SNAS: Stochastic Neural Architecture Search", arXiv:1812.09926;
    Jang et al. (2017), arXiv:1611.01144 for the relaxation.

Notation (E edges of a cell, O operations):

    paper   code                     shape     meaning
    α       ArchParameters.alphas_*  (E, O)    logits of the operations
    G       noise                    (E, O)    standard Gumbel, one draw an update
    λ       temperature              ()        from ``tau_max`` to ``tau_min``, an epoch at a time
    Z       Mixture.ops              (E, O)    softmax((log p + G) / λ)

A step is that of ``nas.methods.bilevel``; each of its two updates has a draw of its own.

Differs from the paper, on purpose: α is trained on the second half of the data, bilevel as
in DARTS, which is how the few-shot papers use it; the paper trains both on one loss. The
paper's resource penalty is left to limits and objectives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nas.methods.bilevel import BilevelSearch
from nas.methods.bilevel_settings import BilevelSettings
from nas.methods.one_shot import Confinement
from nas.methods.proxyless.gates import gumbel
from nas.plugins import MethodContext
from nas.spaces.darts import DartsSpace
from nas.supernet import ArchParameters, Mixture, masked_softmax
from zoo.errors import InvalidInputError


def gumbel_softmax(
    alphas: Tensor, noise: Tensor, tau: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return softmax((log p + noise) / tau) with p = softmax(alphas), an edge at a time.

    log p differs from alpha by a constant of the edge, which the outer softmax takes out.

    Args:
        alphas: ``(edges, operations)``.
        noise: Standard Gumbel, of the same shape.
        tau: Temperature, above 0.
        mask: True where an operation is allowed; others get exactly 0.
    """
    return masked_softmax((alphas + noise) / tau, mask)


def temperature(epoch: int, epochs: int, tau_max: float, tau_min: float) -> float:
    """Return the temperature of ``epoch``, from 0: linear, at ``tau_min`` after ``epochs``.

    As in the few-shot code, so the last epoch is a step above ``tau_min``.
    """
    return (1 - epoch / epochs) * (tau_max - tau_min) + tau_min


class GumbelParameters(ArchParameters):
    """Architecture parameters whose mixtures are samples; ``draw`` sets the noise."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for kind in self.kinds:
            zeros = torch.zeros(sum(self.inputs), self.num_ops)
            self.register_buffer(f"noise_{kind}", zeros, persistent=False)
        self.register_buffer("tau", torch.ones(()), persistent=False)

    def draw(self, generator: torch.Generator, tau: float) -> None:
        """Draw the noise of the next mixtures, in place."""
        for kind in self.kinds:
            noise = self.get_buffer(f"noise_{kind}")
            noise.copy_(gumbel(tuple(noise.shape), generator))
        self.get_buffer("tau").fill_(tau)

    def weights(self, kind: str) -> Tensor:
        alphas, noise = self.get_parameter(f"alphas_{kind}"), self.get_buffer(f"noise_{kind}")
        return gumbel_softmax(alphas, noise, self.get_buffer("tau"), self._masks.get(kind))

    def expected(self) -> dict[str, Mixture]:
        """Return the probabilities of the operations, without noise."""
        with torch.no_grad():
            return {
                kind: Mixture(
                    ops=masked_softmax(self.get_parameter(f"alphas_{kind}"), self._masks.get(kind)),
                    edges=self._edges(kind),
                    active=self.active(kind),
                )
                for kind in self.kinds
            }


class Snas(BilevelSearch):
    """Search of a cell or an MBConv chain by relaxed samples under a falling temperature.

    Args:
        context: A ``DartsSpace``, ``NasBench201Space`` or ``MBConvSpace``, data, device, seed.
        epochs: Passes over the first part of the training set.
        warmup_epochs: Epochs that train weights only.
        batch_size: Images of each part in a step.
        tau_max: Temperature of the first epoch.
        tau_min: Where it ends, after the last; None takes 0.1, on the DARTS space 0.03.
        lr: Learning rate of the weights in the first epoch; falls along a cosine.
        lr_min: Where the cosine ends.
        momentum: Of the weights' SGD.
        nesterov: Whether it is Nesterov's.
        weight_decay: Of the weights.
        clip_norm: Largest norm of the weights' gradient.
        arch_lr: Adam's learning rate for alphas.
        arch_weight_decay: Of alphas, added to their gradient.
        weight_share: Share of the training set that trains the weights.
        arch_share: Share that trains the architecture.
        augment: Whether to crop and mirror the images of both parts.
        fused: Compute all edges of a state of a DARTS cell together.
        precision: ``float32``, ``bfloat16``, or ``auto``: the latter on a GPU.
        report_every: Steps between two reports with metrics; 0 is the default of the device.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is
            out of range.
    """

    name = "SNAS"
    arch: GumbelParameters
    _arch = GumbelParameters

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 50,
        warmup_epochs: int = 0,
        batch_size: int = 64,
        tau_max: float = 1.0,
        tau_min: float | None = None,
        lr: float = 0.025,
        lr_min: float = 0.001,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        arch_lr: float = 3e-4,
        arch_weight_decay: float = 1e-3,
        weight_share: float = 0.5,
        arch_share: float = 0.5,
        augment: bool = True,
        fused: bool = True,
        precision: str = "auto",
        report_every: int = 0,
    ) -> None:
        if tau_min is None:
            tau_min = 0.03 if isinstance(context.space, DartsSpace) else 0.1
        if not 0 < tau_min <= tau_max:
            raise InvalidInputError(
                f"tau_min is {tau_min} and tau_max {tau_max}; they must be above 0 and ascending"
            )
        self._taus, self._cooling = (tau_max, tau_min), epochs
        settings = BilevelSettings(
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            k=1,
            order=1,
            lr=lr,
            lr_min=lr_min,
            lr_warmup_epochs=0,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            arch_lr=arch_lr,
            arch_weight_decay=arch_weight_decay,
            arch_clip_norm=None,
            weight_share=weight_share,
            arch_share=arch_share,
            augment=augment,
            fused=fused,
            precision=precision,
            report_every=report_every,
            edge_normalisation=False,
        )
        super().__init__(context, settings)

    def confine(self, terms: Confinement) -> None:
        """Train under these terms from now on; weights and state are left as they are."""
        self._cooling = terms.epochs if terms.cooling is None else terms.cooling
        super().confine(terms)

    def _draw(self, epoch: int, index: int, *, part: int) -> None:
        # Batches that are only measured have negative epochs: they take the present one's.
        now = epoch if epoch >= 0 else self._step // self.steps_per_epoch
        tau = temperature(min(now, self._cooling), self._cooling, *self._taus)
        self.arch.draw(self._generator("gumbel", epoch, index, part), tau)

    def _relaxed(self) -> dict[str, Mixture]:
        return self.arch.expected()
