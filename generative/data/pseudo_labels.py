"""Images under labels that a classifier gave them, a few true ones apart."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from generative.core.checkpoint import read_tensors
from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_parts

LABELS = "labels"
"""Tensor of the file: (N,) int64."""


class PseudoLabelDataset(ImageDataset):
    """The images of another data set under labels of a file (DPT, arXiv 2302.10586).

    Args:
        images: The images; their own labels are not looked at.
        labels: A safetensors file with ``labels`` (N,), one for each image.

    Raises:
        UserError: If the file cannot be read, or is of other images.
    """

    def __init__(self, images: ImageDataset, labels: Path) -> None:
        self.source = images
        found = read_tensors(Path(labels)).get(LABELS)
        if found is None or found.shape != images.labels.shape:
            raise UserError(f"'{labels}' holds no label for each of the {len(images)} images; repeat the command that wrote it")
        super().__init__(
            labels=found,
            num_classes=images.num_classes,
            image_size=images.image_size,
            fingerprint=hash_parts("pseudo labels", images.fingerprint, found.numpy().tobytes()),
            class_names=images.class_names,
        )
        self.notices = list(images.notices)

    def load_image(self, index: int) -> Tensor:
        """An image of the source, (3, H, W) uint8."""
        return self.source.image(index)

    def images(self, indices: object) -> Tensor:
        """Images of the source; see the base class."""
        return self.source.images(indices)  # type: ignore[arg-type]

    def source_name(self, index: int) -> str:
        """Where the source has an image from."""
        return self.source.source_name(index)
