"""The last step of a training example, which the training device takes: mirrored where asked, from bytes to [-1, 1].

Loaders hand images on as bytes: a quarter of what they would take as floats in workers, on the way to the device and in its
transfer, and the conversion costs a processor as long as decoding a small JPEG file does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from generative.core.images import images_to_float
from generative.core.types import Batch
from generative.data.transforms import horizontal_flip

MIRRORED_BIT = np.uint64(63)
"""Bit of a position's random word that says whether its example is mirrored."""


def mirrored(draws: np.ndarray) -> np.ndarray:
    """Which examples are mirrored, (B,) bool, by their random words, (B,) uint64."""
    return (draws >> MIRRORED_BIT).astype(bool)


def image_batch(images: Tensor, class_labels: Tensor, draws: np.ndarray, flip: bool) -> Batch:
    """A batch of images as data sets give them.

    Args:
        images: (B, 3, H, W) uint8, none of them mirrored.
        class_labels: (B,) int64.
        draws: (B,) uint64 random words.
        flip: Whether examples whose word says so are to be mirrored.
    """
    batch: Batch = {"images": images, "class_labels": class_labels}
    if flip:
        batch["mirrored"] = torch.from_numpy(mirrored(draws))
    return batch


def finish_batch(batch: Batch) -> Batch:
    """What an objective sees of a data set's examples.

    Args:
        batch: Of ``ImageDataset.examples``, on any device: where it has ``images`` (B, 3, H, W) uint8, those are to be mirrored
            where ``mirrored`` (B,) bool says so, if it is there.

    Returns:
        The batch with ``images`` float32 in [-1, 1] and without ``mirrored``; itself if it has no bytes.
    """
    images = batch.get("images")
    if images is None or images.dtype != torch.uint8:
        return batch
    finished: Batch = {**batch}
    flips = finished.pop("mirrored", None)
    finished["images"] = images_to_float(images if flips is None else horizontal_flip(images, flips))
    return finished
