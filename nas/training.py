"""Training under a fixed recipe: the same seed gives the same network.

Bit for bit on the CPU with an equal number of threads, also when it is stopped after an
epoch and goes on from its state in another process. Nothing waits for the device within an
epoch: losses are summed there and read once an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas import regularisation
from nas.auxiliary import AuxiliaryTap
from nas.data import DataSet, Split
from nas.data.policies import auto_augment
from nas.data.transforms import color_jitter
from nas.drop_path_schedules import keep_at_depth
from nas.learning_rates import learning_rate as learning_rate
from nas.learning_rates import rate_of
from nas.recipe import FixedRecipe as FixedRecipe
from nas.recipe import Recipe as Recipe
from nas.recipe import describe_recipe as describe_recipe
from nas.recipe import fixed
from zoo.errors import InvalidInputError, TrainerCrashError, TrainerError
from zoo.rng import derive_seed

EVAL_BATCH = 512

PRECISIONS = ("float32", "bfloat16", "auto")

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after every epoch with (epochs done, epochs in all, ``{"loss": …}``)."""

Keep = Callable[["Training"], None]
"""Called after every epoch, after ``Progress``, by who may want to keep the ``state_dict``."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training came to: validation ``accuracy`` and last training ``loss``.

    ``cost_s`` includes what was spent before the state that it went on from. ``metrics`` is
    empty and ``completed`` False if ``should_stop`` ended it.
    """

    metrics: dict[str, float]
    cost_s: float
    completed: bool = True


def train(
    module: nn.Module,
    data: DataSet,
    recipe: Recipe,
    *,
    device: torch.device,
    seed: int,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: Mapping[str, Any] | None = None,
    keep: Keep | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Train ``module`` in place on ``data.train`` and score it on ``data.val``.

    SGD with momentum, in layout channels last. Every epoch sees the images in a fresh order
    and leaves out the last incomplete batch. With ``recipe.ema`` the averaged weights are the
    ones that are scored and left in ``module``.

    Args:
        module: Maps ``(batch, *data.inputs.shape)`` to logits ``(batch, num_classes)``;
            left on ``device`` in eval mode.
        data: On any device; copied to ``device`` if it is elsewhere.
        recipe: Budget and settings.
        device: Where to train.
        seed: Order, augmentation and dropout; the weights are the caller's.
        progress: Called after every epoch.
        should_stop: Asked before every step; True ends training early.
        resume: What ``Training.state_dict`` was after some epoch of the same training.
        keep: Called after every epoch with the training, whose state it may ask for.
        clock: Seconds that only go forward.

    Raises:
        InvalidInputError: The network lacks what the recipe asks for (paths to drop, say),
            or ``resume`` is of another training.
        TrainerError: The loss is not finite.
        TrainerCrashError: The device ran out of memory, which may pass.
    """
    started = clock()
    data = data.to(device)
    devices = [device] if device.type == "cuda" else []
    training: Training | None = None
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(seed, "train", "modules"))
            training = Training(module, data, recipe, device=device, seed=seed)
            if resume is not None:
                training.load_state_dict(resume)
            spent_s = training.cost_s
            while training.epoch < recipe.epochs:
                if not training.run_epoch(should_stop):
                    cost_s = spent_s + clock() - started
                    return TrainResult(metrics={}, cost_s=cost_s, completed=False)
                if progress is not None:
                    progress(training.epoch, recipe.epochs, {"loss": training.loss})
                if keep is not None:
                    training.cost_s = spent_s + clock() - started
                    keep(training)
        training.finish()
        scored = accuracy(module, data, data.val)
    except torch.OutOfMemoryError as error:
        raise TrainerCrashError(
            f"{device} ran out of memory at batch size {recipe.batch_size}; "
            f"use a smaller one: {error}"
        ) from error
    finally:
        if training is not None:
            training.release()
        module.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    metrics = {"accuracy": scored, "loss": training.loss}
    return TrainResult(metrics=metrics, cost_s=spent_s + clock() - started)


def accuracy(module: nn.Module, data: DataSet, split: Split) -> float:
    """Return the share of ``split`` that ``module`` classifies correctly, in eval mode.

    ``data`` supplies the normalisation; ``split`` may be on another device than ``module``.
    """
    device = next((p.device for p in module.parameters()), split.images.device)
    module.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.inference_mode():
        for start in range(0, len(split), EVAL_BATCH):
            images = split.images[start : start + EVAL_BATCH].to(device)
            labels = split.labels[start : start + EVAL_BATCH].to(device)
            correct += (module(data.normalize(images)).argmax(1) == labels).sum()
    return int(correct) / len(split)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross entropy with targets ``(1 - s) onehot + s / num_classes``.

    Args:
        logits: ``(batch, num_classes)``; computed in float32 if they are of half precision.
        labels: ``(batch,)`` int64.
        smoothing: The share s.
    """
    return functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


class Training:
    """One training, advanced an epoch at a time; its state can be kept and gone on from.

    It draws from torch's global generators, which its caller has forked and seeded; their
    states are part of its own. ``release`` it in the end, whatever happened.
    """

    def __init__(
        self,
        module: nn.Module,
        data: DataSet,
        recipe: Recipe,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        self.recipe = fixed(recipe)
        self.epoch = 0
        self.loss = math.nan
        self.cost_s = 0.0
        self._module, self._data, self._device = module, data, device
        self._identity = {"recipe": describe_recipe(recipe), "data": data.digest, "seed": seed}
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "train", "order"))
        self._batch = min(self.recipe.batch_size, len(data.train))
        self.steps_per_epoch = len(data.train) // self._batch
        self._undo: list[Callable[[], None]] = []
        # Depthwise convolutions run several times faster with channels last.
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._half = self._wants_half()
        self._tap = self._auxiliary(derive_seed(seed, "train", "auxiliary"))
        self._paths = regularisation.drop_paths(module) if self.recipe.drop_path else []
        if self.recipe.dropout:
            undo = regularisation.drop_before_classifier(module, self.recipe.dropout)
            self._undo.append(undo)
        self._trained = nn.ModuleList([module, *([self._tap.head] if self._tap else [])])
        self._optimizer = self._make_optimizer()
        self._average = (
            regularisation.AveragedWeights(module, self.recipe.ema) if self.recipe.ema else None
        )

    def run_epoch(self, should_stop: Callable[[], bool] | None = None) -> bool:
        """Train for one epoch; False if ``should_stop`` ended it before its last step.

        Raises:
            TrainerError: The mean loss is not finite.
        """
        images, labels = self._data.train.images, self._data.train.labels
        order = torch.randperm(len(labels), generator=self._generator).to(images.device)
        total = torch.zeros((), device=images.device)
        self._trained.train()
        for step in range(self.steps_per_epoch):
            if should_stop is not None and should_stop():
                return False
            chosen = order[step * self._batch : (step + 1) * self._batch]
            inputs = self._inputs(images[chosen])
            self._schedule(self.epoch * self.steps_per_epoch + step)
            total += self._step(inputs, labels[chosen])
        self.loss = float(total) / self.steps_per_epoch
        if not math.isfinite(self.loss):
            raise TrainerError(
                f"the loss became {self.loss} in epoch {self.epoch + 1} of {self.recipe.epochs}; "
                f"lower the learning rate ({self.recipe.lr})"
            )
        self.epoch += 1
        return True

    def finish(self) -> None:
        """Leave the averaged weights in the network, if there are any."""
        if self._average is not None:
            self._module.load_state_dict(self._average.average)

    def release(self) -> None:
        """Take off the network what was put on it for training."""
        for path in self._paths:
            path.rate = 0.0
        for undo in self._undo:
            undo()
        self._undo.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return all state; nothing is copied, so pack it before the next epoch."""
        generators = {"order": self._generator.get_state(), "modules": torch.get_rng_state()}
        if self._device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self._device)
        return {
            **self._identity,
            "epoch": self.epoch,
            "loss": self.loss,
            "cost_s": self.cost_s,
            "weights": self._trained.state_dict(),
            "momenta": self._momenta(),
            "average": self._average.state_dict() if self._average else None,
            "generators": generators,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the epoch at which ``state`` was taken, bit for bit on the CPU.

        Raises:
            InvalidInputError: It is of another recipe, data set, seed or network.
        """
        other = [name for name, value in self._identity.items() if state.get(name) != value]
        if other:
            raise InvalidInputError(
                f"this state is of a training with another {' and '.join(other)}; start anew"
            )
        try:
            self._trained.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise InvalidInputError(f"this state is of another network: {error}") from error
        for parameter, momentum in zip(self._parameters(), state["momenta"], strict=True):
            if momentum is not None:
                kept = torch.empty_like(parameter).copy_(momentum)
                self._optimizer.state[parameter] = {"momentum_buffer": kept}
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        generators = state["generators"]
        self._generator.set_state(generators["order"])
        torch.set_rng_state(generators["modules"])
        if self._device.type == "cuda" and "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"], self._device)
        self.epoch, self.loss = int(state["epoch"]), float(state["loss"])
        self.cost_s = float(state["cost_s"])

    def _wants_half(self) -> bool:
        precision = self.recipe.precision
        if precision not in PRECISIONS:
            raise InvalidInputError(f"precision {precision!r} is not one of {PRECISIONS}")
        auto = precision == "auto" and self._device.type == "cuda"
        return precision == "bfloat16" or auto

    def _auxiliary(self, seed: int) -> AuxiliaryTap | None:
        if not self.recipe.auxiliary:
            return None
        sample = self._data.normalize(self._data.train.images[:1])
        classes = self._data.num_classes
        tap = AuxiliaryTap(self._module, sample, num_classes=classes, seed=seed)
        self._undo.append(tap.detach)
        tap.head.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return tap

    def _make_optimizer(self) -> torch.optim.SGD:
        recipe = self.recipe
        parameters: Any = self._trained.parameters()
        if recipe.no_decay:
            parameters = regularisation.parameter_groups(self._trained, recipe.no_decay)
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            foreach=True,
        )

    def _parameters(self) -> list[Tensor]:
        return [it for group in self._optimizer.param_groups for it in group["params"]]

    def _momenta(self) -> list[Tensor | None]:
        state = self._optimizer.state
        return [state[it].get("momentum_buffer") for it in self._parameters()]

    def _inputs(self, images: Tensor) -> Tensor:
        """Return a batch as the network sees it: cropped, mirrored, normalised, cut out."""
        if self.recipe.augment:
            resized = self.recipe.crop == "resized"
            crop = self._data.augment_resized if resized else self._data.augment
            images = crop(images, self._generator)
        if self.recipe.auto_augment:
            images = auto_augment(images, self._generator)
        if self.recipe.color_jitter:
            images = color_jitter(images, self.recipe.color_jitter, self._generator)
        inputs = self._data.normalize(images).contiguous(memory_format=torch.channels_last)
        if self.recipe.cutout:
            inputs = regularisation.cutout(inputs, self.recipe.cutout, self._generator)
        return inputs

    def _schedule(self, step: int) -> None:
        """Set what changes as the training goes on: learning rate and drop rates."""
        recipe, total = self.recipe, self.recipe.epochs * self.steps_per_epoch
        rate = rate_of(recipe, step, self.steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for path in self._paths:
            if recipe.drop_path_schedule == "scheduled":
                keep = keep_at_depth(1 - recipe.drop_path, path.depth, step=step, steps=total)
                path.rate = 1 - keep
            else:
                path.rate = regularisation.linear_drop_path(
                    recipe.drop_path, self.epoch, recipe.epochs
                )

    def _step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step and return its loss, detached and still on the device."""
        recipe = self.recipe
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._module(inputs)
            second = self._tap.logits() if self._tap is not None else None
        loss = smoothed_cross_entropy(logits, labels, recipe.label_smoothing)
        reported = loss.detach()
        if second is not None:
            extra = smoothed_cross_entropy(second, labels, recipe.label_smoothing)
            loss = loss + recipe.auxiliary * extra
        torch.autograd.backward(loss)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained.parameters(), recipe.clip_norm, foreach=True)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        return reported
