"""Residual blocks of the SAGAN and BigGAN line (arXiv 1805.08318, 1809.11096), their layers, and how weights start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.batch_norm import AffineBatchNorm2d, BatchNorm2d, Condition, ConditionalNorm2d, InstanceNorm2d, NormKind
from generative.layers.resample_conv import conv_downsample, upsample_conv
from generative.layers.self_attention import ConvLayer
from generative.layers.spectral_norm import SpectralNormConv2d, SpectralNormEmbedding, SpectralNormLinear

WeightInit = Literal["xavier", "orthogonal", "normal"]
NORMAL_INIT_STD = 0.02  # DCGAN (arXiv 1511.06434), "N02" in BigGAN-PyTorch
WEIGHT_INITS: dict[WeightInit, Callable[[Tensor], Tensor]] = {
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "normal": partial(nn.init.normal_, std=NORMAL_INIT_STD),
}
MovingVariance = Literal["unbiased", "biased"]
BATCH_NORM_MOMENTUM = 0.1  # torch's and the BigGAN authors'


def plain_conv(in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> nn.Module:
    """Convolution without spectral norm that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


@dataclass(frozen=True)
class GANLayers:
    """Makes the layers of one network, whose options are said once.

    Attributes:
        spectral_norm: Whether convolutions, linear layers and tables are spectrally normalised.
        spectral_norm_eps: See ``SpectralNorm``, as the two below.
        num_singular_values: See ``SpectralNorm``.
        num_power_iterations: See ``SpectralNorm``.
        norm: Kind of the conditional norms.
        batch_norm_eps: Added to the variance in the conditional norms; the output's norm has 1e-5 always.
        moving_variance: See ``BatchNorm2d``.
        cross_replica: Batch statistics over all processes.

    Raises:
        UserError: If there is no such norm or moving variance.
    """

    spectral_norm: bool = True
    spectral_norm_eps: float = 1e-8
    num_singular_values: int = 1
    num_power_iterations: int = 1
    norm: NormKind = "batch"
    batch_norm_eps: float = 1e-5
    moving_variance: MovingVariance = "unbiased"
    cross_replica: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("norm", self.norm, get_args(NormKind)),
            ("moving_variance", self.moving_variance, get_args(MovingVariance)),
        ):
            if value not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> nn.Module:
        """Convolution that keeps the size."""
        if not self.spectral_norm:
            return plain_conv(in_channels, out_channels, kernel_size, bias)
        return SpectralNormConv2d(in_channels, out_channels, kernel_size, bias, **self._spectral_options())

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        """Linear layer."""
        if not self.spectral_norm:
            return nn.Linear(in_features, out_features, bias)
        return SpectralNormLinear(in_features, out_features, bias, **self._spectral_options())

    def embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """Embedding table; generators use ``ClassEmbedding`` instead, which is never normalised."""
        if not self.spectral_norm:
            return nn.Embedding(num_embeddings, embedding_dim)
        return SpectralNormEmbedding(num_embeddings, embedding_dim, **self._spectral_options())

    def conditional_norm(self, num_channels: int, affine_layer: Callable[[int], nn.Module]) -> nn.Module:
        """Norm of the kind asked for with conditional gain and bias; ``affine_layer`` as in ``ConditionalNorm2d``."""
        if self.norm == "batch":
            layer: nn.Module = BatchNorm2d(num_channels, self.batch_norm_eps, BATCH_NORM_MOMENTUM, **self._statistics_options())
        elif self.norm == "instance":
            layer = InstanceNorm2d(num_channels, self.batch_norm_eps, BATCH_NORM_MOMENTUM)
        else:
            layer = nn.Identity()
        return ConditionalNorm2d(layer, num_channels, affine_layer)

    def output_norm(self, num_channels: int) -> nn.Module:
        """Batch norm with gain and bias of its own, before the convolution that makes the image."""
        return AffineBatchNorm2d(num_channels, **self._statistics_options())

    def _spectral_options(self) -> dict[str, Any]:
        return {
            "eps": self.spectral_norm_eps,
            "num_singular_values": self.num_singular_values,
            "num_iterations": self.num_power_iterations,
        }

    def _statistics_options(self) -> dict[str, Any]:
        return {"moving_variance": self.moving_variance, "cross_replica": self.cross_replica}


class GeneratorBlock(nn.Module):
    """Conditional norm, relu, upsample x2, conv, conditional norm, relu, conv; with a shortcut.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        conv_layer: Makes the convolutions.
        norm_layer: Called with a number of channels, makes a conditional norm ``(sample, condition) -> sample``.
        upsample: Double height and width (nearest neighbour).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv_layer: ConvLayer,
        norm_layer: Callable[[int], nn.Module],
        upsample: bool = True,
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.norm1 = norm_layer(in_channels)
        self.conv1 = conv_layer(in_channels, out_channels)
        self.norm2 = norm_layer(out_channels)
        self.conv2 = conv_layer(out_channels, out_channels)
        has_conv_shortcut = upsample or in_channels != out_channels
        self.shortcut = conv_layer(in_channels, out_channels, kernel_size=1) if has_conv_shortcut else nn.Identity()

    def forward(self, sample: Tensor, condition: Condition) -> Tensor:
        """Run the block.

        Args:
            sample: (B, C, H, W).
            condition: What the norms take.

        Returns:
            (B, C', 2H, 2W), or (B, C', H, W) without upsampling.
        """
        hidden = F.relu(self.norm1(sample, condition), inplace=True)
        hidden = upsample_conv(hidden, self.conv1) if self.upsample else self.conv1(hidden)  # (B, C', 2H, 2W)
        hidden = self.conv2(F.relu(self.norm2(hidden, condition), inplace=True))
        # A 1x1 convolution commutes with nearest upsampling: run it on the small map, at a quarter of the cost.
        shortcut = self.shortcut(sample)  # (B, C', H, W)
        if self.upsample:
            shortcut = F.interpolate(shortcut, scale_factor=2)  # (B, C', 2H, 2W)
        return hidden + shortcut


class DiscriminatorBlock(nn.Module):
    """Relu, conv, relu, conv, average pool; with a shortcut that sees the sample before the relu.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        conv_layer: Makes the convolutions.
        wide: Hidden channels as many as out (SAGAN, BigGAN), else as in (SN-GAN).
        preactivation: Start with a relu; not for the block that sees images.
        downsample: Halve height and width (average pool).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv_layer: ConvLayer,
        wide: bool = True,
        preactivation: bool = True,
        downsample: bool = True,
    ) -> None:
        super().__init__()
        self.preactivation = preactivation
        self.downsample = downsample
        hidden_channels = out_channels if wide else in_channels
        self.conv1 = conv_layer(in_channels, hidden_channels)
        self.conv2 = conv_layer(hidden_channels, out_channels)
        has_conv_shortcut = downsample or in_channels != out_channels
        self.shortcut = conv_layer(in_channels, out_channels, kernel_size=1) if has_conv_shortcut else nn.Identity()

    def forward(self, sample: Tensor) -> Tensor:
        """Run the block.

        Args:
            sample: (B, C, H, W).

        Returns:
            (B, C', H/2, W/2), or (B, C', H, W) without downsampling.
        """
        hidden = F.relu(sample) if self.preactivation else sample
        hidden = F.relu(self.conv1(hidden), inplace=True)  # (B, C', H, W)
        if not self.downsample:
            return self.conv2(hidden) + self.shortcut(sample)
        # A 1x1 convolution commutes with average pooling, so pooling first serves every block and is cheaper.
        return conv_downsample(hidden, self.conv2) + self.shortcut(F.avg_pool2d(sample, 2))  # (B, C', H/2, W/2)


def initialise_weights(network: nn.Module, init: WeightInit | None, zero_biases: bool = False, optional: bool = False) -> None:
    """Draw the weights of every convolution, linear layer and embedding table anew.

    Args:
        network: Changed in place.
        init: ``xavier`` uniform (SAGAN), ``orthogonal`` (BigGAN) or ``normal`` with standard deviation 0.02.
        zero_biases: Set the biases of these layers to 0 (PyTorch-StudioGAN), else they keep torch's default.
        optional: Take ``init`` None too, which keeps all that torch drew.

    Raises:
        UserError: If there is no such initialisation.
    """
    if init is None and optional:
        return
    if init not in WEIGHT_INITS:
        choices = ", ".join(WEIGHT_INITS) + (" or null" if optional else "")
        raise UserError(f"weight_init must be one of {choices}, got {init!r}")
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)):
            WEIGHT_INITS[init](module.weight)
            if zero_biases and not isinstance(module, nn.Embedding) and module.bias is not None:
                nn.init.zeros_(module.bias)
