"""Images under labels that a classifier gave them, a few true ones apart."""

from __future__ import annotations

from pathlib import Path

from generative.core.checkpoint import read_tensors
from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_parts
from generative.data.wrapped import WrappedDataset

LABELS = "labels"
"""Tensor of the file: (N,) int64."""


class PseudoLabelDataset(WrappedDataset):
    """The images of another data set under labels of a file (DPT, arXiv 2302.10586).

    Args:
        images: The images; their own labels are not looked at.
        labels: A safetensors file with ``labels`` (N,), one for each image.

    Raises:
        UserError: If the file cannot be read, or is of other images.
    """

    def __init__(self, images: ImageDataset, labels: Path) -> None:
        found = read_tensors(Path(labels)).get(LABELS)
        if found is None or found.shape != images.labels.shape:
            raise UserError(f"'{labels}' holds no label for each of the {len(images)} images; repeat the command that wrote it")
        super().__init__(images, hash_parts("pseudo labels", images.fingerprint, found.numpy().tobytes()), found)
