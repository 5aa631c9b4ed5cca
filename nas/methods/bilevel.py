"""The loop that gradient-based cell searches share: batches, schedule, state, reports.

One step is one bilevel update (``nas.methods.bilevel_updates``): the architecture on a
batch of the second part of the training set (from ``warmup_epochs`` on), then the weights
on a batch of the first. All randomness of an epoch or step is derived from the seed and
its number, so that a checkpoint needs no generator and a resumed search repeats bit for bit.

On a GPU the data stay there as uint8 and are cropped and mirrored there, each update
is one CUDA graph in bfloat16 with statistics and architecture parameters in float32,
and the host waits for the device only where numbers are reported.
"""

from __future__ import annotations

import abc
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.cuda_graphs import GraphedStep, Step
from nas.data.policies import auto_augment
from nas.derivation import derive
from nas.masks import allowed
from nas.methods.bilevel_settings import BilevelSettings
from nas.methods.bilevel_updates import BilevelUpdates
from nas.methods.cell_spaces import cell_space
from nas.methods.one_shot import Confinement, OperationGradients, gradient_rows, untouched
from nas.plugins import MethodContext
from nas.protocols import StepReport
from nas.regularisation import cutout
from nas.spaces.darts import DartsSpace, Genotype
from nas.supernet import ArchParameters, Mixture
from zoo.errors import ConflictError, InvalidInputError, TrainerError
from zoo.rng import derive_seed
from zoo.spec import Architecture

GPU_REPORT_EVERY = 50
"""Steps between reports on a GPU unless it is set: each one waits for the device."""


class BilevelSearch(abc.ABC):
    """A search over a cell space that alternates between weights and architecture.

    It can be split (``nas.methods.one_shot.OneShot``).

    Args:
        context: A ``DartsSpace``, ``NasBench201Space`` or ``MBConvSpace`` (whose kernel sizes
            then share weights), the data whose training set is searched on, device, seed.
        settings: Everything else.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is
            out of range.
    """

    trains = True
    name: ClassVar[str]
    _arch: ClassVar[type[ArchParameters]] = ArchParameters

    def __init__(self, context: MethodContext, settings: BilevelSettings) -> None:
        self.cells = cell_space(context.space, self.name)
        if context.data is None or len(context.data.train) < 4:
            raise InvalidInputError(f"{self.name} needs a training set of at least 4 images")
        self.space, self.settings = context.space, settings
        self._warmup_epochs = settings.warmup_epochs
        self._seed, self._device = context.seed, context.device
        self._data = context.data.to(context.device)
        self._parts = parts(context.data.train.labels, settings)
        self._orders: tuple[int, tuple[Tensor, Tensor]] | None = None
        self._mask: Tensor | None = None
        self._step = 0
        self._build()

    def _build(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "pc-darts", "weights"))
            supernet = self.cells.supernet(
                inputs=self._data.inputs,
                num_classes=self._data.num_classes,
                k=self.settings.k,
                fused=self.settings.fused,
            )
        arch = self._arch(
            len(self.cells.inputs),
            len(self.cells.ops),
            edge_normalisation=self.settings.edge_normalisation,
            weighting=self.settings.weighting,
            generator=self._generator("alphas"),
            kinds=self.cells.kinds,
            inputs=self.cells.inputs,
        )
        mask = self.cells.confined() if self._mask is None else self._mask
        if mask is not None:
            arch.restrict(mask)
        self.supernet = supernet.to(self._device).train()
        self.arch = arch.to(self._device)
        gpu = self._device.type == "cuda"
        auto = "bfloat16" if gpu and self.settings.order == 1 else "float32"
        precision = self.settings.precision if self.settings.precision != "auto" else auto
        self.updates = BilevelUpdates(
            self.supernet, self.arch, self.settings, half_precision=precision == "bfloat16"
        )
        self._report_every = self.settings.report_every or (GPU_REPORT_EVERY if gpu else 1)
        self._capture()

    def _capture(self) -> None:
        """Prepare both updates to be captured; what was captured before is forgotten."""
        self._update_weights: Step = self.updates.weights
        self._update_arch: Step = self.updates.architecture
        if self._device.type == "cuda":
            self._update_weights = GraphedStep(self.updates.weights)
            self._update_arch = GraphedStep(self.updates.architecture)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._parts[0]) // self.settings.batch_size)

    @property
    def total(self) -> int:
        """Number of steps of the whole search."""
        return self.settings.epochs * self.steps_per_epoch

    def step(self) -> StepReport:
        """Take one bilevel update; on a GPU only some reports have metrics.

        Raises:
            ConflictError: The search is over.
            TrainerError: A loss is not finite, or the device ran out of memory.
        """
        if self._step >= self.total:
            raise ConflictError(f"the search is over: all {self.total} steps are done")
        epoch, index = divmod(self._step, self.steps_per_epoch)
        warm = epoch < self.settings.warmup_epochs
        try:
            measured = self._update(epoch, index, warm=warm)
        except torch.OutOfMemoryError as error:
            raise TrainerError(
                f"{self._device} ran out of memory at batch size {self.settings.batch_size}; "
                f"use a smaller one or a larger k: {error}"
            ) from error
        self._step += 1
        phase = "weights only" if warm else "weights and architecture"
        return StepReport(
            step=self._step,
            total=self.total,
            message=f"epoch {epoch + 1} of {self.settings.epochs}, {phase}",
            metrics=self._metrics(measured, epoch),
        )

    def _update(self, epoch: int, index: int, *, warm: bool) -> dict[str, Tensor]:
        train = self._batch(epoch, index, part=0)
        self.updates.set_rate(self.settings.learning_rate(epoch))
        measured: dict[str, Tensor] = {}
        if not warm:
            self._draw(epoch, index, part=1)
            measured |= self._update_arch(*self._batch(epoch, index, part=1), *train)
        self._draw(epoch, index, part=0)
        return measured | self._update_weights(*train)

    def _draw(self, epoch: int, index: int, *, part: int) -> None:
        """Draw what the next update's mixtures are sampled from; nothing where they are not."""
        return

    def _metrics(self, measured: Mapping[str, Tensor], epoch: int) -> dict[str, float]:
        """Wait for what was measured, if this step is one to report."""
        if self._step % self._report_every and self._step < self.total:
            return {}
        values = torch.stack(list(measured.values())).tolist()
        metrics = dict(zip(measured, values, strict=True))
        if not all(math.isfinite(value) for value in values):
            raise TrainerError(
                f"the loss became {metrics['loss']} in epoch {epoch + 1} of "
                f"{self.settings.epochs}; lower the learning rate ({self.settings.lr})"
            )
        return metrics | {"lr": self.settings.learning_rate(epoch)}

    def best(self, k: int) -> list[Architecture]:
        """Return the derived architecture, then those that replace its least certain decisions."""
        found = self.cells.ranked(self._relaxed(), self._mask)
        return list(islice(found, max(k, 0)))

    def genotype(self) -> Genotype:
        """Return the derived genotype; a node's edges with the best first.

        Raises:
            InvalidInputError: The space has no genotypes.
        """
        if not isinstance(self.space, DartsSpace):
            raise InvalidInputError("only the space 'darts' has genotypes; ask for best(1)")
        return derive(self.space, self._relaxed())

    def _relaxed(self) -> dict[str, Mixture]:
        """Return the shares that architectures are derived from, without any draw."""
        return self.updates.shares()

    def options(self) -> Tensor:
        """Return the mask of all operations that an architecture may have."""
        return self.cells.options()

    def splittable(self) -> tuple[int, ...]:
        """Return the edges of those kinds of cells that the network has."""
        return self.cells.splittable()

    def confine(self, terms: Confinement) -> None:
        """Train under these terms from now on; weights and state are left as they are."""
        warmup = terms.epochs if terms.frozen else self._warmup_epochs
        self.settings = replace(self.settings, epochs=terms.epochs, warmup_epochs=warmup)
        self._seed, self._mask, self._orders = terms.seed, terms.mask, None
        self.arch.restrict(terms.mask)
        self._capture()

    def restart(self) -> None:
        """Draw weights and architecture parameters anew; forget optimisers and steps."""
        self._step, self._orders = 0, None
        self._build()

    def check_measurable(self) -> None:
        """Refuse a fused network, in which operations have no gradients of their own."""
        self.cells.shared(self.supernet, self.splittable()[0], self.options())

    def operation_gradients(self, edge: int, batch: int, *, hard: bool) -> OperationGradients:
        """Return the gradients of the weights' loss with ``edge`` set to each allowed operation."""
        mask = self.options() if self._mask is None else self._mask
        lap, index = divmod(batch, self.steps_per_epoch)
        images, labels = self._batch(-1 - lap, index, part=0)
        self._draw(-1 - lap, index, part=0)
        mixtures = self.updates.mixtures()
        self.supernet.requires_grad_(True)

        def loss(op: int) -> Tensor:
            set_to = self.cells.set_edge(mixtures, edge, op, hard=hard)
            return F.cross_entropy(self.supernet(images, set_to), labels)

        parameters = self.cells.shared(self.supernet, edge, mask)
        with untouched(self.supernet):
            return gradient_rows([partial(loss, op) for op in allowed(mask)[edge]], parameters)

    def propose(self, count: int, rng: random.Random) -> list[Architecture]:
        """Return the derived architecture and those that come next."""
        return self.best(count)

    @torch.no_grad()
    def correct(self, architecture: Architecture, images: Tensor, labels: Tensor) -> Tensor:
        """Count what one path gets right, with the statistics of ``images`` themselves."""
        path = self.cells.path(architecture, self.updates.mixtures())
        with untouched(self.supernet):
            return (self.supernet(images, path).argmax(1) == labels).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all state; generators are none of it, see the module's head.

        Weights and momenta have the names of the unfused network: a search may be resumed
        in the other form, equal to rounding, or on another device.
        """
        adam = self.updates.arch_optimizer.state
        return {
            "method": self.name,
            "step": self._step,
            "supernet": _copy(self.supernet.state_dict()),
            "arch": _copy(self.arch.state_dict()),
            "momenta": self.updates.momenta(),
            "adam": {
                name: _copy(adam[parameter])
                for name, parameter in self.arch.named_parameters()
                if parameter in adam
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            InvalidInputError: ``state`` is of another space or another method.
        """
        try:
            if state.get("method", self.name) != self.name:
                raise ValueError(f"it is one of {state['method']}")
            self.supernet.load_state_dict(state["supernet"])
            self.arch.load_state_dict(state["arch"])
            self.updates.load_momenta(state["momenta"])
            self._load_adam(state["adam"])
            self._step = int(state["step"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"this state is not of a {self.name} search over {self.space.describe()}: {error}"
            ) from error
        self._capture()

    def _load_adam(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        names = [name for name, _ in self.arch.named_parameters()]
        optimizer = self.updates.arch_optimizer
        remembered = {names.index(name): _copy(self_state) for name, self_state in state.items()}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": remembered, "param_groups": groups})

    def _batch(self, epoch: int, index: int, *, part: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of one step: part 0 trains weights, part 1 the architecture."""
        if self._orders is None or self._orders[0] != epoch:
            self._orders = (epoch, (self._order(epoch, 0), self._order(epoch, 1)))
        start = index * self.settings.batch_size
        # Both parts give as many images in a step, also in the last one of an epoch.
        stop = min(start + self.settings.batch_size, len(self._parts[0]))
        chosen = self._orders[1][part][start:stop]
        images = self._data.train.images[chosen]
        if self.settings.augment:
            # Drawn where the data are: copying the draws would make the host wait.
            generator = self._generator("augment", epoch, index, part, device=self._device)
            resized = self.settings.crop == "resized"
            crop = self._data.augment_resized if resized else self._data.augment
            images = crop(images, generator)
        if self.settings.auto_augment:
            images = auto_augment(images, self._generator("policy", epoch, index, part))
        images = self._data.normalize(images)
        if self.settings.cutout:
            generator = self._generator("cutout", epoch, index, part, device=self._device)
            side = round(self.settings.cutout * images.shape[2])
            images = cutout(images, side, generator)
        if self.settings.fused:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self._data.train.labels[chosen]

    def _order(self, epoch: int, part: int) -> Tensor:
        """Return the part's images shuffled, and again from the start if they are too few."""
        members = self._parts[part]
        generator = self._generator("order", epoch, part)
        rounds = -(-len(self._parts[0]) // len(members))
        orders = [torch.randperm(len(members), generator=generator) for _ in range(rounds)]
        return members[torch.cat(orders)].to(self._device)

    def _generator(self, *labels: str | int, device: torch.device | None = None) -> torch.Generator:
        seed = derive_seed(self._seed, "pc-darts", *labels)
        return torch.Generator(device or "cpu").manual_seed(seed)


def parts(labels: Tensor, settings: BilevelSettings) -> tuple[Tensor, Tensor]:
    """Return the positions of the images that train the weights, and the architecture.

    Shares that make up the whole cut the set in two by position, as the original does on
    CIFAR-10; smaller ones take their share of each class, as it does on ImageNet.

    Raises:
        InvalidInputError: A part would be empty.
    """
    if settings.covered == 1:
        border = int(len(labels) * settings.weight_share)
        found = torch.arange(len(labels)).tensor_split([border])
    else:
        pieces: tuple[list[Tensor], list[Tensor]] = ([], [])
        classes = labels.cpu()
        for label in range(int(classes.max()) + 1):
            members = (classes == label).nonzero().flatten()
            first = round(len(members) * settings.weight_share)
            second = first + round(len(members) * settings.arch_share)
            pieces[0].append(members[:first])
            pieces[1].append(members[first:second])
        found = tuple(torch.cat(part) for part in pieces)
    for name, part in zip(("weight_share", "arch_share"), found, strict=True):
        if not len(part):
            raise InvalidInputError(
                f"{name} is {getattr(settings, name)}, which is less than one image; give more"
            )
    return found[0], found[1]


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
