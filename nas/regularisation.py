"""What keeps a training from learning its images by heart: cutout, drop-path, dropout, EMA.

ScheduledDropPath is in ``nas.drop_path_schedules``.

Sources:
    Cutout: DeVries and Taylor (2017), arXiv:1708.04552. Drop-path: Larsson et al. (2017),
    arXiv:1605.07648, linear in epochs as in DARTS, arXiv:1806.09055. Averaged weights: Polyak
    and Juditsky (1992).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import InvalidInputError
from zoo.families.drop_path import DropPath


def cutout_mask(rows: Tensor, columns: Tensor, height: int, width: int, side: int) -> Tensor:
    """Return where a square is cut out of each image.

    The square of ``2 * (side // 2)`` pixels is centred just above and left of the given
    pixel, and what lies outside the image of it is lost.

    Args:
        rows: ``(batch,)``, each in ``0 … height - 1``.
        columns: ``(batch,)``, each in ``0 … width - 1``.
        height: Of the images.
        width: Of the images.
        side: Of the square, in pixels.

    Returns:
        Booleans of shape ``(batch, 1, height, width)``, True where pixels are cut out.
    """
    half = side // 2
    y = torch.arange(height, device=rows.device) - rows[:, None]
    x = torch.arange(width, device=columns.device) - columns[:, None]
    inside_y, inside_x = (y >= -half) & (y < half), (x >= -half) & (x < half)
    return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set a square at a random place of each normalised image to 0, the data's mean.

    Args:
        images: ``(batch, channels, height, width)``, normalised.
        side: Of the square, in pixels.
        generator: Source of the places, on its own device.
    """
    batch, _, height, width = images.shape
    rows, columns = (
        torch.randint(size, (batch,), generator=generator, device=generator.device).to(
            images.device, non_blocking=True
        )
        for size in (height, width)
    )
    return images.masked_fill(cutout_mask(rows, columns, height, width, side), 0.0)


def linear_drop_path(rate: float, epoch: int, epochs: int) -> float:
    """Return the drop rate of ``epoch``, counted from 0: ``rate * epoch / epochs``."""
    return rate * epoch / epochs


def drop_paths(module: nn.Module) -> list[DropPath]:
    """Return all places of a network where paths may be dropped.

    Raises:
        InvalidInputError: There is none, so that a drop rate would do nothing.
    """
    found = [part for part in module.modules() if isinstance(part, DropPath)]
    if not found:
        raise InvalidInputError(
            "drop_path is set, but this network has no path that could be dropped; set it to 0"
        )
    return found


def drop_before_classifier(module: nn.Module, rate: float) -> Callable[[], None]:
    """Drop inputs of the last linear layer while training; the result undoes that.

    Raises:
        InvalidInputError: The network has no linear layer.
    """
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise InvalidInputError("dropout is set, but this network has no linear layer; set it to 0")

    def drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (functional.dropout(inputs[0], rate, layer.training), *inputs[1:])

    return linear[-1].register_forward_pre_hook(drop).remove


def parameter_groups(module: nn.Module, no_decay: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the parameters as groups for an optimiser, some of them without weight decay.

    ``norms`` spares weights and biases of normalisations, ``biases`` those of all else.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    spared: list[nn.Parameter] = []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            kind = "norms" if isinstance(part, norms) else "biases" if name == "bias" else ""
            if kind in no_decay:
                spared.append(parameter)
    chosen = {id(parameter) for parameter in spared}
    decayed = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    return [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]


def ema_decay(decay: float, step: int) -> float:
    """Return the decay after ``step`` updates: ``min(decay, (1 + step) / (10 + step))``.

    The average of a short training is thus not ruled by the weights that it began with.
    """
    return min(decay, (1 + step) / (10 + step))


class AveragedWeights:
    """A moving average of a network's weights: ``average += (1 - d) (weights - average)``.

    The running statistics of normalisations are averaged alike, for they belong to the
    weights; integers, such as counters of batches, are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.step = 0
        self._live = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        self.average = {name: tensor.clone() for name, tensor in self._live.items()}
        self._floating = [name for name, it in self._live.items() if it.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's present weights; nothing waits for the device."""
        weight = 1 - ema_decay(self.decay, self.step)
        averages = [self.average[name] for name in self._floating]
        torch._foreach_lerp_(averages, [self._live[name] for name in self._floating], weight)
        for name in self._live.keys() - set(self._floating):
            self.average[name].copy_(self._live[name])
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
