"""Adversarial losses of tokenizers, on logits by hand."""

from __future__ import annotations

import math

import pytest
import torch

from generative.tokenizers.losses import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    adaptive_weight,
    lecam_regulariser,
)

REAL = torch.tensor([[[[2.0, 0.0]]], [[[0.5, -1.5]]]])
FAKE = torch.tensor([[[[-2.0, 1.0]]], [[[0.0, 0.0]]]])


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_hinge_over_patches() -> None:
    assert GENERATOR_LOSSES["hinge"](FAKE).item() == pytest.approx(0.25)
    real, fake = (0 + 1 + 0.5 + 2.5) / 4, (0 + 2 + 1 + 1) / 4
    assert DISCRIMINATOR_LOSSES["hinge"](REAL, FAKE).item() == pytest.approx(0.5 * (real + fake))


def test_non_saturating_takes_the_images_mean_logits() -> None:
    assert GENERATOR_LOSSES["non_saturating"](FAKE).item() == pytest.approx((softplus(0.5) + softplus(0.0)) / 2)
    real, fake = (softplus(-1.0) + softplus(0.5)) / 2, (softplus(-0.5) + softplus(0.0)) / 2
    assert DISCRIMINATOR_LOSSES["non_saturating"](REAL, FAKE).item() == pytest.approx(real + fake)


def test_lecam() -> None:
    value = lecam_regulariser(REAL, FAKE, torch.tensor(0.5), torch.tensor(-0.5))
    real, fake = (2.5**2 + 0.5**2 + 1 + 0) / 4, (2.5**2 + 0 + 0.25 + 0.25) / 4
    assert value.item() == pytest.approx(real + fake)


def test_the_adaptive_weight_of_losses_with_known_gradients() -> None:
    layer = torch.ones(4, requires_grad=True)
    assert adaptive_weight((6 * layer).sum(), (2 * layer).sum(), layer, 1e4).item() == pytest.approx(3, rel=1e-3)
    assert adaptive_weight((6 * layer).sum(), (2 * layer).sum(), layer, 0.5).item() == 0.5
    vanished = adaptive_weight((6 * layer).sum(), (0 * layer).sum(), layer, 1e9)
    assert vanished.item() == pytest.approx(12 / 1e-4) and not vanished.requires_grad
