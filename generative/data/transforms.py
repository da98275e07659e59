"""Image transforms: pure functions of pixels, with randomness passed in."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor


def horizontal_flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the masked images left to right.

    Args:
        images: (B, C, H, W), any dtype.
        mask: (B,) bool, True where the image is mirrored.

    Returns:
        (B, C, H, W), a new tensor.
    """
    return torch.where(mask.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def _resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Bring the short side to ``short_side`` as ADM does: halve with a box filter while at least twice as large, then bicubic.

    The aspect ratio is kept up to rounding to whole pixels. The two-stage reduction is part of the protocol behind published
    ImageNet figures; a one-stage filter gives other pixels.
    """
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = short_side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resize the short side and crop the centre square: ADM's ``center_crop_arr`` (Dhariwal and Nichol, arXiv:2105.05233, code).

    Args:
        image: Any size.
        image_size: Side of the result in pixels.

    Returns:
        A square image of ``image_size`` pixels. An odd surplus is cut at the right and the bottom.
    """
    image = _resize_short_side(image, image_size)
    left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))


def random_crop(
    image: Image.Image,
    image_size: int,
    generator: torch.Generator,
    min_crop_fraction: float = 0.8,
    max_crop_fraction: float = 1.0,
) -> Image.Image:
    """Resize to a random short side and crop a random square: ADM's ``random_crop_arr`` (arXiv:2105.05233, code).

    Args:
        image: Any size.
        image_size: Side of the result in pixels.
        generator: CPU generator; three integers are drawn (short side, top, left).
        min_crop_fraction: Smallest crop as a fraction of the short side, in (0, max_crop_fraction].
        max_crop_fraction: Largest crop as a fraction of the short side, at most 1.

    Returns:
        A square image of ``image_size`` pixels.

    Raises:
        ValueError: If the fractions are out of order or out of (0, 1].
    """
    if not 0 < min_crop_fraction <= max_crop_fraction <= 1:
        raise ValueError(
            f"crop fractions must satisfy 0 < min <= max <= 1, got min {min_crop_fraction} and max {max_crop_fraction}"
        )
    smallest, largest = math.ceil(image_size / max_crop_fraction), math.ceil(image_size / min_crop_fraction)
    image = _resize_short_side(image, _random_integer(smallest, largest, generator))
    top = _random_integer(0, image.height - image_size, generator)
    left = _random_integer(0, image.width - image_size, generator)
    return image.crop((left, top, left + image_size, top + image_size))


def _random_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform integer in [low, high], both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
