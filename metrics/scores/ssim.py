"""SSIM: structural similarity of image pairs (Wang et al., IEEE Transactions on Image Processing 13(4), 2004)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.scores.psnr import check_pairs

_PEAK = 255.0
#: The paper's window (section III.B) and constants (section III.C).
WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (eq. 13), averaged over all places where the 11x11 Gaussian window fits, and over channels.

    Variances and the covariance are the window's weighted ones, not corrected for the sample count, as in the paper's
    code; scikit-image gives this with ``gaussian_weights=True, use_sample_covariance=False, sigma=1.5``.

    Args:
        first: uint8 (B, C, H, W), at least 11 pixels wide and high.
        second: uint8, the same shape.

    Returns:
        float64 (B,) in [-1, 1], 1 for equal images; papers print the mean over images.

    Raises:
        TypeError: If the images are not uint8.
        ValueError: If the shapes differ or the images are smaller than the window.
    """
    check_pairs(first, second)
    if min(first.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} px, got {tuple(first.shape[2:])}.")
    x, y = first.double(), second.double()
    mean_x, mean_y = _smooth(x), _smooth(y)
    variance_x = _smooth(x * x) - mean_x.square()
    variance_y = _smooth(y * y) - mean_y.square()
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def _smooth(images: Tensor) -> Tensor:
    """Weighted mean in the window around every place where it fits, (B, C, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window = window / window.sum()
    planes = images.flatten(0, 1).unsqueeze(1)  # (B C, 1, H, W)
    smoothed = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return smoothed.unflatten(0, images.shape[:2]).squeeze(2)
