"""Random projections of a pretrained network's feature maps (arXiv 2111.01007, section 3.2): fixed, and never trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.efficientnet_lite import FrozenConv2d

Projection = Literal["none", "channel", "scale"]
"""No projection; cross-channel mixing alone; cross-channel and then cross-scale mixing (``proj_type`` 0, 1, 2)."""
NUM_SCALES = 4


def mixed_channels(out_channels: int, expand: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels after cross-channel mixing and after cross-scale mixing, largest map first.

    Args:
        out_channels: Of the largest map.
        expand: Whether each smaller map has twice as many.
    """
    if not expand:
        return (out_channels,) * NUM_SCALES, (out_channels,) * NUM_SCALES
    after_channel = tuple(out_channels << index for index in range(NUM_SCALES))
    # Mixing scales halves the channels of all maps but the largest, whose resolution makes the others pay.
    return after_channel, (after_channel[0], *(width // 2 for width in after_channel[1:]))


class FeatureProjector(ModelMixin, ConfigMixin):
    """Cross-channel mixing (CCM: a random 1x1 convolution of each map) and cross-scale mixing (CSM: random 1x1 convolutions on
    the way from the smallest map to the largest, as in a U-Net's upward path).

    All weights are buffers with a convolution's usual initial distribution: saved, never trained.

    Args:
        in_channels: Channels of the four maps, largest map first.
        out_channels: Channels of the largest map's mixture ("cout").
        expand: Smaller maps get more channels: x 1, 2, 4, 8 after CCM and x 1, 1, 2, 4 after CSM.
        projection: ``channel`` for CCM alone, ``scale`` for CCM and CSM.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: tuple[int, ...],
        out_channels: int = 64,
        expand: bool = True,
        projection: Projection = "scale",
    ) -> None:
        super().__init__()
        if len(in_channels) != NUM_SCALES:
            raise UserError(f"in_channels must give the channels of {NUM_SCALES} maps, got {list(in_channels)}")
        if out_channels < 1:
            raise UserError(f"out_channels must be at least 1, got {out_channels}")
        if projection not in ("channel", "scale"):
            raise UserError(f"projection of a projector must be channel or scale, got {projection!r}")
        after_channel, after_scale = mixed_channels(out_channels, expand)
        self.channels = after_scale if projection == "scale" else after_channel
        pairs = list(zip(in_channels, after_channel, strict=True))
        self.channel_mixers = nn.ModuleList(FrozenConv2d(width_in, width_out) for width_in, width_out in pairs)
        self.scale_mixers = nn.ModuleList()
        if projection == "scale":
            pairs = list(zip(after_channel, after_scale, strict=True))
            self.scale_mixers.extend(FrozenConv2d(width_in, width_out) for width_in, width_out in pairs)

    def mix_channels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Cross-channel mixing.

        Args:
            features: Maps (B, C_i, H_i, W_i), largest first.

        Returns:
            Maps (B, C'_i, H_i, W_i).
        """
        return [mixer(feature) for mixer, feature in zip(self.channel_mixers, features, strict=True)]

    def mix_scales(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Cross-scale mixing: out_i = upsample2(conv_i(out_(i+1) + x_i)), bilinear, corners aligned.

        Args:
            features: Maps (B, C'_i, H_i, W_i), largest first, each half the size of the one before it.

        Returns:
            Maps (B, C''_i, 2 H_i, 2 W_i).
        """
        mixed: list[Tensor] = []
        for index in reversed(range(NUM_SCALES)):
            hidden = features[index] if not mixed else features[index] + mixed[-1]
            # The official code convolves after upsampling. A 1x1 convolution commutes with it, and costs a quarter before.
            hidden = self.scale_mixers[index](hidden)  # (B, C'', H, W)
            mixed.append(F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=True))  # (B, C'', 2H, 2W)
        return mixed[::-1]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Project.

        Args:
            features: Maps (B, C_i, H_i, W_i), largest first.

        Returns:
            Maps of ``channels`` channels, of twice the size if scales are mixed.
        """
        mixed = self.mix_channels(features)
        return self.mix_scales(mixed) if len(self.scale_mixers) > 0 else mixed
