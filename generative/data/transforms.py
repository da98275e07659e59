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


def short_side_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resize the short side in one bicubic step and crop the centre square: ``Resize`` and ``CenterCrop`` of torchvision.

    Args:
        image: Any size.
        image_size: Side of the result in pixels.
    """
    short = min(image.size)
    if short != image_size:  # the long side is cut to whole pixels, as torchvision does
        size = (int(image_size * image.width / short), int(image_size * image.height / short))
        image = image.resize(size, resample=Image.Resampling.BICUBIC)
    left, top = round((image.width - image_size) / 2), round((image.height - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))


def random_resized_crop(
    image: Image.Image,
    image_size: int,
    generator: torch.Generator,
    areas: tuple[float, float] = (0.08, 1.0),
    ratios: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A rectangle of random area and aspect, resized to a square (Szegedy et al., arXiv:1409.4842, section 6).

    Ten tries are made, as in torchvision; of an image into which none fits the largest centre crop within ``ratios`` is taken.

    Args:
        image: Any size.
        image_size: Side of the result in pixels.
        generator: CPU generator.
        areas: Least and most of the image's area.
        ratios: Least and most of width over height; their logarithm is uniform.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * _uniform(*areas, generator)
        ratio = math.exp(_uniform(math.log(ratios[0]), math.log(ratios[1]), generator))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = _random_integer(0, width - w, generator), _random_integer(0, height - h, generator)
            break
    else:
        w, h = min(width, round(height * ratios[1])), min(height, round(width / ratios[0]))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)


def limit_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """The whole image, made smaller as ADM does it where its short side is longer than ``short_side`` pixels."""
    return image if min(image.size) <= short_side else _resize_short_side(image, short_side)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _random_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform integer in [low, high], both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
