"""Differentiable augmentation of what the discriminator sees (arXiv 2006.10738): few images last longer before it overfits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["color", "translation", "cutout"]

# Strengths of the DiffAugment paper's code: translation by up to 1/8 of the size, a hole of half the size.
TRANSLATION_RATIO = 0.125
CUTOUT_RATIO = 0.5


def uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """One number in [low, high) per image, (B, 1, 1, 1)."""
    draws = torch.rand((len(images), 1, 1, 1), generator=generator, device=images.device)
    return (low + (high - low) * draws).to(images.dtype)


def color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random brightness (+-0.5), saturation (x 0..2) and contrast (x 0.5..1.5), image by image.

    Args:
        images: (B, 3, H, W).
        generator: On the images' device.

    Returns:
        (B, 3, H, W).
    """
    images = images + uniform(images, generator, -0.5, 0.5)
    grey = images.mean(1, keepdim=True)  # (B, 1, H, W)
    images = grey + (images - grey) * uniform(images, generator, 0.0, 2.0)
    mean = images.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return mean + (images - mean) * uniform(images, generator, 0.5, 1.5)


def random_integers(images: Tensor, generator: torch.Generator, low: int, high: int) -> Tensor:
    """One integer in [low, high] per image, (B, 1)."""
    return torch.randint(low, high + 1, (len(images), 1), generator=generator, device=images.device)


def translation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to 1/8 of its height and width, filling with zeros (mid grey).

    Args:
        images: (B, 3, H, W).
        generator: On the images' device.

    Returns:
        (B, 3, H, W); row r, column c shows row r + dy, column c + dx.
    """
    batch, _, height, width = images.shape
    reach_y, reach_x = int(height * TRANSLATION_RATIO + 0.5), int(width * TRANSLATION_RATIO + 0.5)
    rows = torch.arange(height, device=images.device) + random_integers(images, generator, -reach_y, reach_y)  # (B, H)
    columns = torch.arange(width, device=images.device) + random_integers(images, generator, -reach_x, reach_x)  # (B, W)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]  # (B, H, W)
    index = torch.arange(batch, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[index, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Set a square of half the size at a random place, partly outside perhaps, to zero (mid grey).

    Args:
        images: (B, 3, H, W).
        generator: On the images' device.

    Returns:
        (B, 3, H, W).
    """
    height, width = images.shape[2:]
    holes = []
    for length in (height, width):
        size = int(length * CUTOUT_RATIO + 0.5)
        centre = random_integers(images, generator, 0, length - size % 2)  # (B, 1)
        position = torch.arange(length, device=images.device)
        # The hole is clamped to the image as in the paper's code: rows beyond an edge fall on the edge row.
        first, last = (centre - size // 2).clamp(0, length - 1), (centre - size // 2 + size - 1).clamp(0, length - 1)
        holes.append((position >= first) & (position <= last))  # (B, length)
    hole = holes[0][:, None, :, None] & holes[1][:, None, None, :]  # (B, 1, H, W)
    return images.masked_fill(hole, 0)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


def augment(images: Tensor, policy: Sequence[Augmentation], generator: torch.Generator) -> Tensor:
    """Apply a policy's augmentations in the order given.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        policy: Names of augmentations; empty leaves the images as they are.
        generator: On the images' device.

    Returns:
        (B, 3, H, W), differentiable with respect to ``images``; brightness may leave [-1, 1].
    """
    for name in policy:
        images = AUGMENTATIONS[name](images, generator)
    return images
