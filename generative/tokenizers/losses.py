"""The adversarial and regularising losses of tokenizers, on patch logits. Higher logits mean more real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.gan.losses import d_hinge, d_non_saturating, g_hinge, g_non_saturating

AdversarialLoss = Literal["hinge", "non_saturating"]

ADAPTIVE_EPS = 1e-4
"""Keeps the adaptive weight finite where the adversarial gradient vanishes (VQGAN's official code; 1e-6 in its eq. 7)."""


def image_logits(logits: Tensor) -> Tensor:
    """Mean logit (B,) of each image's patches (B, ...)."""
    return logits.flatten(1).mean(1)


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """-mean D(x^) over all patches (VQGAN, LlamaGen)."""
    return g_hinge(fake_logits)


def generator_non_saturating(fake_logits: Tensor) -> Tensor:
    """mean softplus(-D(x^)), D(x^) the mean logit of an image's patches, as Open-MAGVIT2's code (arXiv 2409.04410) has it."""
    return g_non_saturating(image_logits(fake_logits))


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Half of mean relu(1 - D(x)) + mean relu(1 + D(x^)) over all patches (VQGAN and its line halve it)."""
    return 0.5 * d_hinge(real_logits, fake_logits)


def discriminator_non_saturating(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean softplus(-D(x)) + mean softplus(D(x^)) of the images' mean logits (Open-MAGVIT2's code)."""
    return d_non_saturating(image_logits(real_logits), image_logits(fake_logits))


GENERATOR_LOSSES: dict[AdversarialLoss, Callable[[Tensor], Tensor]] = {
    "hinge": generator_hinge,
    "non_saturating": generator_non_saturating,
}
DISCRIMINATOR_LOSSES: dict[AdversarialLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": discriminator_hinge,
    "non_saturating": discriminator_non_saturating,
}


def lecam_regulariser(real_logits: Tensor, fake_logits: Tensor, real_average: Tensor, fake_average: Tensor) -> Tensor:
    """LeCAM in the form that tokenizers use: mean relu(D(x) - a_F)^2 + mean relu(a_R - D(x^))^2.

    That is eq. 3 of arXiv 2104.03310 with a relu, as MAGVIT and Open-MAGVIT2 have it: real logits above the average of the
    generated ones cost, and generated ones below the average of the real ones.

    Args:
        real_logits: Any shape.
        fake_logits: Any shape.
        real_average: (), a_R, moving average of the real images' mean logit.
        fake_average: (), a_F, likewise of the reconstructions'.

    Returns:
        A scalar.
    """
    return F.relu(real_logits - fake_average).square().mean() + F.relu(real_average - fake_logits).square().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, limit: float) -> Tensor:
    """Balance of the gradients that two losses send to the last layer (arXiv 2012.09841, eq. 7): |g_rec| / (|g_adv| + 1e-4).

    Args:
        reconstruction: Scalar, differentiable.
        adversarial: Scalar, differentiable.
        last_layer: The weight at which they are compared.
        limit: Largest value.

    Returns:
        A detached scalar in [0, limit].
    """
    (to_reconstruct,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (to_deceive,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio = to_reconstruct.float().norm() / (to_deceive.float().norm() + ADAPTIVE_EPS)
    return ratio.clamp(0.0, limit).detach()
