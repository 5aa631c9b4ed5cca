"""PC-DARTS: differentiable architecture search on partial channels.

Source:
    Xu et al. (2020), "PC-DARTS: Partial Channel Connections for Memory-Efficient
    Architecture Search", arXiv:1907.05737; official code github.com/yuhuixu1993/PC-DARTS.

Notation (E edges of a cell, O operations, both kinds of cell alike):

    paper        code                      shape     meaning
    α            ArchParameters.alphas_*   (E, O)    operation weights before softmax
    β            ArchParameters.betas_*    (E,)      edge weights before softmax over a node
    w            Supernet.parameters()               operation weights, shared
    K            k                                   operations see 1/K of the channels
    D_T, D_V     first, second part of the training set

One step is one bilevel update: Adam on α, β for the loss on D_V (from ``warmup_epochs``
on), then SGD on w for the loss on D_T. See ``nas.methods.bilevel``.

Differs from the official code, on purpose:

- Epoch e (from 0) trains at the cosine's e-th value; the original under today's PyTorch
  is one epoch ahead and spends its last epoch at rate 0.
- D_V is walked in shuffled epochs like D_T; the original draws a fresh batch each step.
- A tenth of the training images is held out before they are halved, to score what was
  derived: on CIFAR-10 both parts have 22,500 images, 88 steps an epoch, for the original's
  25,000 and 98.
- Neither step computes the gradients that it does not apply.
- Edges are computed together, state by state (``nas.supernet_fused``); ``fused=False``
  computes each on its own, with the same results.
- The ImageNet search cuts its random crops from images of one stored size.
"""

from __future__ import annotations

from nas.methods.bilevel import BilevelSearch
from nas.methods.bilevel_settings import BilevelSettings
from nas.plugins import MethodContext


class PCDarts(BilevelSearch):
    """Gradient-based search of a DARTS cell on partial channels, with edge normalisation.

    Args:
        context: A ``DartsSpace``, the data whose training set is searched on, device, seed.
        epochs: Passes over the first part of the training set.
        warmup_epochs: Epochs that train weights only.
        batch_size: Images of each part in a step.
        k: Operations see 1/k of the channels; must divide ``space.channels``.
        order: 1 ignores how the weights would follow the architecture; 2 follows them by
            one step, with a finite difference, at about four times the cost.
        lr: Learning rate of the weights in the first epoch; falls along a cosine.
        lr_min: Where the cosine ends.
        lr_warmup_epochs: Epochs over which the rate is scaled up linearly.
        momentum: Of the weights' SGD.
        weight_decay: Of the weights.
        clip_norm: Largest norm of the weights' gradient.
        arch_lr: Adam's learning rate for alphas and betas.
        arch_weight_decay: Of alphas and betas, added to their gradient.
        arch_clip_norm: Largest norm of the architecture's gradient; None leaves it.
        weight_share: Share of the training set that trains the weights.
        arch_share: Share that trains the architecture.
        augment: Whether to crop and mirror the images of both parts.
        crop: ``padded``: shifted by up to an eighth of the size (as for CIFAR), or ``resized``:
            a random part, stretched to the size (as for ImageNet).
        fused: Compute all edges of a state together: the same function, faster.
        precision: ``float32``, ``bfloat16``, or ``auto``: the latter on a GPU.
        report_every: Steps between two reports with metrics, for which a GPU must be
            waited for; 0 is every step on a CPU and every 50th on a GPU.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is
            out of range.
    """

    name = "PC-DARTS"

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 50,
        warmup_epochs: int = 15,
        batch_size: int = 256,
        k: int = 4,
        order: int = 1,
        lr: float = 0.1,
        lr_min: float = 0.0,
        lr_warmup_epochs: int = 0,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        arch_lr: float = 6e-4,
        arch_weight_decay: float = 1e-3,
        arch_clip_norm: float | None = None,
        weight_share: float = 0.5,
        arch_share: float = 0.5,
        augment: bool = True,
        crop: str = "padded",
        fused: bool = True,
        precision: str = "auto",
        report_every: int = 0,
    ) -> None:
        settings = BilevelSettings(
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            k=k,
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
            crop=crop,
            fused=fused,
            precision=precision,
            report_every=report_every,
            edge_normalisation=True,
        )
        super().__init__(context, settings)


class PCDartsImageNet(BilevelSearch):
    """PC-DARTS with the published settings for ImageNet; give the space ``stem="imagenet"``.

    Parameters are those of ``PCDarts``. The weights see a tenth of each class, the
    architecture another fortieth.
    """

    name = "PC-DARTS"

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 50,
        warmup_epochs: int = 35,
        batch_size: int = 1024,
        k: int = 2,
        order: int = 1,
        lr: float = 0.5,
        lr_min: float = 0.0,
        lr_warmup_epochs: int = 5,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        arch_lr: float = 6e-3,
        arch_weight_decay: float = 1e-3,
        arch_clip_norm: float | None = 5.0,
        weight_share: float = 0.1,
        arch_share: float = 0.025,
        augment: bool = True,
        crop: str = "resized",
        fused: bool = True,
        precision: str = "auto",
        report_every: int = 0,
    ) -> None:
        settings = BilevelSettings(
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            k=k,
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
            crop=crop,
            fused=fused,
            precision=precision,
            report_every=report_every,
            edge_normalisation=True,
        )
        super().__init__(context, settings)
