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


MAX_ASPECT = 16
"""Up to this ratio of the resized image's area to the crop's, images are resized whole and cropped then. Of longer ones only the
part is resized that the crop shows: whole, a line of 1 x 65,000 pixels would take gigabytes."""


def _halve(image: Image.Image, short_side: int) -> tuple[Image.Image, tuple[int, int]]:
    """Bring the short side near ``short_side`` as ADM does: halve with a box filter while at least twice as large.

    The two-stage reduction, this one and then a bicubic one, is part of the protocol behind published ImageNet figures; a
    one-stage filter gives other pixels.

    Returns:
        The image, and the size that the second stage brings it to: the aspect ratio is kept up to rounding to whole pixels.
    """
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = short_side / min(image.size)
    return image, (round(image.width * scale), round(image.height * scale))


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], place: tuple[int, int], side: int, resample: Image.Resampling
) -> Image.Image:
    """A square of an image that is resized.

    Args:
        image: Any size.
        size: Width and height that the whole image is resized to.
        place: Left and top of the square there.
        side: Of the square in pixels.
        resample: Filter.

    Returns:
        The square; of an image longer than ``MAX_ASPECT`` says, with levels that rounding may set off by 1, and more where the
        filter's overshoot is clipped, which Pillow does between its passes over rows and columns, in the order it chooses.
    """
    left, top = place
    if size == image.size or size[0] * size[1] <= MAX_ASPECT * side**2:
        resized = image if size == image.size else image.resize(size, resample=resample)
        return resized.crop((left, top, left + side, top + side))
    across, down = image.width / size[0], image.height / size[1]
    # Pillow's filter reads beyond the box as far as it reaches, so that the square has the pixels of the whole image resized.
    return image.resize((side, side), resample, box=(left * across, top * down, (left + side) * across, (top + side) * down))


def center_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resize the short side and crop the centre square: ADM's ``center_crop_arr`` (Dhariwal and Nichol, arXiv:2105.05233, code).

    Args:
        image: Any size.
        image_size: Side of the result in pixels.

    Returns:
        A square image of ``image_size`` pixels. An odd surplus is cut at the right and the bottom.
    """
    image, (width, height) = _halve(image, image_size)
    place = (width - image_size) // 2, (height - image_size) // 2
    return resize_and_crop(image, (width, height), place, image_size, Image.Resampling.BICUBIC)


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
    image, (width, height) = _halve(image, _random_integer(smallest, largest, generator))
    top = _random_integer(0, height - image_size, generator)
    left = _random_integer(0, width - image_size, generator)
    return resize_and_crop(image, (width, height), (left, top), image_size, Image.Resampling.BICUBIC)


def short_side_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resize the short side in one bicubic step and crop the centre square: ``Resize`` and ``CenterCrop`` of torchvision.

    Args:
        image: Any size.
        image_size: Side of the result in pixels.
    """
    width, height = short_side_size(image, image_size)
    place = round((width - image_size) / 2), round((height - image_size) / 2)
    return resize_and_crop(image, (width, height), place, image_size, Image.Resampling.BICUBIC)


def short_side_size(image: Image.Image, short_side: int) -> tuple[int, int]:
    """Width and height of an image whose short side is made ``short_side``; the long one is cut to whole pixels, as torchvision
    does."""
    short = min(image.size)
    if short == short_side:
        return image.size
    return int(short_side * image.width / short), int(short_side * image.height / short)


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
    if min(image.size) <= short_side:
        return image
    image, size = _halve(image, short_side)
    return image.resize(size, resample=Image.Resampling.BICUBIC)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _random_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform integer in [low, high], both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
