"""PSNR on cases with a known value."""

from __future__ import annotations

import math

import pytest
import torch

from metrics.scores.psnr import psnr


def test_known_errors() -> None:
    first = torch.full((4, 3, 5, 7), 100, dtype=torch.uint8)
    second = first.clone()
    second[0] += 1  # mse 1
    second[1, 0] += 10  # mse 100 / 3
    second[2, :, 0, 0] = 0  # mse 100^2 / 35
    expected = [20 * math.log10(255), 10 * math.log10(255**2 * 3 / 100), 10 * math.log10(255**2 * 35 / 100**2), math.inf]
    assert psnr(first, second).tolist() == pytest.approx(expected)
    assert psnr(second, first).tolist() == pytest.approx(expected)
    black, white = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert psnr(black, white).item() == 0


def test_wrong_input_is_told() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match="must be uint8, got torch.float32 and torch.uint8"):
        psnr(images.float(), images)
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        psnr(images, images[:1])
