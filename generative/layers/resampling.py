"""Maps at twice or half the height and width: by pixels, or by the separable filter of EDM's U-Nets (arXiv 2206.00364)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.core.errors import UserError

Resampling = Literal["up", "down"]
"""Twice the height and width, or half of them."""


def filter_kernel(taps: Sequence[float], device: torch.device | None = None) -> Tensor:
    """A filter as a kernel (k, k) float32 that sums to 1.

    Args:
        taps: The filter along one axis, of even length; (1, 1) averages, or repeats, pixels.
        device: Of the kernel.
    """
    line = torch.tensor(list(taps), dtype=torch.float32, device=device)
    return line.outer(line) / line.sum() ** 2


def check_resample_filter(taps: Sequence[float]) -> None:
    """Refuse a filter that cannot halve and double a map.

    Raises:
        UserError: If its taps are not even in number, or their sum is 0.
    """
    if not taps or len(taps) % 2 or sum(taps) == 0:
        raise UserError(f"resample_filter must be an even number of taps whose sum is not 0, got {list(taps)}")


def depthwise(sample: Tensor, kernel: Tensor) -> Tensor:
    """A kernel (k, k) for each channel of maps (B, C, H, W), (C, 1, k, k)."""
    return kernel.to(sample.dtype).expand(sample.shape[1], 1, -1, -1)


def resample(sample: Tensor, resampling: Resampling, kernel: Tensor | None = None) -> Tensor:
    """Double or halve maps, with zeros around them.

    Args:
        sample: (B, C, H, W).
        resampling: Which of both.
        kernel: (k, k), see ``filter_kernel``; None for repetition of pixels, or averages of 2 x 2.

    Returns:
        (B, C, 2H, 2W) or (B, C, H/2, W/2).
    """
    if kernel is None:
        return F.interpolate(sample, scale_factor=2) if resampling == "up" else F.avg_pool2d(sample, 2)
    padding = (len(kernel) - 1) // 2
    if resampling == "down":
        return F.conv2d(sample, depthwise(sample, kernel), groups=sample.shape[1], stride=2, padding=padding)
    if padding:
        weight = 4 * depthwise(sample, kernel)
        return F.conv_transpose2d(sample, weight, groups=sample.shape[1], stride=2, padding=padding)
    # Two taps: each pixel becomes four of its own.
    four = (4 * kernel.to(sample.dtype))[:, None, :, None]  # (2, 1, 2, 1)
    pixels = sample.permute(0, 2, 3, 1)[:, :, None, :, None] * four  # (B, H, 2, W, 2, C)
    return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def resample_by_taps(sample: Tensor, resampling: Resampling, taps: Sequence[float] = (1, 1)) -> Tensor:
    """Double or halve maps by a filter that is no tensor; see ``resample`` and ``filter_kernel``."""
    is_plain = len(taps) == 2 and taps[0] == taps[1]
    return resample(sample, resampling, None if is_plain else filter_kernel(taps, sample.device))
