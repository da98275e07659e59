"""Convolutional encoder and decoder of the VQGAN line (arXiv 2012.09841, table 7), as VAR and LlamaGen use them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.checkpointing import BlockSequence, run_block
from generative.layers.group_norm import GroupNorm
from generative.layers.resample_conv import upsample_conv

NORM_EPS = 1e-6
"""Epsilon of every group norm of the line (taming-transformers and all that follow it)."""


def activate(sample: Tensor) -> Tensor:
    """SiLU, in place where no gradient needs its input."""
    return F.silu(sample, inplace=not torch.is_grad_enabled())


def group_norm(num_channels: int, norm_groups: int) -> GroupNorm:
    """Group norm of the line.

    Raises:
        UserError: If the groups do not divide the channels.
    """
    if norm_groups < 1 or num_channels % norm_groups:
        raise UserError(
            f"norm_groups must divide every width of the network, got {norm_groups} for {num_channels} channels; "
            "change norm_groups, ch or ch_mult"
        )
    return GroupNorm(norm_groups, num_channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input (through a 1x1 convolution where the width changes).

    Args:
        in_channels: C.
        out_channels: C'.
        norm_groups: Groups of both norms.
        dropout: Probability, before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        hidden = self.conv1(activate(self.norm1(sample)))  # (B, C', H, W)
        hidden = self.conv2(self.dropout(activate(self.norm2(hidden))))
        return self.shortcut(sample) + hidden


class AttentionBlock(nn.Module):
    """Self-attention of one head over all positions, added to its input.

    Args:
        num_channels: C; the softmax scale is C^-0.5.
        norm_groups: Groups of its norm.
    """

    def __init__(self, num_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(num_channels, norm_groups)
        self.qkv = nn.Conv2d(num_channels, 3 * num_channels, 1)
        self.out = nn.Conv2d(num_channels, num_channels, 1)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        # Positions before channels: a view of channels-last memory, and what the attention kernels read.
        qkv = self.qkv(self.norm(sample)).permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, 3C)
        query, key, value = (part[:, None] for part in qkv.chunk(3, dim=-1))  # each (B, 1, HW, C)
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]  # (B, HW, C)
        mixed = mixed.unflatten(1, sample.shape[2:]).permute(0, 3, 1, 2)  # (B, C, H, W)
        return sample + self.out(mixed)


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if asked for.

    Args:
        in_channels: C of what comes in.
        out_channels: C'.
        num_blocks: Residual blocks.
        norm_groups: Groups of all norms.
        dropout: Of the residual blocks.
        attention: Whether attention follows each block.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, norm_groups: int, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * num_blocks]
        self.blocks = nn.ModuleList(
            ResnetBlock(before, after, norm_groups, dropout) for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(out_channels, norm_groups) if attention else nn.Identity() for _ in self.blocks
        )
        self.gradient_checkpointing = False

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            sample = run_block(self, block, sample)
            if isinstance(attention, AttentionBlock):
                sample = run_block(self, attention, sample)
        return sample


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded with zeros on the right and below only."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, stride=2)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(sample, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        return upsample_conv(sample, self.conv)


def middle(num_channels: int, norm_groups: int, dropout: float, attention: bool) -> BlockSequence:
    """Block, attention, block at the lowest resolution."""
    return BlockSequence(
        ResnetBlock(num_channels, num_channels, norm_groups, dropout),
        AttentionBlock(num_channels, norm_groups) if attention else nn.Identity(),
        ResnetBlock(num_channels, num_channels, norm_groups, dropout),
    )


def check_widths(ch: int, ch_mult: Sequence[int], num_res_blocks: int) -> None:
    """Refuse a network without width, levels or blocks."""
    if ch < 1:
        raise UserError(f"ch must be at least 1, got {ch}")
    if not ch_mult or min(ch_mult) < 1:
        raise UserError(f"ch_mult must hold a positive factor for each resolution, got {list(ch_mult)}")
    if num_res_blocks < 1:
        raise UserError(f"num_res_blocks must be at least 1, got {num_res_blocks}")


def latent_stride(image_size: int, ch_mult: Sequence[int]) -> int:
    """Pixels per latent along an axis: 2 for each resolution but the first.

    Raises:
        UserError: If it does not divide the image.
    """
    stride = 2 ** max(len(ch_mult) - 1, 0)
    if image_size < 1 or image_size % stride:
        raise UserError(
            f"image_size must be a multiple of {stride}, the stride of a network of {len(ch_mult)} resolutions, got {image_size}"
        )
    return stride


class Encoder(nn.Module):
    """Images to latents.

    Args:
        in_channels: Channels of the images.
        z_channels: Channels of the latents.
        ch: Base width.
        ch_mult: Width of each resolution as a multiple of ``ch``, the images' own first; each but the last is halved after.
        num_res_blocks: Residual blocks of each resolution.
        norm_groups: Groups of every norm.
        using_sa: Whether attention follows each block of the lowest resolution.
        using_mid_sa: Whether there is attention between the two last blocks.
        dropout: Of every residual block.

    Raises:
        UserError: If a width is impossible.
    """

    def __init__(
        self,
        in_channels: int = 3,
        z_channels: int = 256,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_widths(ch, ch_mult, num_res_blocks)
        widths = [ch * factor for factor in ch_mult]
        before = [ch, *widths[:-1]]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(before[index], width, num_res_blocks, norm_groups, dropout, using_sa and index == last)
            for index, width in enumerate(widths)
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.mid = middle(widths[-1], norm_groups, dropout, using_mid_sa)
        self.norm_out = group_norm(widths[-1], norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to latents (B, z_channels, h, w)."""
        hidden = self.conv_in(images)  # (B, ch, H, W)
        for index, level in enumerate(self.levels):
            hidden = level(hidden)  # (B, ch * ch_mult, H / 2^index, W / 2^index)
            if index < len(self.downsamples):
                hidden = self.downsamples[index](hidden)
        return self.conv_out(activate(self.norm_out(self.mid(hidden))))  # (B, z_channels, h, w)


class Decoder(nn.Module):
    """Latents to images: the encoder's mirror, with a block more at each resolution.

    Args:
        out_channels: Channels of the images.
        z_channels: Channels of the latents.
        ch: Base width.
        ch_mult: Width of each resolution as in ``Encoder``, the images' own first.
        num_res_blocks: Residual blocks of each resolution, less one.
        norm_groups: Groups of every norm.
        using_sa: Whether attention follows each block of the lowest resolution.
        using_mid_sa: Whether there is attention between the two first blocks.
        dropout: Of every residual block.

    Raises:
        UserError: If a width is impossible.
    """

    def __init__(
        self,
        out_channels: int = 3,
        z_channels: int = 256,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_widths(ch, ch_mult, num_res_blocks)
        widths = [ch * factor for factor in reversed(ch_mult)]  # lowest resolution first
        before = [widths[0], *widths[:-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], norm_groups, dropout, using_mid_sa)
        self.levels = nn.ModuleList(
            Level(before[index], width, num_res_blocks + 1, norm_groups, dropout, using_sa and index == 0)
            for index, width in enumerate(widths)
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in widths[:-1])
        self.norm_out = group_norm(widths[-1], norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def finish(self, hidden: Tensor) -> Tensor:
        """Norm and SiLU of (B, C, H, W), before the last convolution: losses read its weight, so that it is never run twice."""
        return activate(self.norm_out(hidden))

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, z_channels, h, w) to images (B, out_channels, H, W), about in [-1, 1]."""
        hidden = self.mid(self.conv_in(latents))  # (B, ch * ch_mult[-1], h, w)
        for index, level in enumerate(self.levels):
            hidden = level(hidden)
            if index < len(self.upsamples):
                hidden = run_block(self, self.upsamples[index], hidden)  # twice as high and wide
        return self.conv_out(run_block(self, self.finish, hidden))  # (B, out_channels, H, W)
