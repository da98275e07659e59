"""Adversarial losses by hand on two logits, and the penalty on a known function."""

from __future__ import annotations

import math

import pytest
import torch

from generative.gan.losses import ADVERSARIAL_LOSSES, squared_gradient_norm

REAL, FAKE = torch.tensor([0.5, 3.0]), torch.tensor([-0.25, -2.0])


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("hinge", (0.5 + 0.0) / 2 + (0.75 + 0.0) / 2, 1.125),
        (
            "non_saturating",
            (softplus(-0.5) + softplus(-3.0)) / 2 + (softplus(-0.25) + softplus(-2.0)) / 2,
            (softplus(0.25) + softplus(2.0)) / 2,
        ),
        ("wasserstein", -1.125 - 1.75, 1.125),
        ("least_squares", 0.5 * (0.25 + 4.0) / 2 + 0.5 * (0.0625 + 4.0) / 2, 0.5 * (1.25**2 + 9.0) / 2),
    ],
)
def test_values_by_hand(name: str, discriminator: float, generator: float) -> None:
    pair = ADVERSARIAL_LOSSES[name]
    assert pair.discriminator(REAL, FAKE).item() == pytest.approx(discriminator, rel=1e-5)
    assert pair.generator(FAKE).item() == pytest.approx(generator, rel=1e-5)


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_each_side_pulls_its_own_way(name: str) -> None:
    """The discriminator raises real and lowers fake logits, the generator raises fake ones: swapped arguments would show."""
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    pair = ADVERSARIAL_LOSSES[name]
    (pair.discriminator(real, fake + 0.5)).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    pair.generator(fake).backward()
    assert (fake.grad < 0).all()


def test_squared_gradient_norm_of_a_linear_function() -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4, requires_grad=True)
    penalty = squared_gradient_norm((images * weight).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, weight.detach().square().sum().expand(2))
    penalty.sum().backward()
    torch.testing.assert_close(weight.grad, 4 * weight.detach())
