"""How photographs are varied for training: random resized crops and colour jitter.

Whole batches, on the device where they are: every image has crop, order and strengths of its
own, and none of them is looked at by the host.

Source:
    ``RandomResizedCrop``, ``RandomHorizontalFlip`` and ``ColorJitter`` of torchvision, with
    which DARTS, PC-DARTS and ProxylessNAS train on ImageNet; crops are as in Szegedy et al.
    (2015), arXiv:1409.4842. Differs: between two changes of colour nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import InvalidInputError

AREAS = (0.08, 1.0)
"""Share of the image that a crop covers, from and to."""

RATIOS = (3 / 4, 4 / 3)
"""Width of a crop by its height, from and to."""

TRIES = 10
"""Shapes drawn for an image before it is cropped in the middle."""

GREY = (0.2989, 0.587, 0.114)
"""How bright red, green and blue are."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Places in ``color_jitter``'s strengths."""


class Crops(NamedTuple):
    """A rectangle of each image, in pixels: four int64 tensors of shape ``(batch,)``."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def draw_crops(batch: int, height: int, width: int, generator: torch.Generator) -> Crops:
    """Draw a rectangle for each of ``batch`` images of one size.

    Area and the logarithm of the ratio are uniform in ``AREAS`` and ``RATIOS``. The first of
    ``TRIES`` shapes that fits into the image has a uniform place in it; without any, the
    largest of a permitted ratio is taken from the middle.

    Returns:
        The rectangles, on the generator's device.
    """
    device = generator.device
    drawn = torch.rand(4, TRIES, batch, generator=generator, device=device, dtype=torch.float64)
    area = height * width * (AREAS[0] + (AREAS[1] - AREAS[0]) * drawn[0])
    low, high = (math.log(ratio) for ratio in RATIOS)
    ratio = (low + (high - low) * drawn[1]).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(0, keepdim=True)
    found, tall, wide = (each.gather(0, first)[0] for each in (fits, heights.long(), widths.long()))
    whole_height = min(height, round(width / RATIOS[0]))
    whole_width = min(width, round(height * RATIOS[1]))
    tall = torch.where(found, tall, whole_height)
    wide = torch.where(found, wide, whole_width)
    free_y, free_x = height - tall, width - wide
    top, left = (
        torch.where(found, (share * (free + 1)).floor().long(), free // 2)
        for share, free in ((drawn[2, 0], free_y), (drawn[3, 0], free_x))
    )
    return Crops(top, left, tall, wide)


def resized_crop(images: Tensor, crops: Crops, flip: Tensor | None = None) -> Tensor:
    """Cut a rectangle out of each image and stretch it to the image's size.

    Bilinear, and without aliasing where it shrinks: every new pixel is the mean of the old
    ones under a triangle as wide as two new pixels, or two old ones if those are wider.

    Args:
        images: ``(batch, channels, height, width)``, of any real type.
        crops: On the device of ``images``.
        flip: ``(batch,)`` booleans: whether to mirror the image afterwards; None: none.

    Returns:
        float32 of the same shape and in the same units.
    """
    height, width = images.shape[2:]
    rows = _triangles(crops.top, crops.height, height)
    columns = _triangles(crops.left, crops.width, width)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ images.to(torch.float32) @ columns.transpose(1, 2)[:, None]


def color_jitter(images: Tensor, strengths: Sequence[float], generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in an order of its own.

    The first three are multiplied by a factor that is uniform in ``[max(0, 1 - s), 1 + s]``,
    the hue is turned by a part of a whole turn that is uniform in ``[-s, s]``.

    Args:
        images: ``(batch, channels, height, width)`` uint8 of 1 or 3 channels; grey ones have
            neither saturation nor hue.
        strengths: ``s`` of brightness, contrast, saturation and hue.
        generator: Source of the draws, on its own device.

    Returns:
        float32 of the same shape, on the same device, between 0 and 255, not rounded.

    Raises:
        InvalidInputError: The images have another number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise InvalidInputError(
            f"colour jitter takes images of 1 or 3 channels, not {images.shape[1]}; switch it off"
        )
    batch, device = len(images), generator.device
    order = torch.rand(batch, 4, generator=generator, device=device).argsort(1)
    drawn = torch.rand(batch, 4, generator=generator, device=device)
    ranges = [(max(0.0, 1 - s), 1 + s) for s in strengths[:HUE]]
    ranges.append((-strengths[HUE], strengths[HUE]))
    columns = zip(ranges, drawn.unbind(1), strict=True)
    factors = torch.stack([low + (high - low) * column for (low, high), column in columns], dim=1)
    order, factors = (each.to(images.device, non_blocking=True) for each in (order, factors))
    return 255 * adjust_colors(images.to(torch.float32) / 255, factors, order)


def adjust_colors(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Apply four changes of colour to each image, one after another.

    Args:
        images: ``(batch, channels, height, width)`` of 1 or 3 channels, between 0 and 1.
        factors: ``(batch, 4)``: factors of brightness, contrast and saturation, turn of hue.
        order: ``(batch, 4)``, int64: which change is the first, second, third and fourth.
    """
    at = torch.arange(4, device=order.device)
    turn = (order == HUE).int().argmax(1, keepdim=True)
    for stage in range(3):
        images = _blend(images, order[:, stage], factors, active=at[stage] < turn[:, 0])
    if images.shape[1] == 3:
        images = turn_hue(images, factors[:, HUE])
    for stage in range(1, 4):
        images = _blend(images, order[:, stage], factors, active=at[stage] > turn[:, 0])
    return images


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of each image by a part of a whole turn; saturation and value stay.

    In HSV, with h the hue in sixths of a turn, a channel is
    ``max - (max - min) clamp(min(k, 4 - k), 0, 1)`` where ``k = (n + h) mod 6`` and n is 5 for
    red, 3 for green and 1 for blue.

    Args:
        images: ``(batch, 3, height, width)``.
        turns: ``(batch,)``.
    """
    red, green, blue = images.unbind(1)
    most, least = images.amax(1), images.amin(1)
    chroma = most - least
    safe = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        most == red,
        (green - blue) / safe,
        torch.where(most == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sixths + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        place = (offset + turned).remainder(6)
        channels.append(most - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _blend(images: Tensor, change: Tensor, factors: Tensor, *, active: Tensor) -> Tensor:
    """Move ``active`` images away from black, their mean grey, or their grey, by the factor."""
    wanted = factors.gather(1, change[:, None])[:, 0]
    factor = torch.where(active & (change != HUE), wanted, 1.0)[:, None, None, None]
    grey = images
    if images.shape[1] == 3:
        red, green, blue = torch.split(images, 1, dim=1)
        grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    what = change[:, None, None, None]
    base = torch.where(what == CONTRAST, grey.mean((1, 2, 3), keepdim=True), grey)
    base = torch.where(what == BRIGHTNESS, 0.0, base)
    return (factor * images + (1 - factor) * base).clamp(0, 1)


def _triangles(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return the weights of old pixels in new ones, along one side of the images.

    Args:
        start: ``(batch,)``, the first old pixel of each rectangle.
        length: ``(batch,)``, its old pixels.
        size: Pixels of the side, old as well as new.

    Returns:
        ``(batch, new, old)``; the weights of a new pixel add up to 1.
    """
    start, length = start[:, None, None], length[:, None, None]
    pixels = torch.arange(size, device=start.device)
    step = length / size
    centre = start + (pixels[:, None] + 0.5) * step
    weights = (1 - (pixels + 0.5 - centre).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels >= start) & (pixels < start + length))
    return weights / weights.sum(2, keepdim=True)
