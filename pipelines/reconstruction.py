"""Images through a tokenizer or an autoencoder and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.images import images_to_float, images_to_uint8
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.latents import decode_latents, latent_moments, scale_latents
from pipelines.base import ImagePipeline, OutputType

Images = Tensor | Image.Image | Sequence[Image.Image]


class ImageReconstructionPipeline(ImagePipeline):
    """Encodes and decodes images with a saved tokenizer (ids), or a diffusers autoencoder (continuous latents).

    An autoencoder's latents are the means of their distributions, so that a reconstruction is a function of its image alone.

    Args:
        tokenizer: An ``ImageTokenizer``, ``AutoencoderKL`` or ``AutoencoderDC``.
    """

    def __init__(self, tokenizer: ModelMixin) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer)

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        if isinstance(self.tokenizer, ImageTokenizer):
            return self.tokenizer.image_size
        size = self.tokenizer.config.get("sample_size")
        if size is None:
            raise UserError(f"{type(self.tokenizer).__name__} takes images of any size; its config names no sample_size")
        return int(size)

    def prepare_images(self, images: Images) -> Tensor:
        """Turn images into what the tokenizer takes.

        Args:
            images: uint8 (B, 3, H, W); floating point (B, 3, H, W) in [-1, 1]; one PIL image or a sequence of them, of one size.

        Returns:
            (B, 3, H, W) float32 in [-1, 1] on the pipeline's device.

        Raises:
            UserError: If they are something else.
        """
        if isinstance(images, Tensor):
            if images.dim() != 4 or images.shape[1] != 3:
                raise UserError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
            images = images.to(self.device)
            return images_to_float(images) if images.dtype == torch.uint8 else images.float()
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        if not pictures or len({picture.size for picture in pictures}) > 1:
            sizes = ", ".join(sorted({f"{picture.width} x {picture.height}" for picture in pictures})) or "none"
            raise UserError(f"images must be at least one, all of one size, got {sizes}")
        arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])  # (B, H, W, 3)
        return images_to_float(torch.from_numpy(arrays).permute(0, 3, 1, 2).to(self.device))

    @torch.no_grad()
    def encode(self, images: Images) -> Tensor:
        """Images to (B, L) int64 ids of a tokenizer, or to scaled latents (B, C, h, w) float32 of an autoencoder."""
        pixels = self.prepare_images(images)
        if isinstance(self.tokenizer, ImageTokenizer):
            return self.tokenizer.encode(pixels)
        mean, _ = latent_moments(self.tokenizer, pixels)
        return scale_latents(self.tokenizer, mean)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """What ``encode`` returns to images (B, 3, H, W) float32, about in [-1, 1]."""
        codes = codes.to(self.device)
        if isinstance(self.tokenizer, ImageTokenizer):
            return self.tokenizer.decode(codes).float()
        return decode_latents(self.tokenizer, codes)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct 8-bit images.

        Args:
            images: (B, 3, H, W) uint8.

        Returns:
            (B, 3, H, W) uint8, on the pipeline's device.
        """
        return images_to_uint8(self.decode(self.encode(images)))

    @torch.no_grad()
    def __call__(self, images: Images, output_type: OutputType = "pil", return_dict: bool = True) -> Any:
        """Reconstruct images.

        Args:
            images: See ``prepare_images``.
            output_type: See ``ImagePipeline.postprocess``.
            return_dict: Likewise.

        Raises:
            UserError: If the images are not what the tokenizer takes.
        """
        return self.postprocess(self.decode(self.encode(images)), output_type, return_dict)
