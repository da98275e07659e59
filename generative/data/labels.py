"""Class labels without images, for training that reads no data (distillation)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generative.data.base import ImageDataset, hash_parts

GREY = 128
"""Every byte of the pictures that stand for the images that there are none of."""
PER_CLASS = 64


class LabelsDataset(ImageDataset):
    """Labels, as many of each class; whoever asks for an image gets a grey one.

    Args:
        num_classes: Number of classes; 1 for a teacher without classes.
        image_size: Side of the images that are made, in pixels.
        class_names: Names in class order; None for their numbers.

    Raises:
        UserError: If a number is not positive.
    """

    def __init__(self, num_classes: int, image_size: int, class_names: Sequence[str] | None = None) -> None:
        super().__init__(
            labels=torch.arange(max(num_classes, 0)).repeat(PER_CLASS),
            num_classes=num_classes,
            image_size=image_size,
            fingerprint=hash_parts("labels", num_classes, image_size),
            class_names=class_names or (),
        )
        self.prepare(cache=False, verify=False)

    def load_image(self, index: int) -> Tensor:
        """A grey image, (3, H, W) uint8."""
        return torch.full((3, self.image_size, self.image_size), GREY, dtype=torch.uint8)

    def source_name(self, index: int) -> str:
        """Number of a label."""
        return f"label {index}"
