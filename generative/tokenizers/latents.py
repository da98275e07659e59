"""Images to scaled latents of a diffusers autoencoder, and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor


def latent_stride(autoencoder: AutoencoderKL) -> int:
    """Pixels per latent along an axis."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


@torch.no_grad()
def encode_images(autoencoder: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw latents of images, scaled to about unit variance.

    Args:
        autoencoder: Its config holds ``scaling_factor`` and perhaps ``shift_factor``.
        images: (B, 3, H, W) float32 in [-1, 1].
        generator: Source of the latents' randomness.

    Returns:
        (B, C, h, w) float32.
    """
    distribution = autoencoder.encode(images.to(autoencoder.dtype)).latent_dist
    noise = torch.randn(distribution.mean.shape, generator=generator, device=generator.device).to(images.device)
    latents = distribution.mean.float() + distribution.std.float() * noise
    return (latents - (autoencoder.config.shift_factor or 0.0)) * autoencoder.config.scaling_factor


@torch.no_grad()
def decode_latents(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) float32, about in [-1, 1], of scaled latents (B, C, h, w)."""
    unscaled = latents / autoencoder.config.scaling_factor + (autoencoder.config.shift_factor or 0.0)
    return autoencoder.decode(unscaled.to(autoencoder.dtype)).sample.float()
