"""Two views of the same images, made in bulk where the images are.

``byol`` is the asymmetric augmentation: a resized crop, a flip, colour jitter (p 0.8), grey
(p 0.2), then a blur with p 0.1 in view 1 and 1.0 in view 2, and solarising with p 0.2 in view
2 only (the official code has the blurs the other way round from BYOL's paper; so has this).
``crop`` is the augmentation of small images: a crop after padding an eighth, and a flip.

Every image has draws of its own. All come from the generator, on its own device, in an
order that does not depend on what is drawn.

Source:
    Grill et al. (2020), "Bootstrap Your Own Latent", arXiv:2006.07733. Differs: colour jitter
    applies brightness, contrast, saturation and hue in this order, not in a random one; hue is
    turned in YIQ, not in HSV; the blur's kernel is 23 pixels of 224, in proportion; crops are
    enlarged bilinearly, not bicubically, and a side that would exceed the image is cut to it
    where the original draws again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from nas.data import DataSet
from zoo.errors import UnknownNameError

Kind: TypeAlias = Literal["byol", "crop"]
KINDS: tuple[Kind, ...] = ("byol", "crop")

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a pixel."""


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """What one view may do to an image: probabilities, and the jitter's strengths."""

    blur: float
    solarise: float
    jitter: float = 0.8
    grey: float = 0.2
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1


BYOL: tuple[ViewRecipe, ViewRecipe] = (
    ViewRecipe(blur=0.1, solarise=0.0),
    ViewRecipe(blur=1.0, solarise=0.2),
)
"""View 1 and view 2."""


def two_views(
    data: DataSet, images: Tensor, kind: Kind, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return two normalised views of uint8 images ``(batch, channels, height, width)``.

    Raises:
        UnknownNameError: There is no such kind of views.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of views", str(kind), KINDS)
    if kind == "crop":
        made = [data.normalize(data.augment(images, generator)) for _ in range(2)]
    else:
        pixels = images.to(torch.float32) / 255
        made = [
            data.normalize(augment(pixels, recipe, generator, flips=data.flips) * 255)
            for recipe in BYOL
        ]
    return made[0], made[1]


def augment(
    pixels: Tensor, recipe: ViewRecipe, generator: torch.Generator, *, flips: bool = True
) -> Tensor:
    """Return one view of ``(batch, channels, height, width)`` in [0, 1], of the same shape.

    Grey images are not jittered in saturation and hue.
    """
    draw = _Draws(generator, len(pixels), pixels.device)
    x = resized_crop(pixels, draw, flips=flips)
    jitter = draw.flag(recipe.jitter)
    x = torch.where(jitter, _jitter(x, recipe, draw), x)
    grey = draw.flag(recipe.grey)
    if x.shape[1] == 3:
        x = torch.where(grey, _brightness(x).expand_as(x), x)
    if recipe.blur > 0:
        flag, sigma = draw.flag(recipe.blur), draw.uniform(0.1, 2.0)
        x = torch.where(flag, blur(x, sigma), x)
    solarised = draw.flag(recipe.solarise)
    return torch.where(solarised, torch.where(x >= 0.5, 1 - x, x), x)


def resized_crop(pixels: Tensor, draw: _Draws, *, flips: bool) -> Tensor:
    """Cut out 8 to 100 % of each image, of an aspect ratio of 3/4 to 4/3, and enlarge it."""
    area = draw.uniform(0.08, 1.0)
    ratio = draw.uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (draw.uniform(-1, 1) * (1 - side) for side in (wide, high))
    turn = torch.where(draw.flag(0.5), -1.0, 1.0) if flips else torch.ones_like(wide)
    zero = torch.zeros_like(wide)
    rows = [torch.cat(row, 1) for row in ((wide * turn, zero, left), (zero, high, top))]
    matrix = torch.stack([row.flatten(1) for row in rows], 1)
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return functional.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with a Gaussian of ``sigma`` ``(batch, 1, 1, 1)`` pixels of 224."""
    batch, channels, height, width = x.shape
    radius = max(1, round(11 * min(height, width) / 224))
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    scaled = sigma.flatten() * min(height, width) / 224
    weights = torch.softmax(-(at**2) / (2 * scaled[:, None] ** 2).clamp(min=1e-6), 1)
    kernel = weights.repeat_interleave(channels, 0)
    flat = x.reshape(1, batch * channels, height, width)
    padded = functional.pad(flat, (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel[:, None, :, None], groups=batch * channels)
    both = functional.conv2d(rows, kernel[:, None, None, :], groups=batch * channels)
    return both.reshape(x.shape)


class _Draws:
    """Draws ``(batch, 1, 1, 1)``, one an image."""

    def __init__(self, generator: torch.Generator, batch: int, device: torch.device) -> None:
        self._generator, self._batch, self._device = generator, batch, device

    def uniform(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(
            (self._batch, 1, 1, 1), generator=self._generator, device=self._generator.device
        )
        return low + (high - low) * drawn.to(self._device, non_blocking=True)

    def flag(self, probability: float) -> Tensor:
        return self.uniform(0, 1) < probability


def _jitter(x: Tensor, recipe: ViewRecipe, draw: _Draws) -> Tensor:
    def factor(strength: float) -> Tensor:
        return draw.uniform(1 - strength, 1 + strength)

    x = (x * factor(recipe.brightness)).clamp(0, 1)
    mean = _brightness(x).mean((1, 2, 3), keepdim=True)
    x = (mean + (x - mean) * factor(recipe.contrast)).clamp(0, 1)
    saturation, angle = factor(recipe.saturation), draw.uniform(-recipe.hue, recipe.hue)
    if x.shape[1] != 3:
        return x
    grey = _brightness(x)
    x = (grey + (x - grey) * saturation).clamp(0, 1)
    return turn_hue(x, 2 * math.pi * angle).clamp(0, 1)


def turn_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the hue of RGB images by ``angle`` ``(batch, 1, 1, 1)``, keeping the brightness."""
    to_yiq = x.new_tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    y, i, q = torch.einsum("oc,bchw->bohw", to_yiq, x).unbind(1)
    cos, sin = angle[:, 0].cos(), angle[:, 0].sin()
    turned = torch.stack((y, cos * i - sin * q, sin * i + cos * q), 1)
    return torch.einsum("oc,bchw->bohw", torch.linalg.inv(to_yiq), turned)


def _brightness(x: Tensor) -> Tensor:
    """Return ``(batch, 1, height, width)``."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
