"""Random resized crops and colour jitter equal torchvision's, and have the stated spread."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from nas.data.transforms import (
    Crops,
    adjust_colors,
    color_jitter,
    draw_crops,
    resized_crop,
    turn_hue,
)
from zoo.compat import declare_torchvision_operators
from zoo.errors import InvalidInputError


@pytest.fixture(scope="module")
def functional() -> Any:
    declare_torchvision_operators()
    from torchvision.transforms import functional

    return functional


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_of_crops_equals_torchvision_image_by_image(functional: Any, channels: int) -> None:
    images = torch.rand(16, channels, 20, 28, generator=seeded(0))
    crops = draw_crops(16, 20, 28, seeded(1))
    flip = torch.arange(16) % 2 == 1
    found = resized_crop(images, crops, flip)
    for at, image in enumerate(images):
        place = [int(side[at]) for side in crops]
        wanted = functional.resized_crop(image, *place, [20, 28], antialias=True)
        wanted = functional.hflip(wanted) if flip[at] else wanted
        torch.testing.assert_close(found[at], wanted, rtol=0, atol=3e-6)


def test_a_crop_of_everything_changes_nothing() -> None:
    images = torch.randint(256, (3, 3, 9, 7), generator=seeded(0), dtype=torch.uint8)
    zero = torch.zeros(3, dtype=torch.int64)
    whole = Crops(zero, zero, zero + 9, zero + 7)
    assert torch.equal(resized_crop(images, whole), images.float())


def test_crops_have_the_stated_areas_and_ratios_and_lie_within() -> None:
    crops = draw_crops(20_000, 224, 224, seeded(0))
    share = (crops.height * crops.width) / 224**2
    ratio = crops.width / crops.height
    assert 0.078 < float(share.min()) < 0.09
    assert 0.97 < float(share.max()) <= 1
    assert 0.74 < float(ratio.min()) < 0.77
    assert 1.3 < float(ratio.max()) < 1.35
    # Shapes that do not fit are drawn anew, so that large ones are rarer than small ones.
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(ratio.log().mean()) == pytest.approx(0, abs=0.01)
    for start, length in ((crops.top, crops.height), (crops.left, crops.width)):
        assert int(start.min()) == 0
        assert int((start + length).max()) == 224
        free = 224 - length
        inside = (start / free)[free > 20]
        assert float(inside.mean()) == pytest.approx(0.5, abs=0.01)


def test_where_no_shape_fits_the_middle_is_taken() -> None:
    # Even the smallest crop of such a strip is higher than it.
    crops = draw_crops(5, 1, 400, seeded(0))
    assert {tuple(int(side[at]) for side in crops) for at in range(5)} == {(0, 199, 1, 1)}
    crops = draw_crops(5, 400, 1, seeded(0))
    assert {tuple(int(side[at]) for side in crops) for at in range(5)} == {(199, 0, 1, 1)}


@pytest.mark.parametrize("channels", [1, 3])
def test_changes_of_colour_equal_torchvision_in_every_order(functional: Any, channels: int) -> None:
    order = torch.tensor(list(itertools.permutations(range(4))))
    images = torch.rand(24, channels, 6, 5, generator=seeded(0))
    images[3], images[4, :, :, :2], images[5, :, 0] = 0.4, 0.0, 1.0
    factors = 0.5 + torch.rand(24, 4, generator=seeded(1))
    factors[:, 3] -= 1
    found = adjust_colors(images, factors, order)
    changes = [
        functional.adjust_brightness, functional.adjust_contrast,
        functional.adjust_saturation, functional.adjust_hue,
    ]  # fmt: skip
    for at, image in enumerate(images):
        for change in order[at].tolist():
            image = changes[change](image, float(factors[at, change]))
        torch.testing.assert_close(found[at], image, rtol=0, atol=5e-6)


def test_a_third_of_a_turn_makes_red_green() -> None:
    red = torch.tensor([1.0, 0.25, 0.25])[None, :, None, None]
    turned = turn_hue(red, torch.tensor([1 / 3]))[0, :, 0, 0]
    torch.testing.assert_close(turned, torch.tensor([0.25, 1.0, 0.25]))


def test_jitter_repeats_with_its_generator_and_keeps_to_its_strengths() -> None:
    images = torch.full((4000, 1, 1, 1), 100, dtype=torch.uint8)
    once, again = (color_jitter(images, (0.4, 0, 0, 0), seeded(2)) for _ in range(2))
    assert torch.equal(once, again)
    assert 60 <= float(once.min()) < 62
    assert 138 < float(once.max()) <= 140.001
    assert float(once.mean()) == pytest.approx(100, abs=1.5)
    colours = torch.randint(256, (8, 3, 4, 4), generator=seeded(0), dtype=torch.uint8)
    same = color_jitter(colours, (0, 0, 0, 0), seeded(0))
    torch.testing.assert_close(same, colours.float(), rtol=0, atol=1e-3)
    assert color_jitter(colours, (9, 9, 9, 0.5), seeded(0)).amax() <= 255
    with pytest.raises(InvalidInputError, match="1 or 3 channels, not 2"):
        color_jitter(colours[:, :2], (0.4, 0.4, 0.4, 0.2), seeded(0))
