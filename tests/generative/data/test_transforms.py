"""Byte/float conversion, flips and ADM's crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from generative.data.transforms import (
    center_crop,
    horizontal_flip,
    images_to_float,
    images_to_uint8,
    random_crop,
    random_horizontal_flip,
)


def test_every_byte_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    floats = images_to_float(levels)
    assert floats.dtype == torch.float32
    assert floats[0] == -1 and floats[255] == 1
    assert torch.equal(images_to_uint8(floats), levels)


def test_halves_go_to_the_even_level_and_outside_values_are_clipped() -> None:
    # 127.5 -> 128 (even); 0.5 -> 0 (even); 1.5 -> 2 (even)
    images = torch.tensor([0.0, -1 + 0.5 / 127.5, -1 + 1.5 / 127.5, -7.0, 7.0, float("inf")], dtype=torch.float64)
    assert images_to_uint8(images).tolist() == [128, 0, 2, 0, 255, 255]


def test_half_precision_is_widened_before_scaling() -> None:
    assert images_to_uint8(torch.tensor([1.0, -1.0, 0.5], dtype=torch.bfloat16)).tolist() == [255, 0, 191]


def test_wrong_types_and_nan_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        images_to_float(torch.zeros(1))
    with pytest.raises(TypeError, match="floating point"):
        images_to_uint8(torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="NaN"):
        images_to_uint8(torch.tensor([0.0, float("nan")]))


def test_flip_mirrors_the_width_of_masked_images_only() -> None:
    images = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4)
    flipped = horizontal_flip(images, torch.tensor([True, False]))
    assert torch.equal(flipped[0], images[0][..., [3, 2, 1, 0]])
    assert torch.equal(flipped[1], images[1])


def test_random_flip_is_keyed_by_the_generator() -> None:
    images = torch.arange(64 * 3 * 2 * 2).view(64, 3, 2, 2)
    first = random_horizontal_flip(images, torch.Generator().manual_seed(3))
    assert torch.equal(first, random_horizontal_flip(images, torch.Generator().manual_seed(3)))
    num_flipped = int((first != images).flatten(1).any(1).sum())
    assert 16 < num_flipped < 48
    assert torch.equal(random_horizontal_flip(images, torch.Generator(), probability=0.0), images)


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


def test_bytes_are_contiguous_whatever_the_memory_format_of_the_network() -> None:
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert images_to_uint8(images).is_contiguous()
