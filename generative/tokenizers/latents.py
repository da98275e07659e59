"""Images to scaled latents of an autoencoder, and back: KL autoencoders (ours too) and the deep-compression one of diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import AutoencoderDC, AutoencoderKL, ModelMixin
from torch import Tensor

from generative.core.errors import UserError
from generative.core.images import IMAGE_RANGE_KEY

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
        UserError: If it is no autoencoder with continuous latents, its channels differ, or its scaling is not understood.
    """
    if autoencoder is None:
        return
    if latent_channels(autoencoder) != in_channels:
        raise UserError(
            f"the network has in_channels={in_channels} but the autoencoder's latents have {latent_channels(autoencoder)} "
            "channels; make them equal"
        )
    _check_scaling(autoencoder)


@torch.no_grad()
def encode_images(autoencoder: ModelMixin, images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw latents of images, scaled to about unit variance.

    Args:
        autoencoder: Its config holds how they are scaled, see ``scale_latents``.
        images: (B, 3, H, W) float32 in [-1, 1].
        generator: Source of the latents' randomness; a deterministic autoencoder draws nothing.

    Returns:
        (B, C, h, w) float32.
    """
    return scale_latents(autoencoder, draw_latents(*latent_moments(autoencoder, images), generator))


def draw_latents(mean: Tensor, std: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draw from the distributions that a probabilistic encoder gives: ``mean + std * noise``.

    Args:
        mean: (B, C, h, w) floating point, scaled or not.
        std: Likewise; None draws nothing, and the means are the latents.
        generator: Source of the noise, on any device.

    Returns:
        (B, C, h, w) float32.
    """
    if std is None:
        return mean.float()
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
    return mean.float() + std.float() * noise


def latent_moments(autoencoder: ModelMixin, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of images' latents, as the encoder has them: not scaled.

    Args:
        autoencoder: A KL or deep-compression autoencoder.
        images: (B, 3, H, W) float32 in [-1, 1].

    Returns:
        Both (B, C, h, w) float32; None for the deviation of a deterministic autoencoder.
    """
    low, high = image_range(autoencoder)
    if (low, high) != (-1.0, 1.0):
        images = images * ((high - low) / 2) + (high + low) / 2
    encoded = autoencoder.encode(images.to(autoencoder.dtype))
    if isinstance(autoencoder, AutoencoderDC):
        return encoded.latent.float(), None
    return encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()


@torch.no_grad()
def decode_latents(autoencoder: ModelMixin, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) float32, about in [-1, 1], of scaled latents (B, C, h, w)."""
    offset, factor = latent_scaling(autoencoder, latents.device)
    unscaled = latents / factor + offset
    images = autoencoder.decode(unscaled.to(autoencoder.dtype)).sample.float()
    low, high = image_range(autoencoder)
    return images if (low, high) == (-1.0, 1.0) else (images - (high + low) / 2) * (2 / (high - low))


def image_range(autoencoder: ModelMixin) -> tuple[float, float]:
    """Least and largest value of the images that an autoencoder takes and makes: EDM2's are in [0, 1].

    Raises:
        UserError: If the config's are not two numbers, the least first.
    """
    values = autoencoder.config.get(IMAGE_RANGE_KEY) or (-1.0, 1.0)
    try:
        low, high = map(float, values)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the autoencoder's {IMAGE_RANGE_KEY} must be two numbers, got {values!r}; mend its config.json"
        ) from error
    if not low < high < math.inf:
        raise UserError(f"the autoencoder's {IMAGE_RANGE_KEY} must be two numbers, the least first, got {values!r}")
    return low, high


def set_latent_scaling(
    autoencoder: ModelMixin,
    scaling_factor: float,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
    image_range: Sequence[float] | None = None,
) -> None:
    """Write into an autoencoder's config how its latents are scaled, in the place of what stands there.

    Args:
        autoencoder: Changed in place.
        scaling_factor: Deviation that latents are brought to where ``latents_std`` says what it was, else a factor.
        latents_mean: Mean of each channel; None for 0.
        latents_std: Deviation of each channel; None for 1.
        image_range: See ``image_range``; None for [-1, 1].

    Raises:
        UserError: If numbers are not one per channel, or out of range.
    """
    autoencoder.register_to_config(
        scaling_factor=scaling_factor,
        shift_factor=None,
        latents_mean=None if latents_mean is None else list(latents_mean),
        latents_std=None if latents_std is None else list(latents_std),
        **({} if image_range is None else {IMAGE_RANGE_KEY: list(image_range)}),
    )
    _check_scaling(autoencoder)


def _check_scaling(autoencoder: ModelMixin) -> None:
    latent_scaling(autoencoder)
    image_range(autoencoder)


def scale_latents(autoencoder: ModelMixin, latents: Tensor) -> Tensor:
    """Bring an encoder's latents (B, C, h, w) to about zero mean and unit variance, as ``latent_scaling`` says."""
    offset, factor = latent_scaling(autoencoder, latents.device)
    return (latents - offset) * factor


def latent_scaling(autoencoder: ModelMixin, device: torch.device | None = None) -> tuple[Tensor | float, Tensor | float]:
    """What is taken off the latents, and what they are multiplied by then.

    The offset is the config's ``shift_factor``, one number, or ``latents_mean``, one for each channel; the factor is its
    ``scaling_factor``, divided by ``latents_std`` of each channel where it has them, as the pipelines of diffusers do.

    Args:
        autoencoder: A KL or deep-compression autoencoder.
        device: Where tensors are put.

    Returns:
        Offset and factor, each a number or (C, 1, 1) float32.

    Raises:
        UserError: If the config's numbers are not one per channel, not finite, zero where they divide, or two offsets at once.
    """
    config = autoencoder.config
    factor, shift = config.get("scaling_factor"), config.get("shift_factor")
    if factor is None or not (math.isfinite(factor) and factor > 0):
        raise UserError(f"the autoencoder's scaling_factor must be a positive number, got {factor}; mend its config.json")
    mean, std = (_channel_values(autoencoder, name, device) for name in ("latents_mean", "latents_std"))
    if mean is not None and shift:
        raise UserError("the autoencoder's config has both shift_factor and latents_mean; keep the one that is meant")
    offset = (shift or 0.0) if mean is None else mean
    return offset, factor if std is None else factor / std


def scaled_deviation(encoder: ModelMixin) -> float:
    """Standard deviation that scaled latents should have: 1, unless each channel's own is divided by, and another asked for."""
    return float(encoder.config.scaling_factor) if encoder.config.get("latents_std") is not None else 1.0


def _channel_values(autoencoder: ModelMixin, name: str, device: torch.device | None) -> Tensor | None:
    """Numbers of the config for each channel, (C, 1, 1) float32, or None where it has none."""
    values = autoencoder.config.get(name)
    if values is None:
        return None
    channels = latent_channels(autoencoder)
    try:
        tensor = torch.tensor(values, dtype=torch.float32, device=device)
    except (TypeError, ValueError) as error:
        raise UserError(f"the autoencoder's {name} must be {channels} numbers, one for each channel, got {values!r}") from error
    if tensor.shape != (channels,) or not bool(tensor.isfinite().all()) or (name == "latents_std" and bool((tensor <= 0).any())):
        kind = "positive numbers" if name == "latents_std" else "numbers"
        raise UserError(f"the autoencoder's {name} must be {channels} {kind}, one for each channel, got {values!r}")
    return tensor[:, None, None]
