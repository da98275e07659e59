"""Convolutional encoder and decoder of Open-MAGVIT2 (arXiv 2409.04410), without attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from generative.layers.checkpointing import run_block
from generative.tokenizers.vqgan_network import NORM_EPS, activate, check_widths, group_norm

UPSAMPLE = 2
"""Pixels along an axis that a pixel becomes at each level of the decoder."""


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input; convolutions have no biases.

    Args:
        in_channels: Channels of the input; a 1x1 convolution brings the shortcut to ``out_channels`` where they differ.
        out_channels: Channels of the output.
        norm_groups: Groups of the norms.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(out_channels, norm_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        is_same = in_channels == out_channels
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h, w)."""
        hidden = self.conv1(activate(self.norm1(x)))  # (B, out_channels, h, w)
        return self.shortcut(x) + self.conv2(activate(self.norm2(hidden)))


def residual_blocks(in_channels: int, out_channels: int, count: int, norm_groups: int) -> nn.ModuleList:
    """So many residual blocks in a row, the first of which changes the channels."""
    widths = [in_channels] + [out_channels] * (count - 1)
    return nn.ModuleList(ResidualBlock(width, out_channels, norm_groups) for width in widths)


class DownLevel(nn.Module):
    """Residual blocks, then a strided convolution with the same padding on all sides.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_res_blocks: Residual blocks.
        norm_groups: Groups of the norms.
        downsample: Halve height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, num_res_blocks: int, norm_groups: int, downsample: bool) -> None:
        super().__init__()
        self.blocks = residual_blocks(in_channels, out_channels, num_res_blocks, norm_groups)
        self.downsample = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if downsample else nn.Identity()
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h / 2, w / 2), or (h, w) without downsampling."""
        for block in self.blocks:
            x = run_block(self, block, x)
        return self.downsample(x)


class Encoder(nn.Module):
    """Images to vectors, one level of resolution per entry of ``ch_mult``, each half the size of the one before.

    Args:
        in_channels: Channels of the images.
        ch: Channels that ``ch_mult`` multiplies.
        ch_mult: Channels of each level over ``ch``, finest first.
        num_res_blocks: Residual blocks per level, and in the middle.
        z_channels: Channels of the vectors.
        norm_groups: Groups of all norms (official: 32).

    Raises:
        UserError: If a width is impossible.
    """

    def __init__(
        self,
        in_channels: int = 3,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        z_channels: int = 18,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        check_widths(ch, ch_mult, num_res_blocks)
        widths = [ch, *(ch * factor for factor in ch_mult)]
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1, bias=False)
        self.levels = nn.ModuleList(
            DownLevel(widths[index], widths[index + 1], num_res_blocks, norm_groups, downsample=index < len(ch_mult) - 1)
            for index in range(len(ch_mult))
        )
        self.middle = residual_blocks(widths[-1], widths[-1], num_res_blocks, norm_groups)
        self.norm_out = group_norm(widths[-1], norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)
        self.gradient_checkpointing = False

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> (B, z_channels, H / stride, W / stride), stride 2^(levels - 1)."""
        x = self.conv_in(images)  # (B, ch, H, W)
        for level in self.levels:
            x = level(x)
        for block in self.middle:
            x = run_block(self, block, x)
        return self.conv_out(activate(self.norm_out(x)))


class AdaptiveGroupNorm(nn.Module):
    """Group norm without weights of its own: scale and bias are linear in the spread and mean of the latents.

    Args:
        channels: Channels of the input.
        z_channels: Channels of the latents.
        norm_groups: Groups.
    """

    def __init__(self, channels: int, z_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS, affine=False)
        self.scale = nn.Linear(z_channels, channels)
        self.bias = nn.Linear(z_channels, channels)

    def forward(self, x: Tensor, spread: Tensor, mean: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (B, channels, h, w).
            spread: (B, z_channels) standard deviation of each latent channel over the grid.
            mean: (B, z_channels) mean of each latent channel.
        """
        scale, bias = self.scale(spread)[..., None, None], self.bias(mean)[..., None, None]  # (B, channels, 1, 1)
        return scale * self.norm(x) + bias


def depth_to_space(x: Tensor) -> Tensor:
    """(B, 4 C, h, w) -> (B, C, 2 h, 2 w): channel (i * 2 + j) * C + c goes to row i and column j of its 2x2 square.

    ``F.pixel_shuffle`` has the channels in another order, c * 4 + i * 2 + j.
    """
    x = x.unflatten(1, (UPSAMPLE, UPSAMPLE, -1))  # (B, i, j, C, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class UpLevel(nn.Module):
    """Adaptive norm and residual blocks, then a convolution to four times the channels and depth to space.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        z_channels: Channels of the latents.
        num_res_blocks: Residual blocks.
        norm_groups: Groups of the norms.
        upsample: Double height and width.
    """

    def __init__(
        self, in_channels: int, out_channels: int, z_channels: int, num_res_blocks: int, norm_groups: int, upsample: bool
    ) -> None:
        super().__init__()
        self.blocks = residual_blocks(in_channels, out_channels, num_res_blocks, norm_groups)
        self.adaptive_norm = AdaptiveGroupNorm(in_channels, z_channels, norm_groups)
        self.upsample = nn.Conv2d(out_channels, UPSAMPLE**2 * out_channels, 3, padding=1) if upsample else None
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, spread: Tensor, mean: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, 2 h, 2 w), or (h, w) without upsampling."""
        x = run_block(self, self.adaptive_norm, x, spread, mean)
        for block in self.blocks:
            x = run_block(self, block, x)
        return x if self.upsample is None else depth_to_space(self.upsample(x))


class Decoder(nn.Module):
    """Vectors to images, the encoder's levels in reverse; the latents' statistics enter before every level.

    Args:
        out_channels: Channels of the images.
        ch: Channels that ``ch_mult`` multiplies.
        ch_mult: Channels of each level over ``ch``, finest first.
        num_res_blocks: Residual blocks per level, and in the middle.
        z_channels: Channels of the vectors.
        norm_groups: Groups of all norms (official: 32).

    Raises:
        UserError: If a width is impossible.
    """

    def __init__(
        self,
        out_channels: int = 3,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        z_channels: int = 18,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        check_widths(ch, ch_mult, num_res_blocks)
        widths = [*(ch * factor for factor in ch_mult), ch * ch_mult[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.middle = residual_blocks(widths[-1], widths[-1], num_res_blocks, norm_groups)
        # The finest level has index 0 and comes last.
        self.levels = nn.ModuleList(
            UpLevel(widths[index + 1], widths[index], z_channels, num_res_blocks, norm_groups, upsample=index > 0)
            for index in range(len(ch_mult))
        )
        self.norm_out = group_norm(widths[0], norm_groups)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def finish(self, x: Tensor) -> Tensor:
        """Norm and SiLU of (B, C, H, W), before the last convolution: losses read its weight, so that it is never run twice."""
        return activate(self.norm_out(x))

    def forward(self, latents: Tensor) -> Tensor:
        """(B, z_channels, h, w), at least two vectors, -> (B, out_channels, h * stride, w * stride), not clamped."""
        flat = latents.flatten(2)  # (B, z_channels, h w)
        spread, mean = (flat.var(dim=2) + NORM_EPS).sqrt(), flat.mean(dim=2)  # (B, z_channels); the variance is the unbiased one
        x = self.conv_in(latents)  # (B, C, h, w)
        for block in self.middle:
            x = run_block(self, block, x)
        for level in reversed(self.levels):
            x = level(x, spread, mean)
        return self.conv_out(run_block(self, self.finish, x))
