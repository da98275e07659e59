"""Adversarial losses: for each what the discriminator and what the generator minimises. Higher logits mean more real.

Every function takes logits of any shape: a discriminator of several heads gives (B, N), and means are over all of them. Those
of the relativistic losses compare real and generated logits, so both must have one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

AdversarialLoss = Literal[
    "hinge",
    "non_saturating",
    "wasserstein",
    "least_squares",
    "relativistic",
    "relativistic_average",
    "relativistic_average_least_squares",
]


def d_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator (arXiv 1802.05957, eq. 16): mean relu(1 - D(real)) + mean relu(1 + D(fake)).

    Args:
        real_logits: Logits of real images, any shape.
        fake_logits: Logits of generated images, any shape.

    Returns:
        A scalar.
    """
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def g_hinge(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Generator's side of the hinge loss (arXiv 1802.05957, eq. 17): -mean D(fake).

    Args:
        fake_logits: Logits of generated images, any shape.
        real_logits: Logits of real images; only the relativistic losses look at them.

    Returns:
        A scalar.
    """
    return -fake_logits.mean()


def d_non_saturating(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Cross-entropy of the discriminator (arXiv 1406.2661, eq. 1): mean softplus(-D(real)) + mean softplus(D(fake))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def g_non_saturating(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Non-saturating loss of the generator (arXiv 1406.2661, section 3): mean softplus(-D(fake))."""
    return F.softplus(-fake_logits).mean()


def d_wasserstein(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Critic's loss (arXiv 1701.07875, eq. 2 with the sign turned): mean D(fake) - mean D(real). Needs a Lipschitz critic."""
    return fake_logits.mean() - real_logits.mean()


def g_wasserstein(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Generator's side of the Wasserstein loss (arXiv 1701.07875): -mean D(fake)."""
    return -fake_logits.mean()


def d_least_squares(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Least squares with targets 1 and 0 (arXiv 1611.04076, eq. 9): half the mean squared errors."""
    return 0.5 * (real_logits - 1).square().mean() + 0.5 * fake_logits.square().mean()


def g_least_squares(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Least squares of the generator with target 1 (arXiv 1611.04076, eq. 9)."""
    return 0.5 * (fake_logits - 1).square().mean()


def check_pairs(real_logits: Tensor, fake_logits: Tensor | None) -> Tensor:
    """The second logits, refused unless they are there and of the first's shape.

    Raises:
        ValueError: If not: broadcasting would compare every image with every other one.
    """
    if fake_logits is None or fake_logits.shape != real_logits.shape:
        other = None if fake_logits is None else tuple(fake_logits.shape)
        raise ValueError(
            f"a relativistic loss needs as many real as generated logits, got {tuple(real_logits.shape)} and {other}"
        )
    return fake_logits


def d_relativistic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Relativistic pairing discriminator (RpGAN, arXiv 1807.00734, section 4.1): mean softplus(-(D(real) - D(fake))).

    R3GAN (arXiv 2501.05441, eq. 2) trains with this loss, R1 and R2. Logit i of one is paired with logit i of the other.
    """
    return F.softplus(check_pairs(real_logits, fake_logits) - real_logits).mean()


def g_relativistic(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Generator's side of the pairing loss (arXiv 1807.00734, section 4.1): mean softplus(-(D(fake) - D(real)))."""
    return F.softplus(check_pairs(fake_logits, real_logits) - fake_logits).mean()


def d_relativistic_average(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Relativistic average discriminator (RaGAN, arXiv 1807.00734, section 4.2).

    mean softplus(-(D(real) - mean D(fake))) + mean softplus(D(fake) - mean D(real)).
    """
    return F.softplus(fake_logits.mean() - real_logits).mean() + F.softplus(fake_logits - real_logits.mean()).mean()


def g_relativistic_average(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Generator's side of RaGAN (arXiv 1807.00734, section 4.2): the discriminator's with real and generated exchanged."""
    return d_relativistic_average(fake_logits, check_pairs(fake_logits, real_logits))


def d_relativistic_average_least_squares(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Relativistic average least squares (RaLSGAN, arXiv 1807.00734, appendix; DeblurGAN-v2's RaGAN-LS, arXiv 1908.03826).

    mean (D(real) - mean D(fake) - 1)^2 + mean (D(fake) - mean D(real) + 1)^2. DeblurGAN-v2's code takes half of it.
    """
    return (real_logits - fake_logits.mean() - 1).square().mean() + (fake_logits - real_logits.mean() + 1).square().mean()


def g_relativistic_average_least_squares(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Generator's side of RaLSGAN: the discriminator's with real and generated exchanged."""
    return d_relativistic_average_least_squares(fake_logits, check_pairs(fake_logits, real_logits))


class LossPair(NamedTuple):
    """The two sides of an adversarial loss.

    Attributes:
        discriminator: ``(real_logits, fake_logits) -> scalar``.
        generator: ``(fake_logits, real_logits) -> scalar``; ``real_logits`` is None unless ``needs_real``.
        needs_real: Whether the generator's side compares with real images (the relativistic losses).
        is_shift_invariant: Whether adding a constant to every logit changes nothing. A conditional discriminator then has a free
            offset for each class, whose gradient is noise unless real image i and generated image i are of one class.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    needs_real: bool = False
    is_shift_invariant: bool = False


ADVERSARIAL_LOSSES: dict[AdversarialLoss, LossPair] = {
    "hinge": LossPair(d_hinge, g_hinge),
    "non_saturating": LossPair(d_non_saturating, g_non_saturating),
    "wasserstein": LossPair(d_wasserstein, g_wasserstein, is_shift_invariant=True),
    "least_squares": LossPair(d_least_squares, g_least_squares),
    "relativistic": LossPair(d_relativistic, g_relativistic, needs_real=True, is_shift_invariant=True),
    "relativistic_average": LossPair(d_relativistic_average, g_relativistic_average, needs_real=True, is_shift_invariant=True),
    "relativistic_average_least_squares": LossPair(
        d_relativistic_average_least_squares, g_relativistic_average_least_squares, needs_real=True, is_shift_invariant=True
    ),
}
