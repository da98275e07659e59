"""Convolution with 2x resampling before or after it, in four ninths of the multiplications.

Nearest-neighbour upsampling and then a 3x3 convolution are one transposed 4x4 convolution of stride 2; a 3x3 convolution and then
2x2 average pooling are one 4x4 convolution of stride 2 (so fused in the code of arXiv 1710.10196). The 4x4 kernel holds sums of
neighbours in the 3x3 one. All of it is linear: results and gradients differ by rounding only.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Pixels of the smaller map from which the 4x4 kernel pays: at 4x4 pixels as many multiplications go into making it, and oneDNN's
# strided kernels are slow (measured on two AVX-512 cores at 512 channels: 1.0x at 4x4 pixels, 1.9x at 8x8, 2.1x at 32x32).
MIN_PIXELS = 64


def effective_weight(conv: nn.Conv2d) -> Tensor:
    """Weight that a convolution convolves with, by its ``SpectralNorm`` if it has one (whose vectors move in train mode)."""
    spectral_norm = getattr(conv, "spectral_norm", None)
    return conv.weight if spectral_norm is None else spectral_norm(conv.weight)


def widen_kernel(weight: Tensor, kernel: Tensor | None = None) -> Tensor:
    """Convolve 3x3 kernels with a 2x2 kernel.

    Args:
        weight: (N, C, 3, 3), floating point.
        kernel: (2, 2); None for ones.

    Returns:
        (N, C, 4, 4), same dtype, in channels-last memory.
    """
    with torch.autocast(weight.device.type, enabled=False):  # sums of weights, in the weights' own precision
        if kernel is None:
            ones = weight.new_tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])  # (4, 3): convolves with (1, 1)
            matrix = torch.kron(ones, ones)  # (16, 9): rows and columns at once
        else:
            each = torch.eye(9, dtype=weight.dtype, device=weight.device).view(9, 1, 3, 3)
            matrix = F.conv2d(each, kernel.to(weight.dtype).flip(0, 1)[None, None], padding=1).flatten(1).t()
        wide = matrix @ weight.permute(0, 2, 3, 1).flatten(1, 2)  # (N, 16, C)
    return wide.unflatten(1, (4, 4)).permute(0, 3, 1, 2)  # (N, C, 4, 4)


def can_widen(conv: nn.Module, sample: Tensor, num_pixels: int) -> TypeGuard[nn.Conv2d]:
    """Whether a convolution is of the kind that can be widened, and gains by it on a smaller map of ``num_pixels``."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.padding == conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and num_pixels >= MIN_PIXELS
        and sample.device.type == "cpu"
    )


def upsample_conv(sample: Tensor, conv: nn.Module) -> Tensor:
    """Upsample x2 (nearest neighbour), then convolve: ``conv(F.interpolate(sample, scale_factor=2))`` up to rounding.

    Args:
        sample: (B, C, H, W).
        conv: Convolution that keeps the size.

    Returns:
        (B, C', 2H, 2W).
    """
    if not can_widen(conv, sample, sample.shape[2] * sample.shape[3]):
        return conv(F.interpolate(sample, scale_factor=2))
    # Inputs first as a transposed convolution has them, and upside down; while it is still small.
    weight = effective_weight(conv).flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)  # (C, C', 3, 3)
    return F.conv_transpose2d(sample, widen_kernel(weight), conv.bias, stride=2, padding=1)  # (B, C', 2H, 2W)


def conv_downsample(sample: Tensor, conv: nn.Module) -> Tensor:
    """Convolve, then average 2x2 pixels: ``F.avg_pool2d(conv(sample), 2)`` up to rounding.

    Args:
        sample: (B, C, H, W).
        conv: Convolution that keeps the size.

    Returns:
        (B, C', H/2, W/2), halves rounded down.
    """
    height, width = sample.shape[2] // 2, sample.shape[3] // 2
    if not can_widen(conv, sample, height * width):
        return F.avg_pool2d(conv(sample), 2)
    out = F.conv2d(sample, widen_kernel(effective_weight(conv)) / 4, conv.bias, stride=2, padding=1)
    return out  # (B, C', H/2, W/2)
