"""Images to scaled latents of an autoencoder, and back: KL autoencoders (ours too) and the deep-compression one of diffusers."""

from __future__ import annotations

import torch
from diffusers import AutoencoderDC, AutoencoderKL, ModelMixin
from torch import Tensor

from generative.core.errors import UserError

AUTOENCODERS = (AutoencoderKL, AutoencoderDC)
"""Classes whose latents are taken, subclasses included."""


def check_autoencoder(autoencoder: ModelMixin) -> None:
    """Refuse a network that is no autoencoder with continuous latents.

    Raises:
        UserError: If it is none of ``AUTOENCODERS``.
    """
    if not isinstance(autoencoder, AUTOENCODERS):
        names = " or ".join(known.__name__ for known in AUTOENCODERS)
        raise UserError(f"autoencoder must be an {names} (or a subclass), got {type(autoencoder).__name__}")


def latent_stride(autoencoder: ModelMixin) -> int:
    """Pixels per latent along an axis.

    Raises:
        UserError: If it is no autoencoder with continuous latents.
    """
    check_autoencoder(autoencoder)
    config = autoencoder.config
    levels = config.encoder_block_out_channels if isinstance(autoencoder, AutoencoderDC) else config.block_out_channels
    return 2 ** (len(levels) - 1)


def latent_channels(autoencoder: ModelMixin) -> int:
    """Channels C of the latents.

    Raises:
        UserError: If it is no autoencoder with continuous latents.
    """
    check_autoencoder(autoencoder)
    return int(autoencoder.config.latent_channels)


def check_latents(in_channels: int, autoencoder: ModelMixin | None) -> None:
    """Refuse an autoencoder whose latents are not those that a network works on.

    Args:
        in_channels: Channels that the network takes.
        autoencoder: None if pixels are the latents.

    Raises:
        UserError: If it is no autoencoder with continuous latents, or its channels differ.
    """
    if autoencoder is not None and latent_channels(autoencoder) != in_channels:
        raise UserError(
            f"the network has in_channels={in_channels} but the autoencoder's latents have {latent_channels(autoencoder)} "
            "channels; make them equal"
        )


@torch.no_grad()
def encode_images(autoencoder: ModelMixin, images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw latents of images, scaled to about unit variance.

    Args:
        autoencoder: Its config holds ``scaling_factor`` and perhaps ``shift_factor``.
        images: (B, 3, H, W) float32 in [-1, 1].
        generator: Source of the latents' randomness; a deterministic autoencoder draws nothing.

    Returns:
        (B, C, h, w) float32.
    """
    encoded = autoencoder.encode(images.to(autoencoder.dtype))
    if isinstance(autoencoder, AutoencoderDC):
        latents = encoded.latent.float()
    else:
        distribution = encoded.latent_dist
        noise = torch.randn(distribution.mean.shape, generator=generator, device=generator.device).to(images.device)
        latents = distribution.mean.float() + distribution.std.float() * noise
    return (latents - _shift(autoencoder)) * autoencoder.config.scaling_factor


@torch.no_grad()
def decode_latents(autoencoder: ModelMixin, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) float32, about in [-1, 1], of scaled latents (B, C, h, w)."""
    unscaled = latents / autoencoder.config.scaling_factor + _shift(autoencoder)
    return autoencoder.decode(unscaled.to(autoencoder.dtype)).sample.float()


def _shift(autoencoder: ModelMixin) -> float:
    """What is taken off the latents before they are scaled."""
    return autoencoder.config.get("shift_factor") or 0.0
