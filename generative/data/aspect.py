"""Images at their own aspect ratio, or cropped to several, each resized to a budget of tokens and packed into one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.images import images_to_float
from generative.core.types import Batch
from generative.data.base import ImageDataset, hash_parts
from generative.data.decode import image_to_tensor
from generative.data.random_crop import LOW_63_BITS
from generative.data.wrapped import WrappedDataset
from generative.layers.packing import pack_rows, to_patches

Bucket = Literal["nearest", "random"]
# Rows over images up to which packing is faster than padding: modulations of each token cost a tenth of a step (one core, packed
# against padded: 1.8 times the tokens per second where 40 % of the places are tokens, 0.9 times where all are).
MOST_ROWS = 0.9


def fit_size(width: int, height: int, token_size: int, max_tokens: int) -> tuple[int, int]:
    """Size that an image is resized to, as FiT's official data.

    One of more pixels than the budget is brought to it at its own aspect; a smaller one stays as large as it is. Then both sides
    are rounded down to whole tokens, of one at least.

    Args:
        width: In pixels.
        height: In pixels.
        token_size: Side of a token in pixels.
        max_tokens: Budget.

    Returns:
        Width and height in tokens, whose product is at most ``max_tokens``.
    """
    scale = min(1.0, math.sqrt(max_tokens * token_size**2 / (width * height)))
    columns, rows = (max(1, math.floor(side * scale / token_size + 1e-9)) for side in (width, height))
    rows = min(rows, max_tokens)
    return min(columns, max_tokens // rows), rows


class AspectDataset(WrappedDataset):
    """Training examples of several sizes: sequences of patches, and how images share rows of the context.

    For ``generative.diffusion.objectives.any_size.AnySizeObjective``. Single images, which grids and scores take, stay the
    squares of the wrapped data set; so do the pictures of data sets without files.

    Args:
        images: The images. Of data sets of files the whole rectangular pictures are taken.
        token_size: Side of a token in pixels: the denoiser's patch size, times the pixels of a latent.
        max_tokens: Longest image in tokens (FiT: 256); the context of the denoiser.
        aspect_ratios: Buckets, by width over height: examples are first cropped to one of them, the largest such crop at a random
            place. None keeps each image's own.
        bucket: The one ``nearest`` to the image's own ratio, or a ``random`` one for each example.
        packed: Let images share rows of ``max_tokens`` in batches where that saves enough of them, with the same result.

    Raises:
        UserError: If a number is out of range, or ``images`` gives no images (a token cache).
    """

    def __init__(
        self,
        images: ImageDataset,
        token_size: int,
        max_tokens: int = 256,
        aspect_ratios: Sequence[float] | None = None,
        bucket: Bucket = "nearest",
        packed: bool = True,
    ) -> None:
        if images.encoder_fingerprint is not None:
            raise UserError(f"AspectDataset resizes images, and {type(images).__name__} gives tokens or latents")
        for name, value in (("token_size", token_size), ("max_tokens", max_tokens)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        ratios = tuple(aspect_ratios or ())
        if aspect_ratios is not None and not (ratios and all(1 / max_tokens <= ratio <= max_tokens for ratio in ratios)):
            raise UserError(f"aspect_ratios must be numbers between 1/{max_tokens} and {max_tokens}, got {aspect_ratios}")
        if bucket not in get_args(Bucket):
            raise UserError(f"bucket must be nearest or random, got {bucket!r}")
        self.bucket = bucket
        self.token_size, self.max_tokens, self.aspect_ratios, self.packed = token_size, max_tokens, ratios, packed
        super().__init__(images, hash_parts("aspect", images.fingerprint, token_size, max_tokens, bucket, str(ratios)))

    def examples(self, indices: Tensor, draws: np.ndarray, flip: bool) -> Batch:
        """Images as sequences of patches.

        Args:
            indices: See ``ImageDataset.examples``.
            draws: Likewise; the lower bits choose aspect ratio and place of a crop.
            flip: Likewise.

        Returns:
            ``images`` (B, 3, N, q^2) float32 in [-1, 1], padded to ``max_tokens``; ``sizes`` (B, 2) int64 height and width in
            tokens; ``packing`` (R, L) of ``pack_rows`` where it saves rows; and ``class_labels`` (B,) int64.
        """
        sequences = torch.zeros(len(indices), 3, self.max_tokens, self.token_size**2)
        sizes = torch.empty(len(indices), 2, dtype=torch.int64)
        for place, (index, word) in enumerate(zip(indices.tolist(), draws, strict=True)):
            picture = self.picture(index, int(word & LOW_63_BITS))
            if flip and word >> np.uint64(63):
                picture = picture.flip(-1)
            patches = to_patches(images_to_float(picture[None]), self.token_size)[0]  # (3, n, q^2)
            sequences[place, :, : patches.shape[1]] = patches
            sizes[place] = torch.tensor(picture.shape[1:]) // self.token_size
        batch: Batch = {"images": sequences, "sizes": sizes, "class_labels": self.labels[indices]}
        if self.packed and len(places := pack_rows(sizes, self.max_tokens, self.max_tokens)) <= MOST_ROWS * len(sizes):
            batch["packing"] = places
        return batch

    @classmethod
    def blank_batch(cls, size: int, image_size: int, arguments: Mapping[str, Any]) -> Batch:
        """Sequences of zeros, each as long as images are at most, near to square; see ``ImageDataset.blank_batch``."""
        token_size, tokens = int(arguments["token_size"]), int(arguments["max_tokens"])
        columns, rows = fit_size(token_size * tokens, token_size * tokens, token_size, tokens)
        labels = torch.zeros(size, dtype=torch.int64)
        return {
            "images": torch.zeros(size, 3, tokens, token_size**2),
            "sizes": torch.tensor([[rows, columns]] * size),
            "class_labels": labels,
        }

    def picture(self, index: int, word: int) -> Tensor:
        """One image at the size it is trained at.

        Args:
            index: In [0, N).
            word: Random, in [0, 2^63): decides the crop.

        Returns:
            (3, H, W) uint8, sides in whole tokens.
        """
        picture = self.source.load_picture(index)
        if self.aspect_ratios:
            # 15 bits for the ratio and 48 for the place: integers scaled to their ranges, alike everywhere.
            own = math.log(picture.width / picture.height)
            ratio = self.aspect_ratios[(word >> 48) * len(self.aspect_ratios) >> 15]
            if self.bucket == "nearest":
                ratio = min(self.aspect_ratios, key=lambda each: abs(math.log(each) - own))
            picture = crop_to_ratio(picture, ratio, word & (2**48 - 1))
        columns, rows = fit_size(picture.width, picture.height, self.token_size, self.max_tokens)
        size = (columns * self.token_size, rows * self.token_size)
        return image_to_tensor(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))


def crop_to_ratio(picture: Image.Image, ratio: float, word: int) -> Image.Image:
    """The largest crop of a ratio of width over height, at a place that a random word in [0, 2^48) decides."""
    width = min(picture.width, max(1, round(picture.height * ratio)))
    height = min(picture.height, max(1, round(picture.width / ratio)))
    left = word * (picture.width - width + 1) >> 48
    top = word * (picture.height - height + 1) >> 48  # one of the two is the whole side
    return picture.crop((left, top, left + width, top + height))
