"""Image transforms: pure functions of pixels, with randomness passed in.

``images_to_float`` and ``images_to_uint8`` are the only two places where the project converts between bytes and [-1, 1].
"""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

HALF_RANGE = 127.5
"""Half of the byte range 0..255, in byte levels: 0 -> -1, 255 -> 1."""


def images_to_float(images: Tensor) -> Tensor:
    """Convert bytes to the range networks work in: ``x / 127.5 - 1``.

    Args:
        images: Any shape, uint8, in [0, 255].

    Returns:
        Same shape, float32, in [-1, 1].

    Raises:
        TypeError: If the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in [0, 255], got {images.dtype}")
    return images.to(torch.float32).div_(HALF_RANGE).sub_(1.0)


def images_to_uint8(images: Tensor) -> Tensor:
    """Convert images in [-1, 1] to bytes: ``round(x * 127.5 + 127.5)`` clipped to [0, 255].

    The nearest level is taken, halves to the even one (IEEE 754, as ``torch.round``), so ``0.0`` becomes 128. This inverts
    ``images_to_float`` exactly. Float16 and bfloat16 are widened to float32 first.

    Args:
        images: Any shape, floating point; values outside [-1, 1] are clipped.

    Returns:
        Same shape, uint8, contiguous (a network may hand on channels-last memory).

    Raises:
        TypeError: If the images are not floating point.
        ValueError: If they contain NaN, which has no byte value (a black picture would hide it).
    """
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [-1, 1], got {images.dtype}")
    levels = images.detach().to(torch.float32) * HALF_RANGE + HALF_RANGE
    if bool(torch.isnan(levels).any()):
        raise ValueError("images contain NaN, which cannot become pixels; the network or its weights have diverged")
    return levels.round_().clamp_(0, 255).to(torch.uint8, memory_format=torch.contiguous_format)


def horizontal_flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the masked images left to right.

    Args:
        images: (B, C, H, W), any dtype.
        mask: (B,) bool, True where the image is mirrored.

    Returns:
        (B, C, H, W), a new tensor.
    """
    return torch.where(mask.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def random_horizontal_flip(images: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Mirror each image left to right with the given probability.

    Args:
        images: (B, C, H, W), any dtype.
        generator: CPU generator; one uniform number is drawn per image, in order.
        probability: In [0, 1].

    Returns:
        (B, C, H, W), a new tensor.
    """
    return horizontal_flip(images, torch.rand(images.shape[0], generator=generator) < probability)


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
