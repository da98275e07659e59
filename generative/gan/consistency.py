"""Consistency regularisation: the discriminator should not change its mind when an image is moved a little.

CR (arXiv 1910.12027) looks at real images, bCR at generated ones too and zCR at noise moved a little (together ICR: arXiv
2002.04724).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import Losses
from generative.gan.augment import AUGMENTATIONS, Augmentation, augment
from generative.gan.penalties import Penalty, PenaltyInputs

ConsistencyAugmentation = Literal["flip", "shift"] | Augmentation

SHIFT_RATIO = 0.125
"""Reach of "shift" as a share of the image's size ("a few pixels" in the paper; 4 of 32 in PyTorch-StudioGAN)."""


def consistency_penalty(logits: Tensor, moved_logits: Tensor) -> Tensor:
    """Mean squared change of logits (arXiv 1910.12027, eq. 2, on the last layer's output; arXiv 2002.04724, algorithms 1 and 2).

    Args:
        logits: (B,) or (B, N), of images as they are.
        moved_logits: The same shape, of the same images augmented, or made from noise that was moved. Both are differentiated.

    Returns:
        A scalar.
    """
    return (logits - moved_logits).square().mean()


def diversity_penalty(images: Tensor, moved_images: Tensor) -> Tensor:
    """Generator's side of zCR (arXiv 2002.04724, algorithm 2): minus the mean squared change of images when the noise is moved.

    Args:
        images: (B, 3, H, W), from noise z.
        moved_images: (B, 3, H, W), from z + dz.

    Returns:
        A scalar, at most 0; a mean over pixels, as PyTorch-StudioGAN weighs it.
    """
    return -(images - moved_images).square().mean()


def flip(images: Tensor, is_flipped: Tensor) -> Tensor:
    """Mirror some images left to right.

    Args:
        images: (B, 3, H, W).
        is_flipped: (B,) bool.
    """
    return torch.where(is_flipped[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Move images by whole pixels, filling with their mirror image.

    Args:
        images: (B, 3, H, W).
        offsets: (B, 2) int64, rows then columns: pixel (r, c) shows what was at (r + offset 0, c + offset 1).

    Returns:
        (B, 3, H, W).
    """
    batch, _, height, width = images.shape
    index = torch.arange(batch, device=images.device)[:, None, None]
    rows = mirror(torch.arange(height, device=images.device) + offsets[:, :1], height)  # (B, H)
    columns = mirror(torch.arange(width, device=images.device) + offsets[:, 1:], width)  # (B, W)
    moved = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
    return moved.permute(0, 3, 1, 2)


def mirror(positions: Tensor, length: int) -> Tensor:
    """Reflect positions outside [0, length) at the edge pixels, which are not repeated."""
    positions = positions.abs()
    return torch.where(positions >= length, 2 * (length - 1) - positions, positions)


def move(images: Tensor, policy: tuple[ConsistencyAugmentation, ...], random: torch.Generator) -> Tensor:
    """Apply random augmentations in the order given.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        policy: Their names; those of DiffAugment (``generative.gan.augment``) or the paper's own two, flip and shift.
        random: On the images' device.

    Returns:
        (B, 3, H, W).
    """
    for name in policy:
        if name == "flip":
            images = flip(images, torch.rand(len(images), generator=random, device=images.device) < 0.5)
        elif name == "shift":
            reach = [int(size * SHIFT_RATIO) for size in images.shape[2:]]
            draws = [torch.randint(-r, r + 1, (len(images),), generator=random, device=images.device) for r in reach]
            images = shift(images, torch.stack(draws, 1))
        else:
            images = augment(images, (name,), random)
    return images


class Consistency(Penalty):
    """Consistency regularisation of real images (CR), generated ones (bCR) and noise (zCR).

    CR alone: weight 10. ICR on CIFAR-10 as in PyTorch-StudioGAN's BigGAN configuration: weight 10, fake_weight 10, latent_weight
    20, diversity_weight 0.5, latent_noise 0.05.

    Args:
        weight: lambda_real, of (D(x) - D(T(x)))^2 on real images.
        fake_weight: lambda_fake, of the same on generated images.
        latent_weight: lambda_dis, of (D(G(z)) - D(G(z + dz)))^2.
        diversity_weight: lambda_gen, of the generator's -|G(z) - G(z + dz)|^2, which keeps it from ignoring the noise.
        latent_noise: sigma, the standard deviation of dz.
        policy: Augmentations T: ``flip``, ``shift``, or those of ``generative.gan.augment`` (DiffAugment's).
        interval: See ``Penalty``; the papers take it at every step. The generator's side is taken at every step always.
    """

    name = "consistency"

    def __init__(
        self,
        weight: float = 10.0,
        fake_weight: float = 0.0,
        latent_weight: float = 0.0,
        diversity_weight: float = 0.0,
        latent_noise: float = 0.05,
        policy: tuple[ConsistencyAugmentation, ...] = ("flip", "shift"),
        interval: int = 1,
    ) -> None:
        super().__init__(weight, interval)
        for name, value in (
            ("fake_weight", fake_weight),
            ("latent_weight", latent_weight),
            ("diversity_weight", diversity_weight),
            ("latent_noise", latent_noise),
        ):
            if not value >= 0:
                raise UserError(f"Consistency {name} must be at least 0, got {value}")
        known = ("flip", "shift", *AUGMENTATIONS)
        unknown = [name for name in policy if name not in known]
        if unknown or not policy:
            raise UserError(f"Consistency policy must name some of {', '.join(known)}, got {unknown[0] if unknown else 'none'!r}")
        if diversity_weight > 0 and latent_weight == 0:
            raise UserError(
                f"Consistency diversity_weight {diversity_weight} is half of zCR only; set latent_weight, the other half, too"
            )
        self.fake_weight = fake_weight
        self.latent_weight = latent_weight
        self.diversity_weight = diversity_weight
        self.latent_noise = latent_noise
        self.policy = tuple(policy)

    @property
    def is_active(self) -> bool:
        """Whether any of the discriminator's weights is above 0."""
        return max(self.weight, self.fake_weight, self.latent_weight) > 0

    def losses(self, inputs: PenaltyInputs) -> Losses:
        """The discriminator's side; terms of weight 0 cost nothing."""
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.weight > 0:
            terms["real"] = self.weight, self._image_term(inputs, inputs.real, inputs.real_labels)
        if self.fake_weight > 0:
            terms["fake"] = self.fake_weight, self._image_term(inputs, inputs.fake, inputs.fake_labels)
        if self.latent_weight > 0:
            with torch.no_grad():
                moved = inputs.generate(self._moved_noise(inputs), inputs.fake_labels).to(inputs.fake.dtype)
            both = inputs.discriminate(torch.cat([inputs.fake, moved]), inputs.fake_labels.repeat(2))
            terms["latent"] = self.latent_weight, consistency_penalty(*both.chunk(2))
        total = sum((weight * value for weight, value in terms.values()), inputs.real.new_zeros(()))
        return {"loss": total, **{name: value.detach() for name, (_, value) in terms.items()}}

    def generator_losses(self, inputs: PenaltyInputs) -> Losses:
        """The generator's side of zCR."""
        if self.diversity_weight == 0:
            return {}
        moved = inputs.generate(self._moved_noise(inputs), inputs.fake_labels)
        value = diversity_penalty(inputs.fake.float(), moved.float())
        return {"loss": self.diversity_weight * value, "diversity": value.detach()}

    def _image_term(self, inputs: PenaltyInputs, images: Tensor, class_labels: Tensor) -> Tensor:
        both = torch.cat([images, move(images, self.policy, inputs.random)])  # (2B, 3, H, W)
        return consistency_penalty(*inputs.discriminate(both, class_labels.repeat(2)).chunk(2))

    def _moved_noise(self, inputs: PenaltyInputs) -> Tensor:
        noise = torch.randn(inputs.z.shape, generator=inputs.random, device=inputs.z.device)
        return inputs.z + self.latent_noise * noise.to(inputs.z.dtype)
