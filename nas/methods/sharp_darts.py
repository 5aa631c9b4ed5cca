"""sharpDARTS: DARTS over SharpSepConv, with cosine power annealing and Max-W.

Source:
    Hundt et al. (2019), "sharpDARTS: Faster and More Accurate Differentiable Architecture
    Search", arXiv:1903.09900; official code github.com/ahundt/sharpDARTS.

Notation (E edges of a cell, O operations, both kinds of cell alike):

    paper        code                      shape     meaning
    α            ArchParameters.alphas_*   (E, O)    operation weights before softmax
    w            softmax(α)                (E, O)    operation weights
    w'           nas.supernet.max_w        (E, O)    1 - max_k w_k + w_o, Max-W
    C_mid        Sharp.mid_chans                     width between an operation's two halves
    p            lr_power                            of nas.schedules.cosine_power
    W            lr_warmup_epochs                    of nas.schedules.cosine_power

It is DARTS (``nas.methods.darts``): no betas, all channels, alphas updated from the first
epoch on. What is sharp is the space (``DartsSpace(ops="sharp-darts")``, ``"sharp"`` or
``"sharper"``), the learning rate, the augmentation and, if ``weighting`` says so, Max-W. A
cell is derived from the softmaxes, also under Max-W, where every edge's strongest operation
weighs 1 and edges could not be told apart.

Differs from the official code, on purpose:

- Max-W comes in both forms: ``max_w`` lets the gradient flow through the maximum, as the
  code does; ``max_w_stopped`` does not, as its comment says.
- Operations are corrected (``zoo.families.darts_operations``), and the size is halved
  after a reduction as in DARTS, where theirs looks at a quarter of the pixels.
- The cell of the last epoch is derived, not of the epoch that is best on the test set;
  ``none`` is always skipped.
- The search over networks of several widths (MultiChannelNet) is left out.
- Differences of ``nas.methods.pc_darts`` in batches and gradients hold here too.
"""

from __future__ import annotations

from nas.methods.bilevel import BilevelSearch
from nas.methods.bilevel_settings import BilevelSettings
from nas.plugins import MethodContext


class SharpDarts(BilevelSearch):
    """Gradient-based search of a DARTS cell with cosine power annealing and Max-W weights.

    Args:
        context: A ``DartsSpace``, the data whose training set is searched on, device, seed.
        epochs: Passes over the first part of the training set.
        warmup_epochs: Epochs that train weights only.
        batch_size: Images of each part in a step.
        order: As in ``nas.methods.pc_darts.PCDarts``.
        lr: Highest learning rate of the weights.
        lr_min: The last one.
        lr_power: How early it falls: 1 is a cosine, 10 nearly exponential.
        lr_warmup_epochs: Epochs over which it rises; below ``epochs``.
        momentum: Of the weights' SGD.
        weight_decay: Of the weights.
        clip_norm: Largest norm of the weights' gradient.
        arch_lr: Adam's learning rate for alphas.
        arch_weight_decay: Of alphas, added to their gradient.
        arch_clip_norm: Largest norm of the architecture's gradient; None leaves it.
        weighting: ``scalar``, the softmax itself; ``max_w`` or ``max_w_stopped``, Max-W with
            or without a gradient through the maximum.
        weight_share: Share of the training set that trains the weights.
        arch_share: Share that trains the architecture.
        augment: Whether to crop and mirror the images of both parts.
        auto_augment: Whether to change them by AutoAugment's policy for CIFAR-10 too.
        cutout: Side of the square that is blanked in each, as a share of the height.
        fused: Compute all edges of a state together: the same function, faster.
        precision: ``float32``, ``bfloat16``, or ``auto``: the latter on a GPU.
        report_every: Steps between two reports with metrics; 0 is every step on a CPU and
            every 50th on a GPU.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is
            out of range.
    """

    name = "sharpDARTS"

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 50,
        warmup_epochs: int = 0,
        batch_size: int = 64,
        order: int = 1,
        lr: float = 0.025,
        lr_min: float = 1e-4,
        lr_power: float = 2.0,
        lr_warmup_epochs: int = 5,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        arch_lr: float = 3e-4,
        arch_weight_decay: float = 1e-3,
        arch_clip_norm: float | None = None,
        weighting: str = "scalar",
        weight_share: float = 0.5,
        arch_share: float = 0.5,
        augment: bool = True,
        auto_augment: bool = True,
        cutout: float = 0.5,
        fused: bool = True,
        precision: str = "auto",
        report_every: int = 0,
    ) -> None:
        settings = BilevelSettings(
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            k=1,
            order=order,
            lr=lr,
            lr_min=lr_min,
            lr_power=lr_power,
            lr_warmup_epochs=lr_warmup_epochs,
            momentum=momentum,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            arch_lr=arch_lr,
            arch_weight_decay=arch_weight_decay,
            arch_clip_norm=arch_clip_norm,
            weighting=weighting,
            weight_share=weight_share,
            arch_share=arch_share,
            augment=augment,
            auto_augment=auto_augment,
            cutout=cutout,
            fused=fused,
            precision=precision,
            report_every=report_every,
            edge_normalisation=False,
        )
        super().__init__(context, settings)
