"""Adversarial losses: for each game what the discriminator and what the generator minimises. Higher logits mean more real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

AdversarialLoss = Literal["hinge", "non_saturating", "wasserstein", "least_squares"]


def d_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator (arXiv 1802.05957, eq. 16): mean relu(1 - D(real)) + mean relu(1 + D(fake)).

    Args:
        real_logits: Logits of real images, any shape.
        fake_logits: Logits of generated images, any shape.

    Returns:
        A scalar.
    """
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def g_hinge(fake_logits: Tensor) -> Tensor:
    """Generator's side of the hinge game (arXiv 1802.05957, eq. 17): -mean D(fake)."""
    return -fake_logits.mean()


def d_non_saturating(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Cross-entropy of the discriminator (arXiv 1406.2661, eq. 1): mean softplus(-D(real)) + mean softplus(D(fake))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def g_non_saturating(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator (arXiv 1406.2661, section 3): mean softplus(-D(fake))."""
    return F.softplus(-fake_logits).mean()


def d_wasserstein(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Critic's loss (arXiv 1701.07875, eq. 2 with the sign turned): mean D(fake) - mean D(real). Needs a Lipschitz critic."""
    return fake_logits.mean() - real_logits.mean()


def g_wasserstein(fake_logits: Tensor) -> Tensor:
    """Generator's side of the Wasserstein game (arXiv 1701.07875): -mean D(fake)."""
    return -fake_logits.mean()


def d_least_squares(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Least squares with targets 1 and 0 (arXiv 1611.04076, eq. 9): half the mean squared errors."""
    return 0.5 * (real_logits - 1).square().mean() + 0.5 * fake_logits.square().mean()


def g_least_squares(fake_logits: Tensor) -> Tensor:
    """Least squares of the generator with target 1 (arXiv 1611.04076, eq. 9)."""
    return 0.5 * (fake_logits - 1).square().mean()


class LossPair(NamedTuple):
    """The two sides of an adversarial game.

    Attributes:
        discriminator: ``(real_logits, fake_logits) -> scalar``.
        generator: ``(fake_logits) -> scalar``.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


ADVERSARIAL_LOSSES: dict[AdversarialLoss, LossPair] = {
    "hinge": LossPair(d_hinge, g_hinge),
    "non_saturating": LossPair(d_non_saturating, g_non_saturating),
    "wasserstein": LossPair(d_wasserstein, g_wasserstein),
    "least_squares": LossPair(d_least_squares, g_least_squares),
}


def squared_gradient_norm(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the logits' gradient with respect to each image (R1 on real images: arXiv 1801.04406, eq. 9).

    Args:
        logits: (B,) or (B, N), a function of ``images`` image by image.
        images: (B, 3, H, W) that require gradients.

    Returns:
        (B,), differentiable again.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)
