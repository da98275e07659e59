"""Residual blocks and levels of EDM's U-Nets (Karras et al., arXiv 2206.00364, appendix F): DDPM++, NCSN++ and ADM in one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.dropout import Dropout
from generative.layers.group_norm import group_norm
from generative.layers.resample_conv import can_widen, widen_kernel
from generative.layers.resampling import Resampling, check_resample_filter, depthwise, filter_kernel, resample
from generative.layers.short_attention import attend
from generative.layers.unet_blocks import activate

MIN_GROUP_CHANNELS = 4


class Resampler(nn.Module):
    """Halves or doubles a map by one filter for all channels, with zeros around the map.

    Args:
        taps: The filter along one axis, of even length; (1, 1) averages, or repeats, pixels.

    Raises:
        UserError: See ``check_resample_filter``.
    """

    def __init__(self, taps: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__()
        check_resample_filter(taps)
        self.kernel: Tensor
        self.register_buffer("kernel", filter_kernel(taps))
        self.padding = (len(taps) - 1) // 2

    def down(self, sample: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return resample(sample, "down", self.kernel)

    def up(self, sample: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return resample(sample, "up", self.kernel)

    def up_conv(self, sample: Tensor, conv: nn.Conv2d) -> Tensor:
        """``conv(up(sample))`` up to rounding, in fewer multiplications where that can be."""
        if conv.kernel_size == (1, 1):  # mixes channels, each pixel alone: first, on a quarter of the pixels
            return add_bias(self.up(F.conv2d(sample, conv.weight)), conv)
        if self.padding or not can_widen(conv, sample, sample.shape[2] * sample.shape[3]):
            return conv(self.up(sample))
        weight = conv.weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)  # (C, C', 3, 3)
        return F.conv_transpose2d(sample, widen_kernel(weight, 4 * self.kernel), conv.bias, stride=2, padding=1)

    def conv_down(self, sample: Tensor, conv: nn.Conv2d) -> Tensor:
        """The 3x3 convolution on a map with a margin as wide as the filter needs, ``down`` without one, and the bias."""
        if not self.padding and can_widen(conv, sample, sample.shape[2] * sample.shape[3] // 4):
            return F.conv2d(sample, widen_kernel(conv.weight, self.kernel), conv.bias, stride=2, padding=1)
        wide = F.conv2d(sample, conv.weight, padding=1 + self.padding)
        return add_bias(F.conv2d(wide, depthwise(wide, self.kernel), groups=wide.shape[1], stride=2), conv)


def add_bias(sample: Tensor, conv: nn.Conv2d) -> Tensor:
    """Add a convolution's bias (C,), if it has one, to (B, C, H, W)."""
    return sample if conv.bias is None else sample + conv.bias.to(sample.dtype)[:, None, None]


class MapAttention(nn.Module):
    """Self-attention over the pixels of a map.

    Args:
        num_channels: C.
        num_heads: Divides C.
    """

    def __init__(self, num_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        self.out = nn.Linear(num_channels, num_channels)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        tokens = self.qkv(sample.flatten(2).transpose(1, 2))  # (B, HW, 3C)
        query, key, value = tokens.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, HW, C/heads)
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)  # (B, HW, C)
        return self.out(mixed).transpose(1, 2).unflatten(2, sample.shape[2:])


class UNetBlock(nn.Module):
    """Residual block, resampled where asked for, with attention behind it where it has heads.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        embedding_channels: Width of the embedding of noise level and class.
        resampling: Double or halve the map, in both paths, after the first SiLU.
        num_heads: Attention heads; 0 for none.
        dropout: Share of hidden values dropped in training.
        residual_scale: Factor on every sum of a branch and what goes round it.
        eps: Of the group norms.
        resample_filter: See ``Resampler``.
        projects_resampled: Whether what goes round a resampling block passes a 1x1 convolution even at equal widths.
        adaptive_scale: Whether the embedding scales and shifts normalised values (ADM), or is added before the norm (DDPM++).

    Raises:
        UserError: If widths do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        resampling: Resampling | None = None,
        num_heads: int = 0,
        dropout: float = 0.0,
        residual_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1.0, 1.0),
        projects_resampled: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        if num_heads and out_channels % num_heads:
            raise UserError(f"attention of {num_heads} heads needs a multiple of channels, got {out_channels}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.resampling, self.residual_scale, self.adaptive_scale = resampling, residual_scale, adaptive_scale
        self.norm1 = group_norm(in_channels, eps, MIN_GROUP_CHANNELS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm2 = group_norm(out_channels, eps, MIN_GROUP_CHANNELS)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        has_projection = in_channels != out_channels or (resampling is not None and projects_resampled)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if has_projection else None
        # One filter a path: official checkpoints hold each of them.
        self.resampler = None if resampling is None else Resampler(resample_filter)
        self.skip_resampler = None if resampling is None else Resampler(resample_filter)
        self.attention_norm = group_norm(out_channels, eps, MIN_GROUP_CHANNELS) if num_heads else None
        self.attention = MapAttention(out_channels, num_heads) if num_heads else None

    def forward(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Transform a map.

        Args:
            sample: (B, C, H, W).
            embedding: (B, E), activated.

        Returns:
            (B, C', H', W').
        """
        hidden, around = self._resampled(activate(self.norm1(sample)), sample)
        condition = self.affine(embedding)[:, :, None, None]  # (B, C' or 2C', 1, 1)
        if self.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm2(hidden), scale + 1)
        else:
            hidden = self.norm2(hidden + condition)
        hidden = self.conv2(self.dropout(activate(hidden)))
        hidden = self._sum(hidden, around)
        if self.attention is not None and self.attention_norm is not None:
            hidden = self._sum(self.attention(self.attention_norm(hidden)), hidden)
        return hidden

    def _resampled(self, hidden: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
        """First convolution of the branch and what goes round it, both resampled."""
        if self.resampler is None or self.skip_resampler is None:
            return self.conv1(hidden), around if self.skip is None else self.skip(around)
        if self.resampling == "down":
            hidden, around = self.resampler.down(hidden), self.skip_resampler.down(around)
            return self.conv1(hidden), around if self.skip is None else self.skip(around)
        hidden = self.resampler.up_conv(hidden, self.conv1)
        return hidden, self.skip_resampler.up(around) if self.skip is None else self.skip_resampler.up_conv(around, self.skip)

    def _sum(self, branch: Tensor, around: Tensor) -> Tensor:
        total = branch + around
        return total if self.residual_scale == 1 else total * self.residual_scale


class UNetLevel(nn.Module):
    """Blocks at one resolution of an encoder or a decoder.

    Args:
        entry: Blocks that bring a map to this resolution: one that halves or doubles it, two in the middle, none at the top.
        blocks: Those that follow; in a decoder, each reads a skip.
    """

    def __init__(self, entry: Sequence[UNetBlock], blocks: Sequence[UNetBlock]) -> None:
        super().__init__()
        self.entry = nn.ModuleList(entry)
        self.blocks = nn.ModuleList(blocks)
