"""What data sets share that show the images of another one in another way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from generative.data.base import ImageDataset


class WrappedDataset(ImageDataset):
    """Images of another data set; subclasses say what is made of them in training.

    Args:
        source: The data set, whose classes, single images, names and notices these are.
        fingerprint: Of the source and of all that changes what training sees.
        labels: (N,) int64 in the place of the source's, where they are others.
    """

    def __init__(self, source: ImageDataset, fingerprint: str, labels: Tensor | None = None) -> None:
        self.source = source
        self.image_path = source.image_path
        super().__init__(
            labels=source.labels if labels is None else labels,
            num_classes=source.num_classes,
            image_size=source.image_size,
            fingerprint=fingerprint,
            class_names=source.class_names,
        )
        self.left_out, self.num_turned, self.notices = dict(source.left_out), source.num_turned, list(source.notices)

    def load_image(self, index: int) -> Tensor:
        """An image of the source, (3, H, W) uint8."""
        return self.source.image(index)

    def images(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Images of the source, (B, 3, H, W) uint8."""
        return self.source.images(indices)

    def images_uint8(self) -> Tensor:
        """All images of the source, (N, 3, H, W) uint8."""
        return self.source.images_uint8()

    def read_encoded(self, index: int) -> bytes | None:
        """The content of the source's file."""
        return self.source.read_encoded(index)

    def load_picture(self, index: int) -> Image.Image:
        """The source's whole picture."""
        return self.source.load_picture(index)

    def verify_image(self, index: int) -> bool:
        """Whether EXIF turns an image of the source; raises ``UserError`` if it cannot be read."""
        return self.source.verify_image(index)

    def source_name(self, index: int) -> str:
        """Where the source has an image from."""
        return self.source.source_name(index)
