"""The views of an image that a token cache holds: as it is, mirrored, and cropped at five places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from generative.core.errors import UserError

ViewKind = Literal["plain", "flip", "ten-crop"]
VIEW_KINDS: tuple[ViewKind, ...] = ("plain", "flip", "ten-crop")
CROPS_PER_SIZE = 5
"""Crops at the four corners and the centre; each of them mirrored as well makes ten."""

LOW_63_BITS = np.uint64(2**63 - 1)


@dataclass(frozen=True)
class Views:
    """Which views of every image a cache holds, in the order (crop, mirrored or not).

    Attributes:
        kind: ``plain`` the image; ``flip`` the image and its mirror image; ``ten-crop`` five crops and their mirror images
            (LlamaGen, arXiv 2406.06525, code), for each of ``crop_sizes``.
        crop_sizes: Sides in pixels of the square images that ten-crop cuts from; empty for the others.
    """

    kind: ViewKind
    crop_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in VIEW_KINDS:
            raise UserError(f"views must be one of {', '.join(VIEW_KINDS)}, got {self.kind!r}")
        if (self.kind == "ten-crop") != bool(self.crop_sizes):
            raise UserError(f"crop sizes belong to ten-crop views, and those need some; got {self.kind} and {self.crop_sizes}")

    @property
    def num_crops(self) -> int:
        """Crops of an image, mirrored ones not counted."""
        return max(1, CROPS_PER_SIZE * len(self.crop_sizes))

    @property
    def has_flips(self) -> bool:
        """Whether every crop is there mirrored as well."""
        return self.kind != "plain"

    @property
    def count(self) -> int:
        """Views of an image."""
        return self.num_crops * (2 if self.has_flips else 1)

    def make(self, sources: Sequence[Tensor], image_size: int) -> Tensor:
        """All views of some images.

        Args:
            sources: For ten-crop, the images at each of ``crop_sizes``; else one entry. Each (B, 3, s, s), any dtype.
            image_size: Side of a view in pixels.

        Returns:
            (B, count, 3, image_size, image_size).
        """
        crops = [crop for source in sources for crop in (five_crops(source, image_size) if self.crop_sizes else [source])]
        views = [view for crop in crops for view in ((crop, crop.flip(-1)) if self.has_flips else (crop,))]
        return torch.stack(views, dim=1)  # (B, count, 3, H, W)

    def choose(self, draws: np.ndarray, flip: bool) -> np.ndarray:
        """The view of each example, a function of its random word.

        Args:
            draws: (B,) uint64; the top bit says whether the view is mirrored, the others which crop it is.
            flip: Give mirrored views at all.

        Returns:
            (B,) int64 in [0, count).

        Raises:
            UserError: If mirrored views are asked for and there are none.
        """
        if flip and not self.has_flips:
            raise UserError(
                "trainer.horizontal_flip is on, but the cache holds no mirrored views; encode with --views flip, or set "
                "trainer.horizontal_flip to false"
            )
        crops = ((draws & LOW_63_BITS) % np.uint64(self.num_crops)).astype(np.int64)
        if not self.has_flips:
            return crops
        return crops * 2 + ((draws >> np.uint64(63)).astype(np.int64) if flip else 0)


def five_crops(images: Tensor, image_size: int) -> list[Tensor]:
    """Squares at the corners (left before right, top before bottom) and the centre, each (B, C, image_size, image_size).

    Args:
        images: (B, C, H, W) with H, W >= ``image_size``.
        image_size: Side in pixels.
    """
    bottom, right = images.shape[-2] - image_size, images.shape[-1] - image_size
    # An odd surplus is cut at the right and the bottom, as by ``transforms.center_crop``.
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return [images[..., top : top + image_size, left : left + image_size] for top, left in corners]
