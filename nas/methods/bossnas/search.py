"""BossNAS: blocks trained without labels, one after another, by an ensemble of their paths.

Source:
    Li et al. (2021), "BossNAS: Exploring Hybrid CNN-transformers with Block-wisely
    Self-supervised Neural Architecture Search", arXiv:2103.12424; official code
    github.com/changlin31/BossNAS.

Notation (B images, D = 256 numbers, P paths):

    paper     code                     shape        meaning
    f, g      Stage.block, Stage.head  (B, D)       block and projector, online θo and target θt
    q         Head.predictor           (B, D)       predictor, online only
    x1, x2    Views                    (B, C, H, W) two views of the images
    T̂1, T̂2    ensemble_target          (B, D)       mean over paths of normalised projections
    ℓp        path_loss                ()           -2 cos(q(z1), T̂2) - 2 cos(q(z2), T̂1)
    m         ema_momentum             ()           θt ← m θt + (1 - m) θo, once a step
    E1, E2    BlockRanking             (B, D)       mean over all paths of projections
    λk        1                        ()           a network's score is Σk (score + 4)

A step is one update by LARS (``accumulate`` batches, each with a sampled set of paths of its
own, the same set for both networks; gradients are summed over paths), or the ranking of all
paths on one batch. When a block is ranked, its best path is frozen and the next block
begins, with new networks, a new optimiser and both schedules anew.

Differs from the official code, on purpose:

- Attention weights are contracted over the keys that they were normalised over, in search
  as in the derived network (the search code contracted over the queries).
- What LARS excludes is told by the type of a module, not by its name. The last norm of an
  attention layer, which starts at zero, so trains; under the original's rule it had a rate
  of zero for ever and no gradient reached the attention.
- Nothing is scaled in place.
- All modules of the target follow the online network, adapters included (the original's
  target kept a random adapter on NATS-Bench), and are copied at the start of a block.
- A ranking leaves momentum and statistics of batch norms as they were; statistics of a
  path come from both views, and are taken once (``ranking``).
- A block builds the operations that its legal paths use, so every path can be run.
- Nothing is read from files while ranking.
- Stage, chosen paths, scores and momenta are part of the state: a search goes on bit for bit.
- Frozen blocks are run without a graph, once for both networks, with fixed statistics; the
  original went on training them. The next block so begins on features that stay.
- Under limits on cost a block is frozen at its best path with which the frozen blocks can be
  completed within them: the next block is ranked over what may follow that path.
- Rankings are made at the end of a block only, on validation images of the training data
  (the original ranked on the test images of NATS-Bench); labels and test images are not used.
- One process on one device needs no process group; images are not shuffled between
  devices, and each device has batch statistics of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nas.blockwise import Path, states
from nas.methods.bossnas.derive import best_networks
from nas.methods.bossnas.heads import HeadSizes
from nas.methods.bossnas.lars import Lars, lars_groups
from nas.methods.bossnas.paths import fair_options, fair_paths, random_paths
from nas.methods.bossnas.ranking import BlockRanking, Views
from nas.methods.bossnas.schedules import ema_momentum, learning_rate
from nas.methods.bossnas.settings import Settings, bounds
from nas.methods.bossnas.siamese import Siamese
from nas.methods.bossnas.supernets import blockwise
from nas.methods.bossnas.table import Costs, options
from nas.methods.bossnas.views import two_views
from nas.plugins import MethodContext
from nas.protocols import StepReport
from zoo.errors import ConflictError, InfeasibleError, InvalidInputError, TrainerError
from zoo.rng import derive_seed
from zoo.spec import Architecture, TensorSpec


class BossNAS:
    """Block-wise self-supervised search with ensemble bootstrapping; uses no labels.

    An upper limit on ``flops`` or ``num_params`` holds for all that is derived.

    Args:
        context: A space that is cut into blocks, the data, device, seed, ``limits`` if any.
        epochs: Epochs of each block (6 on ImageNet as published, 50 on CIFAR).
        warmup_epochs: Of them, those in which the learning rate rises (1 and 2).
        batch_size: Images of a batch.
        accumulate: Batches of an update.
        lr: Peak learning rate (4.8 on ImageNet, 0.48 on CIFAR, for 4,096 images an update).
        momentum: Of LARS.
        weight_decay: Of weights that LARS adapts.
        eta: LARS's trust coefficient.
        ema: The target's momentum at the start of a block; rises to 1.
        sampling: ``fair`` (every operation of a layer once a batch), ``random``, or ``auto``:
            fair where the layers of all blocks choose freely among equally many operations.
        num_paths: Distinct paths of a batch where sampling is random.
        views: ``byol``, ``crop`` (crop and flip), or ``auto``: crop up to 64 pixels.
        pairs: Whether each path of a set sees a pair of views of its own (``path``), or all
            the same (``shared``); ``auto``: a pair each with ``byol``.
        calibration_images: Training images that batch statistics are taken from.
        ranking_images: Validation images to rank on; None for all.
        features: Channels that are pooled.
        hidden: Hidden width of projector and predictor.
        projection: Numbers that are compared.
        precision: ``float32``, ``bfloat16``, or ``auto``: bfloat16 on a GPU.
        num_devices: GPUs to train on, from the context's on; each takes its share of a batch.
        layers: Number of layers of each block; None for the published cut of the space
            (NATS-Bench size: 2, 2, 1 for CIFAR-10; 2, 1, 2 was published for CIFAR-100).

    Raises:
        InvalidInputError: The space cannot be cut, a block does not fit the images, the
            data are too few, or a setting or limit is out of range.
        InfeasibleError: No network of the space is within the limits.
    """

    trains = True

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 50,
        warmup_epochs: int = 2,
        batch_size: int = 256,
        accumulate: int = 4,
        lr: float = 0.48,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        eta: float = 1e-3,
        ema: float = 0.99,
        sampling: str = "auto",
        num_paths: int = 4,
        views: str = "auto",
        pairs: str = "auto",
        calibration_images: int = 256,
        ranking_images: int | None = None,
        features: int = 2048,
        hidden: int = 4096,
        projection: int = 256,
        precision: str = "auto",
        num_devices: int = 1,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.settings = Settings(
            epochs=epochs, warmup_epochs=warmup_epochs, batch_size=batch_size,
            accumulate=accumulate, lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta,
            ema=ema, sampling=sampling, num_paths=num_paths, views=views, pairs=pairs,
            calibration_images=calibration_images, ranking_images=ranking_images,
            sizes=HeadSizes(features=features, hidden=hidden, projection=projection),
            precision=precision, num_devices=num_devices,
        )  # fmt: skip
        self.space, self.cut = context.space, blockwise(context.space, layers)
        self._limits = bounds(context.limits)
        data = context.data
        if data is None or len(data.train) < 4 or not len(data.val):
            raise InvalidInputError(
                "BossNAS needs a training set of at least 4 images, and a validation set to rank on"
            )
        self._seed, self._device = context.seed, context.device
        self._data = data.to(context.device)
        side = min(size or 1 for size in data.inputs.shape[1:])
        self._kind = self.settings.kind_of_views(side)
        self._batch = min(self.settings.batch_size, len(data.train))
        self._ranked_images = min(ranking_images or len(data.val), len(data.val))
        self._sets_are_fair = self.settings.fair(self.cut.paths(*at) for at in states(self.cut))
        self._costs = Costs(self.cut, inputs=data.inputs, num_classes=data.num_classes)
        auto = "bfloat16" if context.device.type == "cuda" else "float32"
        self._half = (precision if precision != "auto" else auto) == "bfloat16"
        self.scores: list[dict[Path, float]] = []
        # No block that does not fit the images, no limit that cannot be met, is found only
        # after blocks before it were trained.
        self._check_blocks(data.inputs)
        self.best(1)
        self.siamese = Siamese(
            self.cut,
            inputs=data.inputs,
            sizes=self.settings.sizes,
            seed=context.seed,
            devices=_devices(context.device, num_devices),
        )
        self._step = 0
        self._begin()

    def _check_blocks(self, inputs: TensorSpec) -> None:
        checked: set[tuple[int, tuple[int, int]]] = set()
        with torch.device("meta"):
            for block, interface in states(self.cut):
                given = self.cut.output(block - 1, interface) if block else (0, 0)
                if (block, given) not in checked:
                    checked.add((block, given))
                    self.cut.block(block, interface, inputs)

    def _begin(self) -> None:
        """Begin a block: its optimiser, and its ranking still empty."""
        self._optimizer = self._fresh_optimizer()
        self._ranking: BlockRanking | None = None
        self._sums: Tensor | None = None
        block = len(self.siamese.chosen)
        if block < self.cut.num_blocks:
            self.paths = self.cut.paths(block, self.siamese.interface)
            self._fair = fair_options(self.paths) if self._sets_are_fair else None

    def _fresh_optimizer(self) -> Lars:
        settings = self.settings
        return Lars(
            lars_groups(self.siamese.online),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            eta=settings.eta,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch; images that do not fill a batch are left out."""
        return max(1, len(self._data.train) // self._batch // self.settings.accumulate)

    @property
    def training_steps(self) -> int:
        """Updates of a block."""
        return self.settings.epochs * self.steps_per_epoch

    @property
    def ranking_steps(self) -> int:
        """Batches on which a block is ranked."""
        return -(-self._ranked_images // self._batch)

    @property
    def total(self) -> int:
        """Number of steps of all blocks."""
        return self.cut.num_blocks * (self.training_steps + self.ranking_steps)

    def step(self) -> StepReport:
        """Update the current block once, or rank its paths on one batch.

        Raises:
            ConflictError: The search is over.
            TrainerError: A loss is not finite, or the device ran out of memory.
        """
        if self._step >= self.total:
            raise ConflictError(f"the search is over: all {self.total} steps are done")
        block, at = divmod(self._step, self.training_steps + self.ranking_steps)
        where = f"block {block + 1} of {self.cut.num_blocks}"
        try:
            if at < self.training_steps:
                metrics = self._train(block, at)
                epoch = at // self.steps_per_epoch
                message = f"{where}, epoch {epoch + 1} of {self.settings.epochs}"
            else:
                message = f"{where}, ranking {len(self.paths)} paths"
                metrics = self._rank(block, at - self.training_steps)
        except torch.OutOfMemoryError as error:
            raise TrainerError(
                f"{self._device} ran out of memory at batch size {self.settings.batch_size}; "
                f"use a smaller one and accumulate more: {error}"
            ) from error
        self._step += 1
        return StepReport(step=self._step, total=self.total, message=message, metrics=metrics)

    def _train(self, block: int, at: int) -> dict[str, float]:
        settings = self.settings
        # Schedules go by batches, as in the official code: an update is at its last one.
        last = (at + 1) * settings.accumulate - 1
        per_epoch = self.steps_per_epoch * settings.accumulate
        rate = learning_rate(last, per_epoch, settings.epochs, settings.lr, settings.warmup_epochs)
        ema = ema_momentum(last, settings.epochs * per_epoch, settings.ema)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in range(settings.accumulate):
            paths = self.sampled(block, at, part)
            pairs = self._pairs(block, at, part, len(paths))
            with self._precision():
                losses.append(self.siamese.gradients(paths, pairs, accumulate=settings.accumulate))
        self.siamese.reduce()
        self._optimizer.step()
        self.siamese.follow(ema)
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise TrainerError(
                f"the loss became {loss} in block {block + 1}; lower the learning rate "
                f"({settings.lr})"
            )
        return {"loss": loss, "lr": rate, "ema": ema}

    def sampled(self, block: int, at: int, part: int) -> tuple[Path, ...]:
        """Return the set of paths of a batch."""
        generator = self._generator("paths", block, at, part)
        if self._fair is not None:
            return fair_paths(self._fair, generator)
        return random_paths(self.paths, self.settings.num_paths, generator)

    def _pairs(self, block: int, at: int, part: int, paths: int) -> list[Views]:
        """Return two views of a batch for every path, or one pair for all."""
        epoch, index = divmod(at, self.steps_per_epoch)
        order = torch.randperm(
            len(self._data.train), generator=self._generator("order", block, epoch)
        )
        batch = index * self.settings.accumulate + part
        # Wraps around only where there are fewer images than one update takes.
        chosen = torch.arange(batch * self._batch, (batch + 1) * self._batch) % len(order)
        images = self._data.train.images[order[chosen].to(self._device)]
        if self.settings.shares_pairs(self._kind):
            return [self._views(images, "views", block, at, part)] * paths
        return [self._views(images, "views", block, at, part, item) for item in range(paths)]

    def _views(self, images: Tensor, *labels: str | int) -> Views:
        generator = self._generator(*labels, device=self._device)
        first, second = two_views(self._data, images, self._kind, generator)
        return (
            first.contiguous(memory_format=torch.channels_last),
            second.contiguous(memory_format=torch.channels_last),
        )

    def _rank(self, block: int, index: int) -> dict[str, float]:
        """Score all paths on one batch; after the last one choose and go on to the next block."""
        with self._precision():
            ranking = self._ranking or self._calibrated(block)
            self._ranking = ranking
            images = self._data.val.images[: self._ranked_images]
            views = self._views(
                images[index * self._batch : (index + 1) * self._batch], "ranking", block, index
            )
            losses = ranking.losses(self._features(views))
        self._sums = losses if self._sums is None else self._sums + losses
        if index + 1 < self.ranking_steps:
            return {}
        means = (self._sums / self._ranked_images).tolist()
        if not all(math.isfinite(value) for value in means):
            raise TrainerError(f"a path of block {block + 1} scores no finite number; lower lr")
        self.scores.append(dict(zip(ranking.paths, means, strict=True)))
        best = self._prefix()
        ranking.install(best)
        self.siamese.choose(best)
        self._begin()
        return {"best_score": min(means), "worst_score": max(means)}

    def _prefix(self) -> Path:
        """Return the path at which the block just ranked is frozen: the best one.

        Where there are limits it is the best one with which what is frozen can be completed
        within them; so whatever follows, some network that was ranked is within them.
        """
        scores = self.scores[-1]
        if not self._limits:
            return min(scores, key=scores.__getitem__)
        frozen = [{path: 0.0} for path in self.siamese.chosen]
        _, paths = next(self._networks([*frozen, scores]))
        return paths[len(frozen)]

    def _calibrated(self, block: int) -> BlockRanking:
        """Take the batch statistics of all paths, on training images."""
        count = min(self.settings.calibration_images, len(self._data.train))
        order = torch.randperm(
            len(self._data.train), generator=self._generator("calibration", block)
        )
        images = self._data.train.images[order[:count].to(self._device)]
        views = self._features(self._views(images, "calibration views", block))
        online, target = self.siamese.online, self.siamese.target
        return BlockRanking(
            online, target, self.paths, lambda path: self.cut.interface(block, path), [views]
        )

    def _features(self, views: Views) -> Views:
        main = self.siamese.main
        return main.features(views[0]), main.features(views[1])

    def networks(self) -> Iterator[tuple[float, tuple[Path, ...]]]:
        """Yield networks within all limits with their scores, best first, exactly.

        Blocks that are not ranked yet count nothing.

        Raises:
            InfeasibleError: None is within the limits.
        """
        return self._networks(self.scores)

    def _networks(
        self, rankings: Sequence[Mapping[Path, float]]
    ) -> Iterator[tuple[float, tuple[Path, ...]]]:
        metric, second = (*self._limits, None, None)[:2]
        table = options(
            self.cut,
            rankings,
            costs=None if metric is None else self._costs,
            metric=metric,
            second=second,
            inputs=self._data.inputs,
        )
        try:
            yield from best_networks(
                table,
                start=self.cut.start,
                limit=self._limits.get(metric or "", math.inf),
                second_limit=self._limits.get(second or "", math.inf),
            )
        except InfeasibleError as error:
            raise InfeasibleError(
                f"no network is within the limits on {' and '.join(self._limits)}: {error}",
                nearest=error.nearest,
            ) from error

    def best(self, k: int) -> list[Architecture]:
        """Return the networks of least score within the limits, best first."""
        return [self.cut.join(paths) for _, paths in islice(self.networks(), max(k, 0))]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all state; statistics of a ranking are none of it, they repeat."""
        state = self._optimizer.state
        return {
            "step": self._step,
            "siamese": self.siamese.state_dict(),
            "momenta": [
                state[item]["momentum_buffer"].clone() if item in state else None
                for item in self._weights()
            ],
            "scores": [
                [[list(path), score] for path, score in ranked.items()] for ranked in self.scores
            ],
            "sums": None if self._sums is None else self._sums.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            InvalidInputError: ``state`` is of another space or another method.
        """
        try:
            self.siamese.load_state_dict(state["siamese"])
            self._begin()
            for item, kept in zip(self._weights(), state["momenta"], strict=True):
                if kept is not None:
                    buffer = kept.to(item.device, copy=True)
                    self._optimizer.state[item] = {"momentum_buffer": buffer}
            self.scores = [
                {tuple(path): float(score) for path, score in ranked} for ranked in state["scores"]
            ]
            self._sums = (
                None if state["sums"] is None else state["sums"].to(self._device, copy=True)
            )
            self._step = int(state["step"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"this state is not of a BossNAS search over {self.space.describe()}: {error}"
            ) from error

    def _weights(self) -> list[Tensor]:
        return [item for group in self._optimizer.param_groups for item in group["params"]]

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half)

    def _generator(self, *labels: str | int, device: torch.device | None = None) -> torch.Generator:
        seed = derive_seed(self._seed, "bossnas", *labels)
        return torch.Generator(device or "cpu").manual_seed(seed)


def _devices(first: torch.device, count: int) -> list[torch.device]:
    """Return ``count`` devices from ``first`` on.

    Raises:
        InvalidInputError: There are not as many GPUs.
    """
    if count == 1:
        return [first]
    start = first.index or 0
    if first.type != "cuda" or start + count > torch.cuda.device_count():
        raise InvalidInputError(
            f"num_devices is {count}, but from {first} on there are "
            f"{torch.cuda.device_count() - start if first.type == 'cuda' else 1}"
        )
    return [torch.device("cuda", start + at) for at in range(count)]
