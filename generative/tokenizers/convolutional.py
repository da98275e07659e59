"""What tokenizers of a convolutional encoder, a quantiser and a convolutional decoder share."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.base import CodeUse, Reconstruction, TrainableTokenizer
from generative.tokenizers.vqgan_network import latent_stride


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The quantised value with the gradient of the latents."""
    return latents + (quantized - latents).detach()


class ConvolutionalTokenizer(TrainableTokenizer):
    """A tokenizer whose tokens are a grid of vectors from a convolutional network, quantised each by itself.

    A subclass sets the modules in its constructor and says how latents become ids and back.

    Attributes:
        encoder: Images (B, 3, H, W) to latents (B, D, h, w).
        quantizer: Latents (B, D, h, w) float32 to ``Quantized``.
        decoder: Latents (B, D, h, w) to images (B, 3, H, W); its last layer is ``conv_out``.
    """

    _supports_gradient_checkpointing = True
    encoder: nn.Module
    quantizer: nn.Module
    decoder: nn.Module

    @property
    def image_size(self) -> int:
        """Height and width, in pixels."""
        return self.config.image_size

    @property
    def stride(self) -> int:
        """Pixels per vector along an axis: each level but the last halves the image."""
        return latent_stride(self.config.image_size, self.config.ch_mult)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid of vectors."""
        side = self.config.image_size // self.stride
        return side, side

    @abc.abstractmethod
    def latents_to_ids(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) float32 -> (B, L) int64, in raster order."""

    @abc.abstractmethod
    def ids_to_latents(self, ids: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """(B, L) int64 -> (B, D, h, w) float32, for a grid of ``grid_size``."""

    def quantize_latents(
        self, latents: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, CodeUse]]:
        """Quantise for training.

        Args:
            latents: (B, D, h, w) float32.
            generator: Source of randomness, for quantisers that draw.

        Returns:
            Latents with straight-through gradients, losses and use of codes, as in ``Reconstruction``.
        """
        quantized = self.quantizer(latents)
        return quantized.latents, quantized.losses, {"codebook": quantized.use}

    def encode_latents(self, images: Tensor) -> Tensor:
        """Latents (B, D, h, w) float32 before quantisation, of images (B, 3, H, W) of any size that the stride divides.

        Raises:
            UserError: If the stride does not divide a side.
        """
        if images.shape[-1] % self.stride or images.shape[-2] % self.stride:
            raise UserError(f"height and width of the images must be multiples of {self.stride}, got {tuple(images.shape[-2:])}")
        return self.encoder(images.to(self.dtype)).float()

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Decoded images (B, 3, H, W) float32, not clamped, of quantised latents (B, D, h, w)."""
        return self.decoder(latents.to(self.dtype)).float()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [-1, 1] of quantised latents (B, D, h, w)."""
        return self.reconstruct(latents).clamp(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Quantise; see ``ImageTokenizer.encode``."""
        self.check_images(images)
        return self.latents_to_ids(self.encode_latents(images))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Look codes up and decode them; see ``ImageTokenizer.decode``."""
        self.check_tokens(tokens)
        return self.decode_latents(self.ids_to_latents(tokens, self.grid_size))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Reconstruct; see ``TrainableTokenizer.forward``."""
        self.check_images(images)
        latents, losses, codes = self.quantize_latents(self.encode_latents(images), generator)
        return Reconstruction(self.reconstruct(latents), losses, codes)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution."""
        return self.decoder.get_parameter("conv_out.weight")
