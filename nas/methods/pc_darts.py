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
    D_T, D_V     first, second half of the training set

One step is one first-order bilevel update: Adam on α, β for the loss on D_V (from
``warmup_epochs`` on), then SGD on w for the loss on D_T.

Differs from the official code, on purpose:

- Epoch e (from 0) trains at the cosine's e-th value; the original under today's PyTorch
  is one epoch ahead and spends its last epoch at rate 0.
- D_V is walked in shuffled epochs like D_T; the original draws a fresh batch each step.
- Neither step computes the gradients that it does not apply.
- All randomness of an epoch or step is derived from the seed and its number, so that
  a checkpoint needs no generator and a resumed search repeats bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.derivation import derive, ranked
from nas.plugins import MethodContext
from nas.protocols import StepReport
from nas.spaces.darts import DartsSpace, Genotype
from nas.supernet import ArchParameters, Mixture, Supernet
from zoo.errors import ConflictError, InvalidInputError, TrainerError
from zoo.rng import derive_seed
from zoo.spec import Architecture


class PCDarts:
    """Gradient-based search of a DARTS cell on partial channels, with edge normalisation.

    Args:
        context: A ``DartsSpace``, the data whose training set is searched on, device, seed.
        epochs: Passes over the first half of the training set.
        warmup_epochs: Epochs that train weights only.
        batch_size: Images of each half in a step.
        k: Operations see 1/k of the channels; must divide ``space.channels``.
        lr: Learning rate of the weights in the first epoch; falls along a cosine.
        lr_min: Where the cosine ends.
        momentum: Of the weights' SGD.
        weight_decay: Of the weights.
        clip_norm: Largest norm of the weights' gradient.
        arch_lr: Adam's learning rate for alphas and betas.
        arch_weight_decay: Of alphas and betas, added to their gradient.
        augment: Whether to crop and mirror the images of both halves.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is
            out of range.
    """

    trains = True

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 50,
        warmup_epochs: int = 15,
        batch_size: int = 256,
        k: int = 4,
        lr: float = 0.1,
        lr_min: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        arch_lr: float = 6e-4,
        arch_weight_decay: float = 1e-3,
        augment: bool = True,
    ) -> None:
        if not isinstance(context.space, DartsSpace):
            raise InvalidInputError(
                f"PC-DARTS searches the space 'darts', not {context.space.describe()['name']!r}"
            )
        if context.data is None or len(context.data.train) < 4:
            raise InvalidInputError("PC-DARTS needs a training set of at least 4 images")
        _check(
            ("epochs", epochs, epochs >= 1, "at least 1"),
            ("warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0"),
            ("batch_size", batch_size, batch_size >= 2, "at least 2"),
            ("lr", lr, lr > 0, "above 0"),
            ("lr_min", lr_min, 0 <= lr_min <= lr, "between 0 and lr"),
            ("clip_norm", clip_norm, clip_norm > 0, "above 0"),
            ("arch_lr", arch_lr, arch_lr > 0, "above 0"),
        )
        self.space = context.space
        self.epochs, self.warmup_epochs, self.batch_size = epochs, warmup_epochs, batch_size
        self.lr, self.lr_min, self.clip_norm = lr, lr_min, clip_norm
        self._seed, self._device = context.seed, context.device
        self._data = context.data.to(context.device)
        self._augment = augment
        self._half = len(self._data.train) // 2
        self._orders: tuple[int, tuple[Tensor, Tensor]] | None = None
        self._step = 0
        self._build(k)
        self._weight_optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            foreach=True,
        )
        self._arch_optimizer = torch.optim.Adam(
            self.arch.parameters(), lr=arch_lr, betas=(0.5, 0.999), weight_decay=arch_weight_decay
        )

    def _build(self, k: int) -> None:
        in_chans = self._data.train.images.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "pc-darts", "weights"))
            supernet = Supernet(
                self.space, in_chans=in_chans, num_classes=self._data.num_classes, k=k
            )
        arch = ArchParameters(
            self.space.nodes, len(self.space.ops), generator=self._generator("alphas")
        )
        self.supernet = supernet.to(self._device).train()
        self.arch = arch.to(self._device)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._half // self.batch_size)

    @property
    def total(self) -> int:
        """Number of steps of the whole search."""
        return self.epochs * self.steps_per_epoch

    def step(self) -> StepReport:
        """Take one bilevel update.

        Raises:
            ConflictError: The search is over.
            TrainerError: A loss is not finite, or the device ran out of memory.
        """
        if self._step >= self.total:
            raise ConflictError(f"the search is over: all {self.total} steps are done")
        epoch, index = divmod(self._step, self.steps_per_epoch)
        warm = epoch < self.warmup_epochs
        try:
            measured = {} if warm else self._arch_step(*self._batch(epoch, index, half=1))
            measured |= self._weight_step(*self._batch(epoch, index, half=0), epoch)
        except torch.OutOfMemoryError as error:
            raise TrainerError(
                f"{self._device} ran out of memory at batch size {self.batch_size}; "
                f"use a smaller one or a larger k: {error}"
            ) from error
        values = torch.stack(list(measured.values())).tolist()
        metrics = dict(zip(measured, values, strict=True)) | {"lr": self.learning_rate(epoch)}
        if not all(math.isfinite(value) for value in values):
            raise TrainerError(
                f"the loss became {metrics['loss']} in epoch {epoch + 1} of {self.epochs}; "
                f"lower the learning rate ({self.lr})"
            )
        self._step += 1
        phase = "weights only" if warm else "weights and architecture"
        return StepReport(
            step=self._step,
            total=self.total,
            message=f"epoch {epoch + 1} of {self.epochs}, {phase}",
            metrics=metrics,
        )

    def best(self, k: int) -> list[Architecture]:
        """Return the derived architecture, then those that replace its least certain decisions."""
        return list(islice(ranked(self.space, self._mixtures()), max(k, 0)))

    def genotype(self) -> Genotype:
        """Return the derived genotype; a node's edges with the best first."""
        return derive(self.space, self._mixtures())

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of the weights in ``epoch``, counted from 0."""
        cosine = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr_min + (self.lr - self.lr_min) * cosine

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all state; generators are none of it, see the module's head."""
        return {
            "step": self._step,
            "supernet": _copy(self.supernet.state_dict()),
            "arch": _copy(self.arch.state_dict()),
            "weight_optimizer": _optimizer_state(self._weight_optimizer),
            "arch_optimizer": _optimizer_state(self._arch_optimizer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            InvalidInputError: ``state`` is of another space or another method.
        """
        try:
            self.supernet.load_state_dict(state["supernet"])
            self.arch.load_state_dict(state["arch"])
            _load_optimizer(self._weight_optimizer, state["weight_optimizer"])
            _load_optimizer(self._arch_optimizer, state["arch_optimizer"])
            self._step = int(state["step"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InvalidInputError(
                f"this state is not of a PC-DARTS search over {self.space.describe()}: {error}"
            ) from error

    def _arch_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.supernet.requires_grad_(False)
        self._arch_optimizer.zero_grad(set_to_none=True)
        logits = self.supernet(images, self.arch())
        loss = F.cross_entropy(logits, labels)
        torch.autograd.backward(loss)
        self._arch_optimizer.step()
        return {"arch_loss": loss.detach(), "arch_accuracy": _accuracy(logits, labels)}

    def _weight_step(self, images: Tensor, labels: Tensor, epoch: int) -> dict[str, Tensor]:
        self.supernet.requires_grad_(True)
        for group in self._weight_optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        self._weight_optimizer.zero_grad(set_to_none=True)
        logits = self.supernet(images, self._mixtures())
        loss = F.cross_entropy(logits, labels)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.supernet.parameters(), self.clip_norm, foreach=True)
        self._weight_optimizer.step()
        return {"loss": loss.detach(), "train_accuracy": _accuracy(logits, labels)}

    def _mixtures(self) -> dict[str, Mixture]:
        with torch.no_grad():
            return self.arch()

    def _batch(self, epoch: int, index: int, *, half: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of one step: half 0 trains weights, half 1 the architecture."""
        if self._orders is None or self._orders[0] != epoch:
            self._orders = (epoch, (self._order(epoch, 0), self._order(epoch, 1)))
        start = index * self.batch_size
        # Both halves take as many images in a step, also in the last one of an epoch.
        stop = min(start + self.batch_size, self._half)
        chosen = self._orders[1][half][start:stop]
        images = self._data.train.images[chosen]
        if self._augment:
            images = self._data.augment(images, self._generator("augment", epoch, index, half))
        return self._data.normalize(images), self._data.train.labels[chosen]

    def _order(self, epoch: int, half: int) -> Tensor:
        size = len(self._data.train) - self._half if half else self._half
        order = torch.randperm(size, generator=self._generator("order", epoch, half))
        return (order + half * self._half).to(self._device)

    def _generator(self, *labels: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, "pc-darts", *labels))


def _check(*rules: tuple[str, float, bool, str]) -> None:
    for name, value, holds, wanted in rules:
        if not holds:
            raise InvalidInputError(f"{name} is {value}; it must be {wanted}")


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what the optimiser remembers of each parameter, in order; settings are not state."""
    return [
        {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in optimizer.state.get(parameter, {}).items()
        }
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def _load_optimizer(optimizer: torch.optim.Optimizer, state: list[dict[str, Any]]) -> None:
    remembered = {
        at: {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in item.items()
        }
        for at, item in enumerate(state)
        if item
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": remembered, "param_groups": groups})
