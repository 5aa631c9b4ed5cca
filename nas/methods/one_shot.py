"""What splitting asks of a one-shot method, and what all that offer it share.

A method that trains one supernet can be split, on whatever space, if it is a ``OneShot``:
it can be confined to some operations of every edge, started afresh or continued from a
state, and can say which gradient each operation of an edge gives the shared weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nas.protocols import SearchSpace, StepReport
from zoo.spec import Architecture


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Under what a supernet is trained.

    Attributes:
        mask: Boolean ``(edges, operations)``: what it may use.
        epochs: Length of the learning rate's schedule; training may end earlier.
        cooling: Length of the temperature's; None is ``epochs``.
        frozen: Whether the architecture parameters stay as they are.
        seed: Determines start, orders and draws.
    """

    mask: Tensor
    epochs: int
    frozen: bool
    seed: int
    cooling: int | None = None


@dataclass(frozen=True, kw_only=True)
class OperationGradients:
    """What every allowed operation of an edge gives the shared parameters.

    ``rows`` is ``(operations, parameters)``; ``shapes`` are those of the parameters that lie
    side by side in a row.
    """

    rows: Tensor
    shapes: tuple[torch.Size, ...]


@runtime_checkable
class OneShot(Protocol):
    """A search by one supernet that can be split; also a ``nas.protocols.SearchMethod``."""

    space: SearchSpace

    @property
    def supernet(self) -> nn.Module: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def step(self) -> StepReport: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def options(self) -> Tensor:
        """Return the mask ``(edges, operations)`` of the whole supernet."""

    def splittable(self) -> tuple[int, ...]:
        """Return the edges that exist in the network, and so may be split."""

    def confine(self, terms: Confinement) -> None:
        """Train under these terms from now on; weights and state are left as they are."""

    def restart(self) -> None:
        """Draw weights and architecture parameters anew; forget optimisers and steps."""

    def check_measurable(self) -> None:
        """Refuse a network whose operations ``operation_gradients`` cannot tell apart.

        Raises:
            InvalidInputError: It computes them together; the message says what to set.
        """

    def operation_gradients(self, edge: int, batch: int, *, hard: bool) -> OperationGradients:
        """Return the gradients of the weights' loss with ``edge`` set to each allowed operation.

        The images are batch number ``batch`` of those that train the weights; all other
        edges are as they are relaxed, with one sample for all operations where that is
        drawn. ``hard`` gives the operation the weight 1, otherwise it keeps its own. The
        parameters are those that the operations share. Changes nothing.
        """

    def propose(self, count: int, rng: random.Random) -> list[Architecture]:
        """Return up to ``count`` distinct architectures of the present mask, best first."""

    def correct(self, architecture: Architecture, images: Tensor, labels: Tensor) -> Tensor:
        """Return how many images the supernet's path of ``architecture`` gets right.

        Args:
            architecture: One of the present mask.
            images: Normalised, on the method's device.
            labels: Of the images.
        """


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put all buffers (statistics of batch norms) back afterwards."""
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def gradient_rows(
    losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]
) -> OperationGradients:
    """Return the gradient of every loss, flattened, one below the other.

    Args:
        losses: Compute a loss each.
        parameters: Of those that a loss does not depend on the gradient is 0. Where
            operations share none, rows are empty.
    """
    if not parameters:
        return OperationGradients(rows=torch.zeros(len(losses), 0), shapes=())
    size = sum(parameter.numel() for parameter in parameters)
    rows = parameters[0].new_empty(len(losses), size)
    for row, loss in zip(rows, losses, strict=True):
        found = torch.autograd.grad(loss(), list(parameters), allow_unused=True)
        at = 0
        for parameter, gradient in zip(parameters, found, strict=True):
            part = row[at : at + parameter.numel()]
            if gradient is None:
                part.zero_()
            else:
                part.view(parameter.shape).copy_(gradient)
            at += parameter.numel()
    return OperationGradients(rows=rows, shapes=tuple(item.shape for item in parameters))
