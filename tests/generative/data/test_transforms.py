"""Byte/float conversion, flips and ADM's crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from generative.data import transforms
from generative.data.transforms import center_crop, horizontal_flip, random_crop, short_side_crop


def test_flip_mirrors_the_width_of_masked_images_only() -> None:
    images = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4)
    flipped = horizontal_flip(images, torch.tensor([True, False]))
    assert torch.equal(flipped[0], images[0][..., [3, 2, 1, 0]])
    assert torch.equal(flipped[1], images[1])


def test_center_crop_takes_the_middle_without_resampling_when_the_short_side_fits() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 13, 3), dtype=np.uint8)
    cropped = np.asarray(center_crop(Image.fromarray(pixels), 8))
    assert np.array_equal(cropped, pixels[:, 2:10])  # (13 - 8) // 2 = 2


def test_center_crop_halves_with_a_box_filter() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    box = pixels.reshape(4, 4, 4, 4, 3).astype(float).mean((1, 3))  # two halvings = means of 4x4 blocks
    cropped = np.asarray(center_crop(Image.fromarray(pixels), 4)).astype(float)
    assert np.abs(cropped - box).max() <= 2  # two halvings in two directions round by at most 1/2 each
    bicubic = np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(bicubic - box).max() > 10  # which one resize would not give


@pytest.mark.parametrize("size", [(5, 9), (64, 33), (100, 301), (32, 32)])
def test_crops_have_the_asked_size(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    generator = torch.Generator().manual_seed(0)
    assert center_crop(image, 16).size == (16, 16)
    for _ in range(5):
        cropped = random_crop(image, 16, generator)
        assert cropped.size == (16, 16)
        assert cropped.getpixel((15, 15)) == (10, 20, 30)  # nothing outside the image is taken in


def test_random_crop_is_keyed_by_the_generator_and_varies() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    first = [np.asarray(random_crop(image, 16, torch.Generator().manual_seed(seed))) for seed in range(4)]
    again = [np.asarray(random_crop(image, 16, torch.Generator().manual_seed(seed))) for seed in range(4)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(first[0], other) for other in first[1:])
    with pytest.raises(ValueError, match="crop fractions"):
        random_crop(image, 16, torch.Generator(), min_crop_fraction=0.9, max_crop_fraction=0.8)


@pytest.mark.parametrize("size", [(2, 700), (700, 3), (5, 333), (40, 2500), (1501, 33)])
def test_long_pictures_are_cropped_as_others_without_being_resized_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(96, 160, (*size, 3), dtype=np.uint8)
    crops = (center_crop, short_side_crop, lambda image, side: random_crop(image, side, torch.Generator().manual_seed(2)))
    cropped = [np.asarray(crop(Image.fromarray(pixels), 32)).astype(int) for crop in crops]
    monkeypatch.setattr(transforms, "MAX_ASPECT", 10**9)
    for crop, ours in zip(crops, cropped, strict=True):
        whole = np.asarray(crop(Image.fromarray(pixels), 32)).astype(int)
        assert ours.shape == (32, 32, 3) and np.abs(ours - whole).max() <= 1


def test_a_line_of_pixels_takes_no_memory() -> None:
    """Resized whole it would be 256 x 16,640,000 pixels, twelve gigabytes."""
    for image in (Image.new("RGB", (65_000, 1), (1, 2, 3)), Image.new("RGB", (1, 65_000), (1, 2, 3))):
        for crop in (center_crop, short_side_crop):
            assert crop(image, 256).getextrema() == ((1, 1), (2, 2), (3, 3))
