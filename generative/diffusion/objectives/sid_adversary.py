"""The adversarial part of SiDA (Zhou et al., arXiv 2410.14919): the fake score network's encoder tells real from generated."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from generative.core.errors import UserError

LOGIT_LIMIT = 10.0
"""The generator's loss takes logits within plus and minus this."""


class Adversary:
    """Weights and beginnings of the adversarial losses; the discriminator is the encoder of the fake score network.

    A logit is the mean over channels at a place of its lowest map, of images noised as the fake score network is trained: no
    parameter is added.

    Args:
        discriminator_weight: Factor on the discriminator's loss.
        generator_weight: Factor on the generator's, which counts every element of an image as SiD's loss does.
        generator_start_images: Images that the fake score network sees before the generator's first step.
        start_images: Images before the generator is trained on the adversarial loss too; from there on it gets half of either.
        max_gradient: Largest absolute value of an element of the fake score network's gradient.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        discriminator_weight: float = 1.0,
        generator_weight: float = 0.01,
        generator_start_images: int = 100_000,
        start_images: int = 200_000,
        max_gradient: float = 1.0,
    ) -> None:
        for name, value in (("discriminator_weight", discriminator_weight), ("generator_weight", generator_weight)):
            if not value >= 0:
                raise UserError(f"{name} must not be negative, got {value}")
        if not max_gradient > 0:
            raise UserError(f"max_gradient must be positive, got {max_gradient}")
        if not 0 <= generator_start_images <= start_images:
            raise UserError(
                "the generator starts before its adversarial loss: 0 <= generator_start_images <= start_images, got "
                f"{generator_start_images} and {start_images}"
            )
        self.discriminator_weight = discriminator_weight
        self.generator_weight = generator_weight
        self.generator_start_images = generator_start_images
        self.start_images = start_images
        self.max_gradient = max_gradient

    def discriminator_loss(self, real: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
        """Cross-entropy of telling real from generated, times the mean weight of the noise levels.

        Args:
            real: (B, D, h, w) lowest maps of noised real images.
            fake: (B, D, h, w) of noised generated ones, at the same noise.
            weight: (B,) of the fake score network's error at their noise levels.
        """
        entropy = F.softplus(-logits(real)).mean() + F.softplus(logits(fake)).mean()
        return self.discriminator_weight * weight.mean() * entropy / 2

    def generator_loss(self, fake: Tensor, scale: Tensor, num_elements: int) -> Tensor:
        """Cross-entropy of passing for real, normalised as SiD's loss is.

        Args:
            fake: (B, D, h, w) lowest maps of noised generated images.
            scale: (B,) what SiD's loss of each image is divided by.
            num_elements: Of an image.
        """
        entropy = F.softplus(-logits(fake).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)).mean()
        return self.generator_weight * num_elements * entropy * scale.reciprocal().mean()


def logits(hidden: Tensor) -> Tensor:
    """(B, h, w) float32 of lowest maps (B, D, h, w)."""
    return hidden.float().mean(1)
