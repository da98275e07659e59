"""Bottleneck residual blocks of BigGAN-deep (arXiv 1809.11096, appendix B), and its released batch norm.

Both blocks reduce the channels to a quarter, run two 3x3 convolutions there and expand again; shortcuts have no weights where
channels stay or are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.batch_norm import Condition, ConditionalNorm2d
from generative.layers.gan_blocks import GANLayers
from generative.layers.self_attention import ConvLayer
from generative.layers.spectral_norm import SpectralNorm, SpectralNormConv2d, SpectralNormLinear

BOTTLENECK_DIVISOR = 4  # reduction of channels inside a block (arXiv 1809.11096, appendix B)
FULL_TRUNCATION = 1.0  # largest threshold that the released statistics cover


def bottleneck_width(num_channels: int) -> int:
    """Channels inside a block.

    Args:
        num_channels: Channels of the block's wider end.

    Raises:
        UserError: If fewer than 4.
    """
    if num_channels < BOTTLENECK_DIVISOR:
        raise UserError(
            f"a block of BigGAN-deep needs at least {BOTTLENECK_DIVISOR} channels, got {num_channels}; raise channels"
        )
    return num_channels // BOTTLENECK_DIVISOR


class DeepGeneratorBlock(nn.Module):
    """Four times conditional norm, relu and convolution (1x1, 3x3, 3x3, 1x1), upsampling before the first 3x3; with a shortcut.

    The shortcut drops the channels that do not come out, which costs nothing and keeps the gradient's way free.

    Args:
        in_channels: Channels in, at least 4.
        out_channels: Channels out, at most as many.
        conv_layer: Makes the convolutions.
        norm_layer: Called with a number of channels, makes a conditional norm ``(sample, *modulation) -> sample``.
        upsample: Double height and width (nearest neighbour).

    Raises:
        UserError: For channels that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv_layer: ConvLayer,
        norm_layer: Callable[[int], nn.Module],
        upsample: bool = False,
    ) -> None:
        super().__init__()
        if out_channels > in_channels:
            raise UserError(
                f"a generator block of BigGAN-deep cannot widen, got {in_channels} channels in and {out_channels} out"
            )
        self.out_channels = out_channels
        self.upsample = upsample
        width = bottleneck_width(in_channels)
        self.norm1 = norm_layer(in_channels)
        self.conv1 = conv_layer(in_channels, width, kernel_size=1)
        self.norm2 = norm_layer(width)
        self.conv2 = conv_layer(width, width)
        self.norm3 = norm_layer(width)
        self.conv3 = conv_layer(width, width)
        self.norm4 = norm_layer(width)
        self.conv4 = conv_layer(width, out_channels, kernel_size=1)

    def forward(self, sample: Tensor, *modulation: Tensor | float) -> Tensor:
        """Run the block.

        Args:
            sample: (B, C, H, W).
            modulation: What the norms take besides the sample.

        Returns:
            (B, C', 2H, 2W), or (B, C', H, W) without upsampling.
        """
        hidden = self.conv1(F.relu(self.norm1(sample, *modulation)))  # (B, C/4, H, W)
        hidden = F.relu(self.norm2(hidden, *modulation))
        shortcut = sample[:, : self.out_channels]  # (B, C', H, W)
        if self.upsample:
            hidden, shortcut = F.interpolate(hidden, scale_factor=2), F.interpolate(shortcut, scale_factor=2)  # (.., 2H, 2W)
        hidden = self.conv2(hidden)  # (B, C/4, 2H, 2W)
        hidden = self.conv3(F.relu(self.norm3(hidden, *modulation)))
        return self.conv4(F.relu(self.norm4(hidden, *modulation))) + shortcut  # (B, C', 2H, 2W)


class DeepDiscriminatorBlock(nn.Module):
    """Four times relu and convolution (1x1, 3x3, 3x3, 1x1), average pool before the last; with a shortcut.

    The shortcut keeps the channels it has and makes only the missing ones, with a 1x1 convolution.

    Args:
        in_channels: Channels in.
        out_channels: Channels out, at least 4 and at least as many.
        conv_layer: Makes the convolutions.
        downsample: Halve height and width (average pool).

    Raises:
        UserError: For channels that do not fit.
    """

    def __init__(self, in_channels: int, out_channels: int, conv_layer: ConvLayer, downsample: bool = True) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise UserError(
                f"a discriminator block of BigGAN-deep cannot narrow, got {in_channels} channels in and {out_channels} out"
            )
        self.downsample = downsample
        width = bottleneck_width(out_channels)
        self.conv1 = conv_layer(in_channels, width, kernel_size=1)
        self.conv2 = conv_layer(width, width)
        self.conv3 = conv_layer(width, width)
        self.conv4 = conv_layer(width, out_channels, kernel_size=1)
        missing = out_channels - in_channels
        self.shortcut = conv_layer(in_channels, missing, kernel_size=1) if missing else None

    def forward(self, sample: Tensor) -> Tensor:
        """Run the block.

        Args:
            sample: (B, C, H, W).

        Returns:
            (B, C', H/2, W/2), or (B, C', H, W) without downsampling.
        """
        hidden = self.conv1(F.relu(sample))  # (B, C'/4, H, W)
        hidden = self.conv2(F.relu(hidden))
        hidden = F.relu(self.conv3(F.relu(hidden)))
        shortcut = sample
        if self.downsample:
            hidden, shortcut = F.avg_pool2d(hidden, 2), F.avg_pool2d(shortcut, 2)  # (.., H/2, W/2)
        hidden = self.conv4(hidden)  # (B, C', H/2, W/2)
        if self.shortcut is not None:
            shortcut = torch.cat([shortcut, self.shortcut(shortcut)], dim=1)  # (B, C', H/2, W/2)
        return hidden + shortcut


class TruncationBatchNorm2d(nn.Module):
    """Batch norm by statistics that were computed beforehand for thresholds of truncation evenly spaced from 0 to 1.

    The released BigGAN-deep (TF-Hub and huggingface/pytorch-pretrained-BigGAN) is normalised so in eval and train mode alike.

    Args:
        num_channels: C.
        num_statistics: S, number of thresholds, at least 2.
        eps: Added to the variance.
        affine: Learn a gain and a bias per channel.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, num_statistics: int, eps: float = 1e-4, affine: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(num_statistics, num_channels))  # (S, C)
        self.register_buffer("running_var", torch.ones(num_statistics, num_channels))  # (S, C)
        self.gain = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def statistics(self, truncation: float) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) each at a threshold.

        Between two rows the reference weighs the lower by the fraction and the upper by the rest, the wrong way round, and
        finds the row by a rounded division (0.58 of 51 rows is row 28 with fraction 1). Its images are what we reproduce.

        Args:
            truncation: Threshold in (0, 1].
        """
        last = len(self.running_mean) - 1
        fraction, row = math.modf(truncation / (1.0 / last))
        start = min(int(row), last)
        if fraction == 0.0 or start == last:
            return self.running_mean[start], self.running_var[start]
        mean = self.running_mean[start] * fraction + self.running_mean[start + 1] * (1 - fraction)
        variance = self.running_var[start] * fraction + self.running_var[start + 1] * (1 - fraction)
        return mean, variance

    def forward(self, sample: Tensor, truncation: float) -> Tensor:
        """Normalise (B, C, H, W)."""
        mean, variance = self.statistics(truncation)
        return F.batch_norm(sample, mean, variance, self.gain, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Show the sizes and the settings."""
        return f"{self.running_mean.shape[1]}, num_statistics={len(self.running_mean)}, eps={self.eps}"


class TruncationConditionalNorm2d(ConditionalNorm2d):
    """``ConditionalNorm2d`` over a ``TruncationBatchNorm2d``; arguments as there."""

    def forward(self, sample: Tensor, condition: Condition, truncation: float = FULL_TRUNCATION) -> Tensor:
        """Normalise by the statistics of a threshold and modulate.

        Args:
            sample: (B, C, H, W).
            condition: What the affine layers take, B of it.
            truncation: Threshold in (0, 1].

        Returns:
            (B, C, H, W).
        """
        normalised = self.norm(sample, truncation)
        gain = (1 + self.gain(condition)).to(normalised.dtype)[:, :, None, None]  # (B, C, 1, 1)
        bias = self.bias(condition).to(normalised.dtype)[:, :, None, None]  # (B, C, 1, 1)
        return torch.addcmul(bias, normalised, gain)


@dataclass(frozen=True)
class DeepLayers(GANLayers):
    """``GANLayers`` that can be those of the released generator too.

    Attributes:
        num_statistics: More than 1: every batch norm is a ``TruncationBatchNorm2d`` of that many rows, with ``batch_norm_eps``.
        right_vectors: Spectral norms keep their right vectors, and iterate in train mode only; see ``SpectralNorm``.
    """

    num_statistics: int = 1
    right_vectors: bool = False

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> nn.Module:
        """Convolution that keeps the size."""
        return self._with_right_vectors(super().conv(in_channels, out_channels, kernel_size, bias))

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        """Linear layer."""
        return self._with_right_vectors(super().linear(in_features, out_features, bias))

    def conditional_norm(self, num_channels: int, affine_layer: Callable[[int], nn.Module]) -> nn.Module:
        """Norm with conditional gain and bias; ``affine_layer`` as in ``ConditionalNorm2d``."""
        if self.num_statistics == 1:
            return super().conditional_norm(num_channels, affine_layer)
        table = TruncationBatchNorm2d(num_channels, self.num_statistics, self.batch_norm_eps)
        return TruncationConditionalNorm2d(table, num_channels, affine_layer)

    def output_norm(self, num_channels: int) -> nn.Module:
        """Norm with gain and bias of its own."""
        if self.num_statistics == 1:
            return super().output_norm(num_channels)
        return TruncationBatchNorm2d(num_channels, self.num_statistics, self.batch_norm_eps, affine=True)

    def _with_right_vectors(self, layer: nn.Module) -> nn.Module:
        if self.right_vectors and isinstance(layer, (SpectralNormConv2d, SpectralNormLinear)):
            weight = layer.weight
            options = self._spectral_options()
            layer.spectral_norm = SpectralNorm(len(weight), **options, num_inputs=weight[0].numel())
        return layer
