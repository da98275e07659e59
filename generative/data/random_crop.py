"""Random crops for training, around any data set: every crop is a function of the seed and the position alone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import Batch
from generative.data.base import ImageDataset, hash_parts
from generative.data.decode import image_to_tensor
from generative.data.finish import image_batch
from generative.data.transforms import random_crop, resize_and_crop, short_side_size
from generative.data.wrapped import WrappedDataset

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

LOW_63_BITS = np.uint64(2**63 - 1)
"""The top bit of a position's word says whether an example is mirrored; crops take the others."""


class RandomCropDataset(WrappedDataset):
    """Training examples cropped at random from another data set; single images stay its centre crops (for grids and scores).

    With ``resize_size``, the short side becomes so many pixels and a square of the data's ``image_size`` is cut anywhere: VAR
    takes 1.125 times the image's side and Lanczos, not mirrored (arXiv 2404.02905, code), Open-MAGVIT2 the image's side itself
    and bilinear (2409.04410, code). Without, short side and place are drawn as by ADM's ``random_crop_arr``, which LlamaGen's
    tokenizers train on (2406.06525, code). Mirroring is the trainer's ``horizontal_flip``, as for every data set.

    Files are decoded once per example, straight to the crop. Crops come from the whole rectangular picture
    (``ImageDataset.load_picture``), of data sets without files from their square images. A cache of the wrapped data set holds
    its centre crops only.

    Args:
        images: The images, whose ``image_size`` is the crop's side.
        resize_size: Short side in pixels before the crop, at least the crop's; None draws it from ``crop_fractions``.
        interpolation: Filter of that resizing.
        crop_fractions: Without ``resize_size``: smallest and largest crop as a share of the short side.

    Raises:
        UserError: If an argument is out of range, or ``images`` gives no images (a token cache).
    """

    def __init__(
        self,
        images: ImageDataset,
        resize_size: int | None = None,
        interpolation: Literal["lanczos", "bicubic", "bilinear"] = "lanczos",
        crop_fractions: tuple[float, float] = (0.8, 1.0),
    ) -> None:
        if images.encoder_fingerprint is not None:
            raise UserError(f"RandomCropDataset crops images, and {type(images).__name__} gives tokens or latents")
        if resize_size is not None and resize_size < images.image_size:
            raise UserError(f"resize_size must be at least image_size of the images ({images.image_size}), got {resize_size}")
        if interpolation not in FILTERS:
            raise UserError(f"interpolation must be one of {', '.join(FILTERS)}, got {interpolation!r}")
        low, high = crop_fractions
        if not 0 < low <= high <= 1:
            raise UserError(f"crop_fractions must satisfy 0 < smallest <= largest <= 1, got {low} and {high}")
        self.resize_size = resize_size
        self.interpolation = interpolation
        self.crop_fractions = (low, high)
        how = ("fractions", low, high) if resize_size is None else (resize_size, interpolation)
        super().__init__(images, hash_parts("random crop", images.fingerprint, *how))

    def examples(self, indices: Tensor, draws: np.ndarray, flip: bool) -> Batch:
        """Random crops; see ``ImageDataset.examples``."""
        pairs = zip(indices.tolist(), draws, strict=True)
        images = torch.stack([self.crop(index, int(word & LOW_63_BITS)) for index, word in pairs])  # (B, 3, H, W)
        return image_batch(images, self.labels[indices], draws, flip)

    def crop(self, index: int, word: int) -> Tensor:
        """One random crop.

        Args:
            index: In [0, N).
            word: Random, in [0, 2^63): decides the crop.

        Returns:
            (3, H, W) uint8.
        """
        picture = self.source.load_picture(index)
        if self.resize_size is None:
            generator = torch.Generator().manual_seed(word)
            return image_to_tensor(random_crop(picture, self.image_size, generator, *self.crop_fractions))
        width, height = short_side_size(picture, self.resize_size)
        # The word's upper 31 and lower 32 bits, each scaled to its range by a multiplication: integers, alike everywhere.
        left = (word >> 32) * (width - self.image_size + 1) >> 31
        top = (word & 0xFFFFFFFF) * (height - self.image_size + 1) >> 32
        square = resize_and_crop(picture, (width, height), (left, top), self.image_size, FILTERS[self.interpolation])
        return image_to_tensor(square)
