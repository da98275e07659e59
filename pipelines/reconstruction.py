"""Images through a tokenizer or an autoencoder and back."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.core.errors import UserError
from generative.core.images import images_to_uint8
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.latents import decode_latents, latent_moments, scale_latents
from pipelines.base import ImagePipeline, OutputType
from pipelines.image_input import Images, prepare_images


class ImageReconstructionPipeline(ImagePipeline):
    """Encodes and decodes images with a saved tokenizer (ids), or a diffusers autoencoder (continuous latents).

    An autoencoder's latents are the means of their distributions, so that a reconstruction is a function of its image alone.

    Args:
        tokenizer: An ``ImageTokenizer``, ``AutoencoderKL`` or ``AutoencoderDC``.
    """

    purpose = "makes images of images and not of classes"
    advice = "use `generative reconstruct` or `generative encode` with it"
    evaluator = "generative.core.reconstruction.ReconstructionEvaluator"

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

    @torch.no_grad()
    def encode(self, images: Images) -> Tensor:
        """Images to (B, L) int64 ids of a tokenizer, or to scaled latents (B, C, h, w) float32 of an autoencoder."""
        pixels = prepare_images(images, self.device)
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
            images: See ``pipelines.image_input.prepare_images``.
            output_type: See ``ImagePipeline.postprocess``.
            return_dict: Likewise.

        Raises:
            UserError: If the images are not what the tokenizer takes.
        """
        return self.postprocess(self.decode(self.encode(images)), output_type, return_dict)
