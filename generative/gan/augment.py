"""Differentiable augmentation of what the discriminator sees (arXiv 2006.10738): few images last longer before it overfits.

Each augmentation is two functions: one draws its random numbers, the other applies given ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Augmentation = Literal["color", "translation", "cutout", "small_cutout"]

# Strengths of the DiffAugment paper's code: translation by up to 1/8 of the size, a hole of half the size.
TRANSLATION_RATIO = 0.125
CUTOUT_RATIO = 0.5
SMALL_CUTOUT_RATIO = 0.2  # Projected GAN's code (arXiv 2111.01007) cuts a smaller hole under the same name


class ColorDraws(NamedTuple):
    """Raw draws of ``color``, uniform in [0, 1), (B, 1, 1, 1) each."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor


class PlaceDraws(NamedTuple):
    """Raw draws of ``translation`` (signed shifts) or ``cutout`` (centres): integers (B, 1) each, in pixels."""

    rows: Tensor
    columns: Tensor


def draw_color(images: Tensor, generator: torch.Generator) -> ColorDraws:
    """Draw brightness, saturation and contrast for each of the images (B, 3, H, W)."""
    shape = (len(images), 1, 1, 1)
    return ColorDraws(*(torch.rand(shape, generator=generator, device=images.device) for _ in ColorDraws._fields))


def apply_color(images: Tensor, draws: ColorDraws) -> Tensor:
    """Change brightness (+-0.5), saturation (x 0..2) and contrast (x 0.5..1.5), image by image.

    Args:
        images: (B, 3, H, W).
        draws: From ``draw_color``.

    Returns:
        (B, 3, H, W).
    """
    images = images + (draws.brightness - 0.5).to(images.dtype)
    grey = images.mean(1, keepdim=True)  # (B, 1, H, W)
    images = grey + (images - grey) * (2 * draws.saturation).to(images.dtype)
    mean = images.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return mean + (images - mean) * (0.5 + draws.contrast).to(images.dtype)


def random_integers(images: Tensor, generator: torch.Generator, low: int, high: int) -> Tensor:
    """One integer in [low, high] per image, (B, 1)."""
    return torch.randint(low, high + 1, (len(images), 1), generator=generator, device=images.device)


def draw_translation(images: Tensor, generator: torch.Generator) -> PlaceDraws:
    """Draw a shift of up to 1/8 of height and width for each of the images (B, 3, H, W)."""
    reaches = [int(length * TRANSLATION_RATIO + 0.5) for length in images.shape[2:]]
    return PlaceDraws(*(random_integers(images, generator, -reach, reach) for reach in reaches))


def apply_translation(images: Tensor, draws: PlaceDraws) -> Tensor:
    """Move each image, filling with zeros (mid grey).

    Args:
        images: (B, 3, H, W).
        draws: From ``draw_translation``.

    Returns:
        (B, 3, H, W); row r, column c shows row r + dy, column c + dx.
    """
    batch, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + draws.rows  # (B, H)
    columns = torch.arange(width, device=images.device) + draws.columns  # (B, W)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]  # (B, H, W)
    index = torch.arange(batch, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[index, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def hole_size(length: int, ratio: float) -> int:
    """Side of the hole along an axis of ``length`` pixels, in pixels."""
    return int(length * ratio + 0.5)


def draw_cutout(images: Tensor, generator: torch.Generator, ratio: float = CUTOUT_RATIO) -> PlaceDraws:
    """Draw the hole's centre for each of the images (B, 3, H, W)."""
    limits = [length - hole_size(length, ratio) % 2 for length in images.shape[2:]]
    return PlaceDraws(*(random_integers(images, generator, 0, limit) for limit in limits))


def apply_cutout(images: Tensor, draws: PlaceDraws, ratio: float = CUTOUT_RATIO) -> Tensor:
    """Set a square, partly outside perhaps, to zero (mid grey).

    Args:
        images: (B, 3, H, W).
        draws: From ``draw_cutout`` with the same ratio.
        ratio: Side of the square as a share of the image's.

    Returns:
        (B, 3, H, W).
    """
    holes = []
    for length, centre in zip(images.shape[2:], draws, strict=True):
        size = hole_size(length, ratio)
        position = torch.arange(length, device=images.device)
        # The hole is clamped to the image as in the paper's code: rows beyond an edge fall on the edge row.
        first, last = (centre - size // 2).clamp(0, length - 1), (centre - size // 2 + size - 1).clamp(0, length - 1)
        holes.append((position >= first) & (position <= last))  # (B, length)
    hole = holes[0][:, None, :, None] & holes[1][:, None, None, :]  # (B, 1, H, W)
    return images.masked_fill(hole, 0)


def color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random brightness, saturation and contrast; see ``apply_color``."""
    return apply_color(images, draw_color(images, generator))


def translation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shift by up to 1/8 of the size; see ``apply_translation``."""
    return apply_translation(images, draw_translation(images, generator))


def cutout(images: Tensor, generator: torch.Generator, ratio: float = CUTOUT_RATIO) -> Tensor:
    """Random hole of ``ratio`` of the size; see ``apply_cutout``."""
    return apply_cutout(images, draw_cutout(images, generator, ratio), ratio)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
    "small_cutout": partial(cutout, ratio=SMALL_CUTOUT_RATIO),
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
