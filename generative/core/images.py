"""Between bytes and the range that networks work in, [-1, 1]: the only place where the project converts."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE_RANGE_KEY = "_image_range"
"""Key of a network's config: least and largest value of the images that it takes and makes, where that is not [-1, 1]. diffusers
takes keys without "_" for constructor arguments."""
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


def images_to_unit_range(images: Tensor) -> Tensor:
    """Convert images in [-1, 1] to [0, 1], the range of diffusers' outputs.

    Args:
        images: Any shape, floating point; values outside [-1, 1] are clipped.

    Returns:
        Same shape and type, in [0, 1].
    """
    return (images / 2 + 0.5).clamp(0, 1)
