"""A data set made smaller, for searches that a CPU is to finish."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from nas.data import DataSet, Split


def shrunk(
    data: DataSet, *, images: int | None, held_out: int | None, pixels: int | None = None
) -> DataSet:
    """Return the first images of both splits, and no test images.

    Args:
        data: The whole.
        images: Training images; None keeps all.
        held_out: Validation images; None keeps all.
        pixels: Height and width, by averaging areas; None keeps the size.
    """

    def resized(whole: Tensor) -> Tensor:
        if pixels is None or not len(whole):
            return whole
        area = functional.interpolate(whole.float(), size=(pixels, pixels), mode="area")
        return area.round().to(whole.dtype)

    def first(split: Split, count: int | None) -> Split:
        return Split(images=resized(split.images[:count]), labels=split.labels[:count])

    inputs = data.inputs
    if pixels is not None:
        inputs = replace(inputs, shape=(inputs.shape[0], pixels, pixels))
    return replace(
        data,
        inputs=inputs,
        train=first(data.train, images),
        val=first(data.val, held_out),
        test=replace(data.test, images=data.test.images[:0], labels=data.test.labels[:0]),
    )
