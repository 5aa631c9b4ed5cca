"""The seam between what schedules blocks and what computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class BlockRunner(Protocol):
    """Computes one block, or several in a row, on one device in one runtime and precision."""

    runtime: str
    precision: str
    device: str

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute a batch.

        Args:
            inputs: One tensor per block input, ``(batch, *shape)``, on any device.

        Returns:
            One tensor per block output, ``(batch, *shape)``, on this runner's device.

        Raises:
            IncompatibleShapeError: Number, shape or type of the inputs do not fit.
        """

    def close(self) -> None:
        """Release device memory; the runner cannot be used afterwards."""
