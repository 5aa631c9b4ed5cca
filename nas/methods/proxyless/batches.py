"""The two parts of the training set, and their batches as functions of seed and number."""

from __future__ import annotations

import torch
from torch import Tensor

from nas.data import DataSet
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed


class Batches:
    """Batches for weights, and batches of held-out images for the architecture.

    Every epoch has orders of its own and leaves out the last incomplete batch.

    Args:
        data: On the device where batches are wanted.
        held_out: Share of the training set, equal in every class (one image at least).
        seed: Determines split, orders and augmentation.
        augment: Whether images that train weights are cropped and mirrored.

    Raises:
        InvalidInputError: A part would have fewer than two images.
    """

    def __init__(self, data: DataSet, *, held_out: float, seed: int, augment: bool) -> None:
        self._data, self._seed, self._augment = data, seed, augment
        labels = data.train.labels.cpu()
        order = torch.randperm(len(labels), generator=self._generator("held out"))
        kept, apart = [], []
        for label in sorted(set(labels.tolist())):
            members = order[labels[order] == label]
            count = min(max(1, round(held_out * len(members))), len(members) - 1)
            kept.append(members[count:])
            apart.append(members[:count])
        self.parts = (torch.cat(kept), torch.cat(apart))
        if min(map(len, self.parts)) < 2:
            raise InvalidInputError(
                f"of {len(labels)} images {len(self.parts[1])} would be held out; "
                "both parts need at least 2"
            )
        self._orders: dict[int, tuple[tuple[int, int], Tensor]] = {}

    def per_epoch(self, batch_size: int) -> int:
        """Return the number of batches in an epoch of the weights."""
        return max(1, len(self.parts[0]) // batch_size)

    def train(self, epoch: int, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return images, normalised and augmented, and labels for the weights."""
        chosen = self._chosen(0, epoch, index, batch_size)
        images = self._data.train.images[chosen]
        if self._augment:
            images = self._data.augment(images, self._generator("augment", epoch, index))
        return self._ready(images), self._data.train.labels[chosen]

    def held_out(self, epoch: int, turn: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the ``turn``-th batch of held-out images in an epoch, from 0, not augmented.

        When all were seen they come again in another order.
        """
        chosen = self._chosen(1, epoch, turn, batch_size)
        return self._ready(self._data.train.images[chosen]), self._data.train.labels[chosen]

    def _chosen(self, part: int, epoch: int, turn: int, batch_size: int) -> Tensor:
        members = self.parts[part]
        size = min(batch_size, len(members))
        lap, at = divmod(turn, len(members) // size)
        if part not in self._orders or self._orders[part][0] != (epoch, lap):
            shuffled = torch.randperm(
                len(members), generator=self._generator("order", part, epoch, lap)
            )
            device = self._data.train.labels.device
            self._orders[part] = ((epoch, lap), members[shuffled].to(device))
        return self._orders[part][1][at * size : (at + 1) * size]

    def _ready(self, images: Tensor) -> Tensor:
        return self._data.normalize(images).contiguous(memory_format=torch.channels_last)

    def _generator(self, *labels: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, "proxyless", *labels))
