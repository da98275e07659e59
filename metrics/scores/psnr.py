"""PSNR: peak signal-to-noise ratio of image pairs."""

from __future__ import annotations

import torch
from torch import Tensor

#: Largest value of an 8-bit pixel.
_PEAK = 255.0


def check_pairs(first: Tensor, second: Tensor) -> None:
    """Refuse what are not pairs of 8-bit images.

    Raises:
        TypeError: If a tensor is not uint8.
        ValueError: If the shapes differ or are not (B, C, H, W).
    """
    if first.dtype != torch.uint8 or second.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {first.dtype} and {second.dtype}.")
    if first.dim() != 4 or first.shape != second.shape:
        raise ValueError(f"image pairs must both be (B, C, H, W), got {tuple(first.shape)} and {tuple(second.shape)}.")


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio: ``10 log10(255^2 / mse)``, the mean squared error over all pixels and channels of an image.

    Args:
        first: uint8 (B, C, H, W).
        second: uint8, the same shape.

    Returns:
        float64 (B,) decibels, higher for more alike, infinite for equal images; papers print the mean over images.

    Raises:
        TypeError: If the images are not uint8.
        ValueError: If the shapes differ.
    """
    check_pairs(first, second)
    error = (first.double() - second.double()).square().mean((1, 2, 3))  # (B,)
    return 10 * torch.log10(_PEAK**2 / error)
