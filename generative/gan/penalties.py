"""Penalties on the discriminator: pure functions, and the classes that a configuration names.

Lazy regularisation (StyleGAN2, arXiv 1912.04958, appendix B): a penalty of ``interval`` k > 1 is taken at every k-th step only,
in an optimizer step of its own, and scaled by k, so that its expected gradient is that of one taken at every step. With Adam that
paper also changes the discriminator's learning rate to c lr and its betas to beta^c, c = k / (k + 1), because k + 1 optimizer
steps now stand for k. That is left to the configuration, where both numbers are written out.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import Losses

Discriminator = Callable[[Tensor, Tensor], Tensor]
"""``(images (B, 3, H, W), class_labels (B,)) -> (B,) or (B, N)`` float32 logits."""


def squared_gradient_norm(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the logits' gradient with respect to each image (R1 on real images: arXiv 1801.04406, eq. 9; R2: eq. 10).

    Args:
        logits: (B,) or (B, N), a function of ``images`` image by image; the N logits of an image are summed.
        images: (B, 3, H, W) that require gradients.

    Returns:
        (B,), differentiable again.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def interpolated_gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Gradient penalty of WGAN-GP between real and generated images (arXiv 1704.00028, eq. 3, algorithm 1).

    Args:
        discriminator: ``(B, 3, H, W) -> (B,) or (B, N)`` logits, labels bound; the N logits of an image are summed.
        real: (B, 3, H, W).
        fake: (B, 3, H, W).
        alpha: (B, 1) in [0, 1], weight of the real image; one number for all of an image's pixels.

    Returns:
        (B,): (||grad D(alpha real + (1 - alpha) fake)||_2 - 1)^2, differentiable again.
    """
    alpha = alpha.view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    mixed = (alpha * real + (1 - alpha) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square()


@dataclass(frozen=True)
class PenaltyInputs:
    """What a penalty may look at in one micro-batch.

    Attributes:
        real: (B, 3, H, W) real images in [-1, 1].
        real_labels: (B,) their classes.
        fake: (B, 3, H, W) generated images, detached from the generator; empty (0, 3, H, W) for a penalty that needs none.
        fake_labels: (B,) their classes.
        z: (B, Z) the noise they were made from.
        generate: ``(z, class_labels) -> images``, the generator in train mode.
        discriminate: The discriminator on the images as they are.
        discriminate_augmented: The discriminator behind the run's differentiable augmentation.
        random: Source of the randomness used, on the images' device.
    """

    real: Tensor
    real_labels: Tensor
    fake: Tensor
    fake_labels: Tensor
    z: Tensor
    generate: Callable[[Tensor, Tensor], Tensor]
    discriminate: Discriminator
    discriminate_augmented: Discriminator
    random: torch.Generator


class Penalty(abc.ABC):
    """A term of the discriminator's loss that is more than a function of logits.

    Args:
        weight: Its weight, at least 0.
        interval: 1 adds it to the discriminator's loss at every step; k > 1 takes it in a lazy phase of its own every k-th
            training step, scaled by k (see the module).

    Attributes:
        name: Name of its phase and prefix of its logged values.
        needs_fake: Whether it looks at generated images.
    """

    name: ClassVar[str]
    needs_fake: ClassVar[bool] = True

    def __init__(self, weight: float, interval: int = 1) -> None:
        if not weight >= 0:
            raise UserError(f"{type(self).__name__} weight must be at least 0, got {weight}")
        if interval < 1:
            raise UserError(f"{type(self).__name__} interval must be at least 1, got {interval}")
        self.weight = weight
        self.interval = interval

    @property
    def is_active(self) -> bool:
        """Whether its weight is above 0: only then does it run."""
        return self.weight > 0

    @abc.abstractmethod
    def losses(self, inputs: PenaltyInputs) -> Losses:
        """Compute it.

        Args:
            inputs: Images, labels and networks.

        Returns:
            ``"loss"``, weighted but not scaled by the interval, which is differentiated, and detached scalars to log.
        """

    def generator_losses(self, inputs: PenaltyInputs) -> Losses:
        """The generator's side, added to its loss at every step; none for most penalties.

        Args:
            inputs: As for ``losses``, but with ``fake`` attached to the generator.

        Returns:
            As ``losses``, or nothing.
        """
        return {}


class R1(Penalty):
    """Zero-centred gradient penalty on real images (arXiv 1801.04406, eq. 9): gamma/2 mean |grad D(real)|^2.

    Args:
        weight: gamma.
        interval: See ``Penalty``; 16 is StyleGAN2's.
    """

    name = "r1"
    needs_fake = False

    def __init__(self, weight: float, interval: int = 16) -> None:
        super().__init__(weight, interval)

    def losses(self, inputs: PenaltyInputs) -> Losses:
        """Differentiate through the augmentation to the images themselves."""
        return half_squared_gradient(inputs.real, inputs.real_labels, inputs.discriminate_augmented, self.weight)


class R2(Penalty):
    """Zero-centred gradient penalty on generated images (arXiv 1801.04406, eq. 10): gamma/2 mean |grad D(fake)|^2.

    Args:
        weight: gamma.
        interval: See ``Penalty``.
    """

    name = "r2"

    def __init__(self, weight: float, interval: int = 16) -> None:
        super().__init__(weight, interval)

    def losses(self, inputs: PenaltyInputs) -> Losses:
        """Differentiate through the augmentation to the images themselves."""
        return half_squared_gradient(inputs.fake, inputs.fake_labels, inputs.discriminate_augmented, self.weight)


class GradientPenalty(Penalty):
    """WGAN-GP's gradient penalty (arXiv 1704.00028, eq. 3), one interpolation weight per image, under the real image's class.

    Args:
        weight: lambda; 10 is the paper's.
        interval: See ``Penalty``; the paper takes it at every step.
    """

    name = "gradient_penalty"

    def __init__(self, weight: float = 10.0, interval: int = 1) -> None:
        super().__init__(weight, interval)

    def losses(self, inputs: PenaltyInputs) -> Losses:
        """Draw the interpolation and take the mean over images."""
        alpha = torch.rand((len(inputs.real), 1), generator=inputs.random, device=inputs.real.device).to(inputs.real.dtype)
        with torch.compiler.set_stance("force_eager"):  # compiled graphs cannot be differentiated twice
            penalty = interpolated_gradient_penalty(
                lambda images: inputs.discriminate_augmented(images, inputs.real_labels), inputs.real, inputs.fake, alpha
            ).mean()
        return {"loss": self.weight * penalty, "penalty": penalty.detach()}


def half_squared_gradient(images: Tensor, class_labels: Tensor, discriminate: Discriminator, weight: float) -> Losses:
    """gamma/2 times the mean squared gradient norm at some images, as R1 and R2 have it."""
    images = images.detach().clone().requires_grad_(True)
    with torch.compiler.set_stance("force_eager"):  # compiled graphs cannot be differentiated twice
        penalty = squared_gradient_norm(discriminate(images, class_labels), images).mean()
    return {"loss": 0.5 * weight * penalty, "penalty": penalty.detach()}


def check_penalties(penalties: Sequence[Penalty]) -> None:
    """Refuse what is no penalty, and two of a kind: phases and logged values are named after the kind.

    Raises:
        UserError: If so.
    """
    for penalty in penalties:
        if not isinstance(penalty, Penalty):
            raise UserError(f"penalties must be classes such as generative.gan.penalties.R1, got {penalty!r}")
    names = [penalty.name for penalty in penalties]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"penalties has {twice!r} twice; give it once, with the sum of the weights")


def add_losses(losses: Losses, more: Losses, prefix: str) -> None:
    """Add a penalty's loss to a phase's, in place, and log the rest of its values under its name."""
    for name, value in more.items():
        if name == "loss":
            losses["loss"] = losses["loss"] + value
        else:
            losses[f"{prefix}_{name}"] = value
