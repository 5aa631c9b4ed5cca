"""Scores of paths on the validation set, which no part of a search trains on."""

from __future__ import annotations

from nas.data import DataSet
from nas.methods.halving import Contender
from nas.methods.one_shot import OneShot
from zoo.errors import InvalidInputError
from zoo.spec import Architecture

BATCH = 256


class HeldOut:
    """The validation set in batches, in its own order.

    Args:
        data: On the device of the supernets. The test set is never read.

    Raises:
        InvalidInputError: The validation set is empty.
    """

    def __init__(self, data: DataSet) -> None:
        if not len(data.val):
            raise InvalidInputError(
                "candidates are compared on the validation set, which has no image"
            )
        self._data = data

    @property
    def batches(self) -> int:
        return -(-len(self._data.val) // BATCH)

    def score(self, method: OneShot, contender: Contender, batch: int) -> tuple[int, int]:
        """Return how many images of a batch the contender's path gets right, and their number."""
        part = slice(batch * BATCH, (batch + 1) * BATCH)
        images, labels = self._data.val.images[part], self._data.val.labels[part]
        architecture = Architecture(space=method.space.describe(), choices=contender.choices)
        correct = method.correct(architecture, self._data.normalize(images), labels)
        return int(correct), len(labels)
