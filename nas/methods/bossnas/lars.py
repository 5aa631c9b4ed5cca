"""LARS: SGD with momentum whose rate is scaled, layer by layer, to the size of the weights.

Source:
    You et al. (2017), "Large Batch Training of Convolutional Networks", arXiv:1708.03888.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


def local_rate(weight_norm: Tensor, grad_norm: Tensor, eta: float, weight_decay: float) -> Tensor:
    """Return η ‖w‖ / (‖g‖ + λ ‖w‖), elementwise; 1 for a weight of zeros, which would never move.

    Args:
        weight_norm: ‖w‖, of any shape.
        grad_norm: ‖g‖, of the same shape.
        eta: The trust coefficient η.
        weight_decay: λ.
    """
    usable = (weight_norm > 0) & (grad_norm > 0)
    below = torch.where(usable, grad_norm + weight_decay * weight_norm, 1.0)
    return torch.where(usable, eta * weight_norm / below, 1.0)


def lars_step(
    weight: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    eta: float = 1e-3,
    excluded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return weight and momentum buffer after one step.

    v ← momentum v + lr r (g + λ w); w ← w - v, where r is ``local_rate``; for an ``excluded``
    weight r is 1. A gradient of zeros, that of a weight no path used, changes nothing.
    """
    buffer = torch.zeros_like(weight) if buffer is None else buffer
    used = grad.norm() > 0
    rate = lr * (1.0 if excluded else local_rate(weight.norm(), grad.norm(), eta, weight_decay))
    moved = momentum * buffer + rate * (grad + weight_decay * weight)
    return torch.where(used, weight - moved, weight), torch.where(used, moved, buffer)


class Lars(Optimizer):
    """LARS over groups of ``lars_groups``; a weight without gradient keeps value and momentum.

    The buffer holds lr-scaled updates: a change of the rate does not touch the momentum.

    Args:
        groups: Parameters, or groups with ``excluded``.
        lr: Learning rate.
        momentum: Factor of the buffer.
        weight_decay: λ; none for excluded weights.
        eta: The trust coefficient.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        eta: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "excluded": False,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every weight that has a gradient; nothing waits for the device."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            settings = {key: item for key, item in group.items() if key != "params"}
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    moved, state["momentum_buffer"] = lars_step(
                        weight, weight.grad, state.get("momentum_buffer"), **settings
                    )
                    weight.copy_(moved)
        return loss


def lars_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters in two groups: those that LARS adapts, and the excluded.

    Excluded are all parameters of normalisations, whatever their name, all biases, and all
    other vectors: a scale that starts near zero (ConvNeXt's at 1e-6) would hardly ever grow at
    a rate proportional to it, and its branch would not train.
    """
    adapted: list[nn.Parameter] = []
    excluded: list[nn.Parameter] = []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            vector = parameter.ndim < 2
            apart = vector or isinstance(part, _NORMS) or name.endswith("bias")
            (excluded if apart else adapted).append(parameter)
    return [
        {"params": adapted, "excluded": False},
        {"params": excluded, "excluded": True, "weight_decay": 0.0},
    ]
