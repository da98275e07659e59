"""SSIM: the paper's formula window by window, and cases with a known value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metrics.scores.ssim import ssim

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def window_by_window(first: np.ndarray, second: np.ndarray) -> float:
    """Eq. 13 to 16 of the paper with explicit weighted sums, for one channel."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            x = first[row : row + 11, column : column + 11].astype(np.float64)
            y = second[row : row + 11, column : column + 11].astype(np.float64)
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            values.append(
                (2 * mean_x * mean_y + C1)
                * (2 * covariance + C2)
                / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))
            )
    return float(np.mean(values))


def test_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(256, (2, 3, 14, 17), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-40, 41, first.shape, generator=generator)
    second = (first.int() + noise).clamp(0, 255).to(torch.uint8)
    expected = [
        np.mean([window_by_window(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)])
        for x, y in zip(first, second, strict=True)
    ]
    assert ssim(first, second).tolist() == pytest.approx(expected, rel=1e-9)
    assert 0.5 < expected[0] < 0.99


def test_known_values() -> None:
    ramp = torch.arange(16, dtype=torch.uint8).expand(1, 1, 16, 16) * 10
    assert ssim(ramp, ramp).item() == pytest.approx(1)
    assert ssim(ramp, 150 - ramp).item() < 0  # turned round, everything varies the other way
    one, other = torch.full((1, 3, 11, 11), 100, dtype=torch.uint8), torch.full((1, 3, 11, 11), 50, dtype=torch.uint8)
    assert ssim(one, other).item() == pytest.approx((2 * 100 * 50 + C1) / (100**2 + 50**2 + C1))


def test_wrong_input_is_told() -> None:
    images = torch.zeros(1, 3, 10, 12, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"at least 11 px, got \(10, 12\)"):
        ssim(images, images)
    with pytest.raises(TypeError, match="must be uint8"):
        ssim(images.float(), images.float())
