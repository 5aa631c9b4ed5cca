"""DARTS: differentiable architecture search on all channels.

Source:
    Liu et al. (2019), "DARTS: Differentiable Architecture Search", arXiv:1806.09055;
    official code github.com/quark0/darts.

It is PC-DARTS with K = 1 and without betas: every edge counts fully, so a node is the
plain sum of its edges. Notation and differences are those of ``nas.methods.pc_darts``.
"""

from __future__ import annotations

from nas.methods.bilevel import BilevelSearch
from nas.methods.bilevel_settings import BilevelSettings
from nas.plugins import MethodContext


class Darts(BilevelSearch):
    """Gradient-based search of a DARTS or NAS-Bench-201 cell on all channels, of either order.

    Parameters are those of ``nas.methods.pc_darts.PCDarts``, and whether the weights'
    momentum is Nesterov's (as on NAS-Bench-201, with batches of 48 and a decay of 5e-4).
    """

    name = "DARTS"

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 50,
        warmup_epochs: int = 0,
        batch_size: int = 64,
        order: int = 1,
        lr: float = 0.025,
        lr_min: float = 0.001,
        lr_warmup_epochs: int = 0,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        arch_lr: float = 3e-4,
        arch_weight_decay: float = 1e-3,
        arch_clip_norm: float | None = None,
        weight_share: float = 0.5,
        arch_share: float = 0.5,
        augment: bool = True,
        fused: bool = True,
        precision: str = "auto",
        report_every: int = 0,
        nesterov: bool = False,
    ) -> None:
        settings = BilevelSettings(
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            k=1,
            order=order,
            lr=lr,
            lr_min=lr_min,
            lr_warmup_epochs=lr_warmup_epochs,
            momentum=momentum,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            arch_lr=arch_lr,
            arch_weight_decay=arch_weight_decay,
            arch_clip_norm=arch_clip_norm,
            weight_share=weight_share,
            arch_share=arch_share,
            augment=augment,
            fused=fused,
            precision=precision,
            report_every=report_every,
            nesterov=nesterov,
            edge_normalisation=False,
        )
        super().__init__(context, settings)
