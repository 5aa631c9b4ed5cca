"""A data set held as uint8 tensors on one device: splits, normalisation, augmentation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nas.data.transforms import Crops, draw_crops, resized_crop
from zoo.canonical import canonical_json
from zoo.errors import InvalidInputError
from zoo.spec import TensorSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images ``(n, channels, height, width)`` uint8 and labels ``(n,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Self:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Labelled images of one size, split once and for all.

    ``digest`` is the sha256 of the content of all three splits and of what augmentation
    may do, so that equal digests mean equal training. ``mean`` and ``std`` are those of
    the training split, one a channel, of pixels in [0, 1]. ``train`` is in a seeded
    random order: any part of it is a fair sample. ``flips`` says whether a mirrored
    image keeps its label.
    """

    name: str
    digest: str
    num_classes: int
    class_names: tuple[str, ...]
    licence: str
    inputs: TensorSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split
    flips: bool = True

    def to(self, device: torch.device) -> Self:
        """Return the data set on ``device``; itself if it is there already."""
        if self.train.images.device == torch.empty(0, device=device).device:
            return self
        splits = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **splits)

    def normalize(self, images: Tensor) -> Tensor:
        """Return images, uint8 or 0 to 255, as float32 of zero mean and unit variance a channel."""
        scale, bias = self._affine
        if scale.device != images.device:
            scale, bias = scale.to(images.device), bias.to(images.device)
        return torch.addcmul(bias, images.to(torch.float32), scale)

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop at random after padding with black, and mirror half of the images.

        The padding is an eighth of the size (4 pixels of 32). All draws come from
        ``generator``, on its own device, whatever the device of ``images``.

        Args:
            images: ``(batch, channels, height, width)`` uint8.
            generator: Source of the offsets and flips.

        Returns:
            Tensor of the same shape and type, on the same device, channels last.
        """
        batch, _, height, width = images.shape
        pad_y, pad_x = -(-height // 8), -(-width // 8)
        top = _draw(2 * pad_y + 1, batch, generator, images.device)
        left = _draw(2 * pad_x + 1, batch, generator, images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        if self.flips:
            flip = _draw(2, batch, generator, images.device)
            columns = torch.where(flip == 1, columns.flip(0), columns)
        columns = left + columns
        padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
        sample = torch.arange(batch, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(
            0, 3, 1, 2
        )

    def augment_resized(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Stretch a random part of each image to its size, and mirror half of the images.

        Arguments and result are as for ``augment``; ``nas.data.transforms`` says what is drawn.
        """
        batch, _, height, width = images.shape
        crops = draw_crops(batch, height, width, generator)
        flip = None
        if self.flips:
            flip = _draw(2, batch, generator, images.device)[:, 0] == 1
        crops = Crops(*(each.to(images.device, non_blocking=True) for each in crops))
        resized = resized_crop(images, crops, flip).round().clamp(0, 255).to(torch.uint8)
        return resized.contiguous(memory_format=torch.channels_last)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        std = torch.tensor(self.std, dtype=torch.float64)
        mean = torch.tensor(self.mean, dtype=torch.float64)
        scale, bias = 1 / (255 * std), -mean / std
        device = self.train.images.device
        return (
            scale.to(device, torch.float32).view(-1, 1, 1),
            bias.to(device, torch.float32).view(-1, 1, 1),
        )


def _draw(high: int, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    drawn = torch.randint(high, (batch, 1), generator=generator, device=generator.device)
    return drawn.to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a source read: uint8 ``(n, channels, height, width)`` with labels, maybe a test set."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test_images: NDArray[np.uint8] | None = None
    test_labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...]
    licence: str
    flips: bool


def assemble(name: str, read: Images, *, seed: int) -> DataSet:
    """Split what was read: stratified, a function of ``seed`` alone.

    An official test set is kept and a tenth of the rest validates; otherwise a fifth
    each tests and validates.

    Raises:
        InvalidInputError: There are fewer than two classes, or one has too few images.
    """
    rng = random.Random(seed)
    parts: dict[str, Split] = {}
    if read.test_images is not None and read.test_labels is not None:
        train, val = _stratified(name, read, (0.1,), rng)
        parts["test"] = _split(read.test_images, read.test_labels)
    else:
        train, val, test = _stratified(name, read, (0.2, 0.2), rng)
        parts["test"] = _split(read.images[test], read.labels[test])
    parts["train"] = _split(read.images[train], read.labels[train])
    parts["val"] = _split(read.images[val], read.labels[val])
    mean, std = _moments(read.images[train])
    return DataSet(
        name=name,
        digest=_digest(parts, read),
        num_classes=len(read.class_names),
        class_names=read.class_names,
        licence=read.licence,
        inputs=TensorSpec(shape=read.images.shape[1:]),
        mean=mean,
        std=std,
        flips=read.flips,
        **parts,
    )


def _stratified(
    name: str, read: Images, shares: Sequence[float], rng: random.Random
) -> list[NDArray[np.int64]]:
    """Return the indices of the remainder and of each share, each in random order."""
    if len(read.class_names) < 2:
        raise InvalidInputError(f"data {name!r} has {len(read.class_names)} class; it needs two")
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for label, class_name in enumerate(read.class_names):
        members = np.flatnonzero(read.labels == label).tolist()
        if len(members) <= len(shares):
            raise InvalidInputError(
                f"class {class_name!r} of data {name!r} has {len(members)} images; "
                f"splitting needs {len(shares) + 1} or more"
            )
        rng.shuffle(members)
        start = 0
        for part, share in enumerate(shares, start=1):
            count = max(1, round(len(members) * share))
            parts[part] += members[start : start + count]
            start += count
        parts[0] += members[start:]
    for part_members in parts:
        rng.shuffle(part_members)
    return [np.array(part_members, dtype=np.int64) for part_members in parts]


def _split(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Split:
    return Split(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)),
    )


def _moments(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation a channel, exactly, from its histogram."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].reshape(-1), minlength=256) / images[:, channel].size
        mean = float(share @ levels)
        std = float(np.sqrt(share @ (levels - mean) ** 2))
        means.append(mean)
        stds.append(std if std > 0 else 1.0)
    return tuple(means), tuple(stds)


def _digest(parts: dict[str, Split], read: Images) -> str:
    result = hashlib.sha256(
        canonical_json({"classes": read.class_names, "flips": read.flips, "version": 1})
    )
    for key in ("train", "val", "test"):
        images, labels = parts[key].images, parts[key].labels
        result.update(canonical_json([key, list(images.shape)]))
        result.update(images.numpy().tobytes())
        result.update(labels.numpy().astype("<i8").tobytes())
    return result.hexdigest()
