"""Images as callers of pipelines give them, as networks take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.images import images_to_float

Images = Tensor | Image.Image | Sequence[Image.Image]


def prepare_images(images: Images, device: torch.device | str = "cpu") -> Tensor:
    """Turn images into pixels.

    Args:
        images: uint8 (B, 3, H, W); floating point (B, 3, H, W) in [-1, 1]; one PIL image or a sequence of them, of one size.
        device: Where the pixels go.

    Returns:
        (B, 3, H, W) float32 in [-1, 1].

    Raises:
        UserError: If they are something else.
    """
    if isinstance(images, Tensor):
        if images.dim() != 4 or images.shape[1] != 3:
            raise UserError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        images = images.to(device)
        return images_to_float(images) if images.dtype == torch.uint8 else images.float()
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if not pictures or len({picture.size for picture in pictures}) > 1:
        sizes = ", ".join(sorted({f"{picture.width} x {picture.height}" for picture in pictures})) or "none"
        raise UserError(f"images must be at least one, all of one size, got {sizes}")
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])  # (B, H, W, 3)
    return images_to_float(torch.from_numpy(arrays).permute(0, 3, 1, 2).to(device))
