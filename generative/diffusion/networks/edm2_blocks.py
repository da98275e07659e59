"""Residual blocks of EDM2's magnitude-preserving U-Net (arXiv 2312.02696, figure 21), and which of them a U-Net is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.dropout import Dropout
from generative.layers.magnitude_preserving import (
    SILU_MAGNITUDE,
    MPConv2d,
    MPLinear,
    normalize,
    sum_weights,
)
from generative.layers.resampling import Resampling, resample_by_taps
from generative.layers.short_attention import attend

Side = Literal["encoder", "decoder"]


class MPVectorLinear(MPLinear):
    """A linear map of vectors that are brought to unit magnitude first; zeros, the null condition, stay zeros.

    A one-hot vector of K classes times sqrt(K), which the map of classes reads, has that magnitude.
    """

    def forward(self, values: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """Map vectors (B, D), in float32."""
        return super().forward(normalize(values.float()), gain)


class MPAttention(nn.Module):
    """Self-attention over the positions of a map, with queries, keys and values of unit magnitude.

    Args:
        channels: C, a multiple of ``num_heads``.
        num_heads: Heads.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = MPLinear(channels, 3 * channels)
        self.out = MPLinear(channels, channels)

    def forward(self, sample: Tensor, gain: float) -> Tensor:
        """Attend: (B, C, H, W) to the same, multiplied by a gain."""
        tokens = sample.flatten(2).transpose(1, 2)  # (B, L, C)
        parts = normalize(self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)), dims=(4,))  # (B, L, 3, heads, D)
        query, key, value = parts.transpose(1, 3).unbind(2)  # each (B, heads, L, D)
        attended = attend(query, key, value).transpose(1, 2).flatten(2)  # (B, L, C)
        return self.out(attended, gain).transpose(1, 2).unflatten(2, sample.shape[2:])


@dataclass(frozen=True)
class BlockPlace:
    """A block's place in the U-Net.

    Attributes:
        side: Encoder or decoder.
        level: Halvings of the map that it puts out.
        in_channels: Of its input, a skip included.
        out_channels: Of its output.
        resampling: How it resamples its input first, if it does.
        attends: Whether it has self-attention.
        reads_skip: Whether a skip is joined to its input.
    """

    side: Side
    level: int
    in_channels: int
    out_channels: int
    resampling: Resampling | None = None
    attends: bool = False
    reads_skip: bool = False


def encoder_places(widths: Sequence[int], num_blocks: int, attended: Sequence[bool]) -> list[BlockPlace]:
    """Blocks of the encoder, in order.

    Args:
        widths: Of each level, the largest map first; the first is that of the encoder's input.
        num_blocks: Blocks of a level besides those that halve.
        attended: Levels whose blocks attend.
    """
    places, width = [], widths[0]
    for level, level_width in enumerate(widths):
        if level:
            places.append(BlockPlace("encoder", level, width, width, "down"))
        for _ in range(num_blocks):
            places.append(BlockPlace("encoder", level, width, level_width, attends=attended[level]))
            width = level_width
    return places


def decoder_places(widths: Sequence[int], num_blocks: int, attended: Sequence[bool]) -> list[BlockPlace]:
    """Blocks of the decoder, in order; arguments as of ``encoder_places``."""
    skips = [widths[0], *(place.out_channels for place in encoder_places(widths, num_blocks, attended))]
    innermost, width = len(widths) - 1, widths[-1]
    places = [BlockPlace("decoder", innermost, width, width, attends=attends) for attends in (True, False)]
    for level in reversed(range(len(widths))):
        if level < innermost:
            places.append(BlockPlace("decoder", level, width, width, "up"))
        for _ in range(num_blocks + 1):
            joined = width + skips.pop()
            places.append(BlockPlace("decoder", level, joined, widths[level], attends=attended[level], reads_skip=True))
            width = widths[level]
    return places


class EDM2Block(nn.Module):
    """Residual block, perhaps with self-attention behind it.

    Constant factors of the paper's sums and activations are gains of the convolutions beside them: the same numbers in fewer
    passes over the maps.

    Args:
        place: Its widths, and what it does beside.
        embedding_channels: D of the condition.
        resample_filter: See ``generative.layers.resampling.filter_kernel``.
        channels_per_head: Channels of an attention head; a block with less has no attention.
        dropout: Within the residual branch.
        residual_balance: Share of the residual branch in the sum.
        attention_balance: Share of the attention in the sum.
        clip_act: Outputs are clipped to plus and minus this; None for no clipping.
    """

    def __init__(
        self,
        place: BlockPlace,
        embedding_channels: int,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        residual_balance: float = 0.3,
        attention_balance: float = 0.3,
        clip_act: float | None = 256.0,
    ) -> None:
        super().__init__()
        in_channels, out_channels = place.in_channels, place.out_channels
        self.place, self.resample_filter = place, tuple(resample_filter)
        self.dropout, self.clip_act = Dropout(dropout), clip_act
        self.residual_balance, self.attention_balance = residual_balance, attention_balance
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPConv2d(out_channels if place.side == "encoder" else in_channels, out_channels)
        self.emb_linear = MPLinear(embedding_channels, out_channels)
        self.conv_res1 = MPConv2d(out_channels, out_channels)
        self.conv_skip = MPConv2d(in_channels, out_channels, kernel_size=1) if in_channels != out_channels else None
        num_heads = out_channels // channels_per_head if place.attends else 0
        self.attention = MPAttention(out_channels, num_heads) if num_heads else None

    def forward(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Transform a map (B, C_in, H, W) under a condition (B, D) float32 to (B, C, H', W')."""
        if self.place.resampling is not None:
            sample = resample_by_taps(sample, self.place.resampling, self.resample_filter)
        is_encoder = self.place.side == "encoder"
        if is_encoder:
            sample = normalize(sample if self.conv_skip is None else self.conv_skip(sample), dims=(1,))
        with torch.autocast(sample.device.type, enabled=False):
            scale = self.emb_linear(embedding, self.emb_gain) + 1  # (B, C)
        residual = self.conv_res0(F.silu(sample), 1 / SILU_MAGNITUDE)  # (B, C, H', W')
        residual = F.silu(residual * scale[:, :, None, None].to(residual.dtype))
        residual = self.dropout(residual)
        main_weight, residual_weight = sum_weights(self.residual_balance)
        residual = self.conv_res1(residual, residual_weight / SILU_MAGNITUDE)
        if self.conv_skip is None or is_encoder:
            sample = torch.add(residual, sample, alpha=main_weight)
        else:
            sample = self.conv_skip(sample, main_weight) + residual
        if self.attention is not None:
            main_weight, attention_weight = sum_weights(self.attention_balance)
            sample = torch.add(self.attention(sample, attention_weight), sample, alpha=main_weight)
        # Like ``clamp``, whose gradient takes four passes where this takes one.
        return sample if self.clip_act is None else F.hardtanh(sample, -self.clip_act, self.clip_act)
