"""The architecture parameters: one padded tensor, drawn from and updated as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nas.methods.proxyless.gates import (
    Draw,
    RowAdam,
    draw_one,
    draw_two,
    gumbel,
    keep_others,
    masked,
    straight_through,
)
from nas.spaces.mbconv import MBConvSpace
from zoo.rng import derive_seed


class ArchParameters:
    """Alphas ``(edges, operations)`` in float64, with the Adam that moves them.

    They start at 1e-3 times standard normal draws. Operations that an edge cannot have
    are False in ``mask`` and stay 0.

    Args:
        space: Its edges and operations.
        seed: Determines the start and every draw.
        device: Where they live.
        lr: Adam's learning rate; its betas are 0 and .999.
    """

    def __init__(self, space: MBConvSpace, *, seed: int, device: torch.device, lr: float) -> None:
        self._seed, self._device = seed, device
        counts = torch.tensor(space.cardinalities())
        shape = (len(counts), int(counts.max()))
        start = torch.randn(shape, generator=self._generator("alphas"), dtype=torch.float64)
        mask = torch.arange(shape[1]) < counts.unsqueeze(-1)
        self.mask = mask.to(device)
        self.alphas = (1e-3 * start * mask).to(device)
        self.zeros = torch.tensor(
            [len(edge.ops) - 1 if edge.ops[-1] is None else -1 for edge in space.edges],
            device=device,
        )
        self._counts = counts.tolist()
        self._optimizer = RowAdam(self.alphas, lr=lr)

    def confine(self, mask: Tensor, *, seed: int) -> None:
        """Allow only the operations where ``mask`` is True, and draw by another seed."""
        self.mask, self._seed = mask.to(self._device), seed

    def probabilities(self) -> Tensor:
        """Return softmax(alpha), 0 where an edge lacks an operation."""
        return torch.softmax(masked(self.alphas, self.mask), -1)

    def scores(self) -> list[list[float]]:
        """Return each edge's log-probabilities, without padding."""
        rows = torch.log_softmax(masked(self.alphas, self.mask), -1).tolist()
        return [row[:count] for row, count in zip(rows, self._counts, strict=True)]

    def draw(self, *labels: str | int, two: bool = False) -> Draw:
        """Draw all gates; ``labels`` name the draw.

        With ``two`` an edge first draws two of its operations, then one of these.
        """
        generator = self._generator("gates", *labels)
        noise = gumbel(tuple(self.alphas.shape), generator).to(self._device)
        if not two or self.alphas.shape[1] == 1:
            return draw_one(self.alphas, self.mask, noise)
        second = gumbel((len(self.alphas), 2), generator).to(self._device)
        return draw_two(self.alphas, self.mask, noise, second)

    def descend_gates(self, draw: Draw, gate_grad: Tensor) -> None:
        """Update alpha from the gradient of the drawn gates, ``(edges, operations)``.

        Edges whose active operation is ``zero`` are left alone. In mode ``two`` the
        probabilities of operations outside the pair do not change.
        """
        before = self.alphas.clone()
        gradient = straight_through(draw.probs, gate_grad)
        self._optimizer.step(gradient, draw.active != self.zeros)
        if draw.pair is not None:
            self.alphas.copy_(keep_others(before, self.alphas, draw.pair))

    def descend(self, gradient: Tensor) -> None:
        """Update all of alpha along its gradient."""
        self._optimizer.step(gradient, torch.ones_like(self.zeros, dtype=torch.bool))

    def state_dict(self) -> dict[str, Any]:
        return {"alphas": self.alphas.clone(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over values and moments.

        Raises:
            ValueError: They are of another shape.
        """
        if state["alphas"].shape != self.alphas.shape:
            raise ValueError(f"alphas have shape {tuple(state['alphas'].shape)}")
        self.alphas.copy_(state["alphas"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _generator(self, *labels: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, "proxyless", *labels))
