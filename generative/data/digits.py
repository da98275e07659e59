"""scikit-learn's bundled handwritten digits: real images that need no download."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_parts

NUM_CLASSES = 10
NATIVE_SIZE = 8
"""Side of the bundled images in pixels."""

NUM_LEVELS = 17
"""Grey levels 0..16 of the bundled images (counts of set pixels in 4x4 blocks of the original bitmaps)."""

HELD_OUT_PER_CLASS = 50
"""Images of each class in the test split: 500 of 1,797, so that 1,297 remain for training."""

SPLIT_SEED = 0
"""Seed of the fixed split; changing it would change what every published figure means."""


class DigitsDataset(ImageDataset):
    """Handwritten digits, 10 classes, 1,297 training and 500 held-out images (50 per class; the split is fixed).

    Levels 0..16 become bytes ``round(255 * level / 16)`` and the grey channel is repeated three times.

    Args:
        split: ``train`` or ``test``.
        image_size: Side in pixels, at least 8 (the native size, where pixels are exact).
        interpolation: How larger sizes are made: ``bilinear`` (half-pixel centres, rounded to bytes) or ``nearest``, which
            keeps the 17 grey levels.

    Raises:
        UserError: If scikit-learn is not installed or an argument is out of range.
    """

    usual_classes = 10

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        image_size: int = NATIVE_SIZE,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        if split not in ("train", "test"):
            raise UserError(f"split must be 'train' or 'test', got {split!r}")
        if interpolation not in ("bilinear", "nearest"):
            raise UserError(f"interpolation must be 'bilinear' or 'nearest', got {interpolation!r}")
        if image_size < NATIVE_SIZE:
            raise UserError(f"image_size of the digits must be at least {NATIVE_SIZE}, got {image_size}")
        levels, labels = _load_digits()
        chosen = _split_indices(labels, split)
        levels, labels = levels[chosen], labels[chosen]
        self._pixels = _render(levels, image_size, interpolation)  # (N, 1, H, W)
        self._split = split
        super().__init__(
            labels=torch.from_numpy(labels),
            num_classes=NUM_CLASSES,
            image_size=image_size,
            fingerprint=hash_parts("digits", image_size, interpolation, levels.tobytes(), labels.tobytes()),
        )
        self.prepare(cache=True, verify=False)

    def load_image(self, index: int) -> Tensor:
        """One image, (3, H, W) uint8, grey repeated over the channels."""
        return self._pixels[index].expand(3, -1, -1)  # (3, H, W)

    def source_name(self, index: int) -> str:
        """Split and number of an image."""
        return f"digits {self._split} image {index}"


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Levels (N, 8, 8) uint8 in 0..16 and labels (N,) int64, little-endian, of the whole set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the digits come with scikit-learn, which is not installed; run: pip install triptych[quickstart]"
        ) from error
    bunch = load_digits()
    return np.ascontiguousarray(bunch.images, dtype=np.uint8), np.ascontiguousarray(bunch.target, dtype="<i8")


def _split_indices(labels: np.ndarray, split: str) -> np.ndarray:
    """Indices of a split in ascending order: a fixed random choice of each class is held out."""
    # Raw PCG64 words are sorted instead of calling shuffle(): NumPy guarantees the bit stream for ever, not what shuffle
    # makes of it.
    words = np.random.PCG64(SPLIT_SEED).random_raw(len(labels))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(NUM_CLASSES):
        members = np.flatnonzero(labels == label)
        held_out[members[np.argsort(words[members], kind="stable")[:HELD_OUT_PER_CLASS]]] = True
    return np.flatnonzero(held_out if split == "test" else ~held_out)


def _render(levels: np.ndarray, image_size: int, interpolation: str) -> Tensor:
    """Levels (N, 8, 8) in 0..16 to bytes (N, 1, H, W)."""
    pixels = torch.from_numpy(levels)[:, None].to(torch.float32) * (255 / (NUM_LEVELS - 1))  # (N, 1, 8, 8)
    if interpolation == "bilinear" and image_size != NATIVE_SIZE:
        pixels = F.interpolate(pixels, size=image_size, mode="bilinear", align_corners=False)  # (N, 1, H, W)
    elif image_size != NATIVE_SIZE:
        pixels = F.interpolate(pixels, size=image_size, mode="nearest-exact")  # (N, 1, H, W)
    return pixels.round().to(torch.uint8)
