"""Short training under a fixed budget: the same seed gives the same network.

Bit for bit on the CPU with an equal number of threads. Nothing waits for the device
within an epoch: losses are summed there and read once an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.data import DataSet, Split
from zoo.canonical import Json
from zoo.errors import TrainerError
from zoo.rng import derive_seed

WARMUP_SHARE = 0.1
"""Share of all steps over which the learning rate rises linearly to its peak."""

EVAL_BATCH = 512

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after every epoch with (epochs done, epochs in all, ``{"loss": …}``)."""


class Recipe(Protocol):
    """A training budget and its settings; ``zoo.schemas.Recipe`` is one."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def momentum(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def clip_norm(self) -> float: ...

    @property
    def augment(self) -> bool: ...

    @property
    def label_smoothing(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class FixedRecipe:
    """A recipe for use without the HTTP schemas, with their defaults."""

    epochs: int
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0
    augment: bool = True
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training came to: validation ``accuracy`` and last training ``loss``.

    ``metrics`` is empty and ``completed`` False if ``should_stop`` ended it.
    """

    metrics: dict[str, float]
    cost_s: float
    completed: bool = True


def describe_recipe(recipe: Recipe) -> dict[str, Json]:
    """Return every field of ``recipe`` that determines what training does."""
    return asdict(
        FixedRecipe(
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            augment=recipe.augment,
            label_smoothing=recipe.label_smoothing,
        )
    )


def train(
    module: nn.Module,
    data: DataSet,
    recipe: Recipe,
    *,
    device: torch.device,
    seed: int,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Train ``module`` in place on ``data.train`` and score it on ``data.val``.

    SGD with Nesterov momentum; the learning rate rises linearly over the first tenth of
    the steps and then falls along a cosine to 0, step by step. Every epoch sees the
    images in a fresh order and leaves out the last incomplete batch.

    Args:
        module: Maps ``(batch, *data.inputs.shape)`` to logits ``(batch, num_classes)``;
            left on ``device`` in eval mode.
        data: On any device; copied to ``device`` if it is elsewhere.
        recipe: Budget and settings.
        device: Where to train.
        seed: Order, augmentation and dropout; the weights are the caller's.
        progress: Called after every epoch.
        should_stop: Asked before every step; True ends training early.
        clock: Seconds that only go forward.

    Raises:
        TrainerError: The loss is not finite, or the device ran out of memory.
    """
    started = clock()
    data = data.to(device)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(seed, "train", "modules"))
            # Depthwise convolutions run several times faster with channels last.
            module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            loss = _epochs(module, data, recipe, seed, progress, should_stop)
        if loss is None:
            return TrainResult(metrics={}, cost_s=clock() - started, completed=False)
        scored = accuracy(module, data, data.val)
    except torch.OutOfMemoryError as error:
        raise TrainerError(
            f"{device} ran out of memory at batch size {recipe.batch_size}; "
            f"use a smaller one: {error}"
        ) from error
    finally:
        module.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return TrainResult(metrics={"accuracy": scored, "loss": loss}, cost_s=clock() - started)


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


def learning_rate(step: int, total: int, peak: float) -> float:
    """Return the rate of ``step`` (from 0) of ``total``: linear warm-up, then cosine to 0."""
    warmup = max(1, round(total * WARMUP_SHARE))
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup + 1)))


def _epochs(
    module: nn.Module,
    data: DataSet,
    recipe: Recipe,
    seed: int,
    progress: Progress | None,
    should_stop: Callable[[], bool] | None,
) -> float | None:
    """Return the mean loss of the last epoch, or None if asked to stop."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "train", "order"))
    images, labels = data.train.images, data.train.labels
    batch = min(recipe.batch_size, len(data.train))
    steps = len(data.train) // batch
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        foreach=True,
    )
    module.train()
    loss = math.nan
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.train), generator=generator).to(images.device)
        total = torch.zeros((), device=images.device)
        for step in range(steps):
            if should_stop is not None and should_stop():
                return None
            chosen = order[step * batch : (step + 1) * batch]
            inputs = images[chosen]
            if recipe.augment:
                inputs = data.augment(inputs, generator)
            rate = learning_rate(epoch * steps + step, recipe.epochs * steps, recipe.lr)
            inputs = data.normalize(inputs).contiguous(memory_format=torch.channels_last)
            total += _step(module, optimizer, inputs, labels[chosen], recipe, rate)
        loss = float(total) / steps
        if not math.isfinite(loss):
            raise TrainerError(
                f"the loss became {loss} in epoch {epoch + 1} of {recipe.epochs}; "
                f"lower the learning rate ({recipe.lr})"
            )
        if progress is not None:
            progress(epoch + 1, recipe.epochs, {"loss": loss})
    return loss


def _step(
    module: nn.Module,
    optimizer: torch.optim.SGD,
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    rate: float,
) -> Tensor:
    """Take one step and return its loss, detached and still on the device."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(module(inputs), labels, label_smoothing=recipe.label_smoothing)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm, foreach=True)
    optimizer.step()
    return loss.detach()
