"""Pixels as tokens: uniform quantisation, for small images."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.base import ImageTokenizer


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class PixelTokenizer(ImageTokenizer, ModelMixin):
    """Each pixel (or each colour of each pixel) is a token: the nearest of evenly spaced levels in [-1, 1].

    With one channel, the token is the level of the pixel's grey value, the mean of its three channels. With three, a pixel gives
    three tokens in the order red, green, blue, side by side in its row, so the token grid is three times as wide as the image;
    colour c's ids start at ``c * num_levels``, so that an id tells its colour. Quantised images survive encode and decode
    exactly.

    Args:
        image_size: Height and width, in pixels.
        num_levels: Levels per pixel or colour; 17 keeps the digits of scikit-learn (0..16) exact, 256 any 8-bit image.
        channels: 1 for grey, 3 for colour.
    """

    levels: Tensor

    @register_to_config
    def __init__(self, image_size: int = 8, num_levels: int = 17, channels: Literal[1, 3] = 1) -> None:
        super().__init__()
        if image_size < 1:
            raise UserError(f"image_size must be at least 1, got {image_size}")
        if num_levels < 2:
            raise UserError(f"num_levels must be at least 2, got {num_levels}")
        if channels not in (1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        self.register_buffer("levels", torch.linspace(-1, 1, num_levels))  # (num_levels,)

    @property
    def num_codes(self) -> int:
        """``num_levels`` for each channel."""
        return self.config.num_levels * self.config.channels

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) for grey, (H, 3 W) for colour."""
        return self.config.image_size, self.config.image_size * self.config.channels

    @property
    def image_size(self) -> int:
        """Height and width, in pixels."""
        return self.config.image_size

    def encode(self, images: Tensor) -> Tensor:
        """Quantise; see ``ImageTokenizer.encode``. Values outside [-1, 1] are clipped."""
        self.check_images(images)
        channels, num_levels = self.config.channels, self.config.num_levels
        values = images.float().mean(dim=1, keepdim=True) if channels == 1 else images.float()  # (B, C, H, W)
        tokens = ((values.clamp(-1, 1) + 1) / 2 * (num_levels - 1)).round().long()  # (B, C, H, W)
        tokens = tokens + num_levels * torch.arange(channels, device=tokens.device)[:, None, None]
        return tokens.permute(0, 2, 3, 1).flatten(1)  # (B, L), channel fastest

    def decode(self, tokens: Tensor) -> Tensor:
        """Look levels up; see ``ImageTokenizer.decode``. The place of an id decides its colour, whichever colour's id it is."""
        self.check_tokens(tokens)
        size, channels = self.config.image_size, self.config.channels
        values = self.levels.float()[tokens % self.config.num_levels]  # (B, L)
        images = values.unflatten(1, (size, size, channels)).permute(0, 3, 1, 2)  # (B, C, H, W)
        return images.expand(-1, 3, -1, -1).contiguous()  # (B, 3, H, W)
