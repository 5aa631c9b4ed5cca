"""The auxiliary head: a second classifier amid a network, there only while it trains.

Source:
    Liu et al. (2019), arXiv:1806.09055, and Zoph et al. (2018), arXiv:1707.07012, after
    Szegedy et al. (2015), arXiv:1409.4842. Differs: DARTS's head for ImageNet leaves out the
    second batch norm, by its authors' own word a typo; here it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InvalidInputError

WINDOW, NARROW, WIDE = 5, 128, 768
"""Side of the pooling window, and the widths of the head's two convolutions."""


def pooled(size: int) -> tuple[int, int, int]:
    """Return window, stride and resulting size of the pooling of ``size`` pixels.

    The window is 5 or, in smaller states, the whole; the stride 3 as for CIFAR-10, but 2
    below 8 pixels, as for the 7 of ImageNet.
    """
    window, stride = min(WINDOW, size), 3 if size >= 8 else 2
    return window, stride, (size - window) // stride + 1


class AuxiliaryHead(nn.Sequential):
    """ReLU, average pooling, 1x1 and full-size convolution with batch norm, classifier.

    Maps ``(batch, in_chans, *size)`` to ``(batch, num_classes)``. On 8x8 pixels the second
    convolution is 2x2: the published head, of 476,426 parameters on 576 channels and ten
    classes.
    """

    def __init__(self, in_chans: int, size: tuple[int, int], num_classes: int) -> None:
        (window_y, stride_y, left_y), (window_x, stride_x, left_x) = map(pooled, size)
        super().__init__(
            nn.ReLU(),
            nn.AvgPool2d((window_y, window_x), stride=(stride_y, stride_x)),
            nn.Conv2d(in_chans, NARROW, 1, bias=False),
            nn.BatchNorm2d(NARROW),
            nn.ReLU(),
            nn.Conv2d(NARROW, WIDE, (left_y, left_x), bias=False),
            nn.BatchNorm2d(WIDE),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(WIDE, num_classes),
        )


def auxiliary_place(blocks: Sequence[nn.Module]) -> int:
    """Return the position of the block after which an auxiliary head stands.

    It is the block that says so itself (``feeds_auxiliary``), else cell ``2 L // 3`` of the
    L blocks between the first and the last.

    Raises:
        InvalidInputError: There are fewer than three blocks.
    """
    if len(blocks) < 3:
        raise InvalidInputError(
            f"an auxiliary head stands within a chain of at least 3 blocks, not {len(blocks)}; "
            "set auxiliary to 0"
        )
    chosen = (at for at, block in enumerate(blocks) if getattr(block, "feeds_auxiliary", False))
    return next(chosen, 1 + 2 * (len(blocks) - 2) // 3)


class AuxiliaryTap:
    """A head on the newest state of a block of ``network``, and what it read in the last pass.

    The head is on the CPU at first. ``detach`` leaves the network as it was.

    Args:
        network: A chain of blocks.
        sample: One batch of images, on the network's device.
        num_classes: Of the head's logits.
        seed: Its first weights are a function of it.

    Raises:
        InvalidInputError: The network is no chain of at least three blocks, or the state is
            no image.
    """

    def __init__(self, network: nn.Module, sample: Tensor, *, num_classes: int, seed: int) -> None:
        if not isinstance(network, nn.Sequential):
            raise InvalidInputError(
                "an auxiliary head needs a network that is a chain of blocks; set auxiliary to 0"
            )
        blocks = list(network)
        self._state: Tensor | None = None
        self._hook = blocks[auxiliary_place(blocks)].register_forward_hook(self._read)
        was_training = network.training
        with torch.no_grad():
            network.eval()(sample)
        network.train(was_training)
        state = self._taken()
        if state.ndim != 4:
            self.detach()
            raise InvalidInputError(
                f"an auxiliary head reads images, not {list(state.shape)}; set auxiliary to 0"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            height, width = state.shape[2:]
            self.head = AuxiliaryHead(state.shape[1], (height, width), num_classes)

    def logits(self) -> Tensor:
        """Return the head's logits for the batch that the network was just given."""
        return self.head(self._taken())

    def detach(self) -> None:
        """Read no more."""
        self._hook.remove()
        self._state = None

    def _read(self, _block: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        self._state = output[-1] if isinstance(output, tuple) else output

    def _taken(self) -> Tensor:
        assert self._state is not None  # the network was run before
        state, self._state = self._state, None
        return state
