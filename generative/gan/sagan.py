"""Self-attention GAN (arXiv 1805.08318): residual generator and projection discriminator, spectrally normalised both.

Architecture as in the BigGAN authors' PyTorch code, whose results the parity tests hold these networks to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.batch_norm import AffineBatchNorm2d, BatchNorm2d, ConditionalNorm2d, InstanceNorm2d, NormKind
from generative.layers.class_embedding import ClassEmbedding
from generative.layers.gan_blocks import DiscriminatorBlock, GeneratorBlock, WeightInit, initialise_weights
from generative.layers.self_attention import ConvLayer, SelfAttention2d
from generative.layers.spectral_norm import SpectralNormConv2d, SpectralNormEmbedding, SpectralNormLinear

# Width of the generator's stages by resolution, in multiples of `channels`: into the first block, then out of each, every one of
# which doubles the size. 32 and up are the BigGAN authors'; 8 and 16 are ours, half as wide at
# full size, where the time goes.
GENERATOR_WIDTHS: dict[int, tuple[int, ...]] = {
    8: (4, 2),
    16: (4, 4, 2),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
# Width out of each of the discriminator's blocks, and how many of the first blocks halve the size.
DISCRIMINATOR_WIDTHS: dict[int, tuple[tuple[int, ...], int]] = {
    8: ((2, 4, 4), 1),
    16: ((2, 4, 4), 2),
    32: ((4, 4, 4, 4), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
    256: ((1, 2, 4, 8, 8, 16, 16), 6),
    512: ((1, 1, 2, 4, 8, 8, 16, 16), 7),
}
BATCH_NORM_MOMENTUM = 0.1  # torch's and the BigGAN authors'


def check_resolution(resolution: int, known: dict[int, object]) -> None:
    """Raise ``UserError`` for a resolution without a layout."""
    if resolution not in known:
        raise UserError(f"resolution must be one of {', '.join(map(str, known))}, got {resolution}")


def check_positive(**sizes: int) -> None:
    """Raise ``UserError`` for a size below 1, named."""
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


def check_attention(attention_resolutions: tuple[int, ...], stages: list[int]) -> None:
    """Raise ``UserError`` if attention is asked for at a size that no block puts out."""
    wrong = [size for size in attention_resolutions if size not in stages]
    if wrong:
        names = ", ".join(map(str, dict.fromkeys(stages)))
        raise UserError(f"attention_resolutions names {wrong[0]}, but the blocks put out {names}")


def generator_stages(resolution: int) -> list[int]:
    """Resolution after each block of the generator, for the usual bottom width of 4."""
    check_resolution(resolution, dict(GENERATOR_WIDTHS))
    num_blocks = len(GENERATOR_WIDTHS[resolution]) - 1
    return [resolution >> (num_blocks - 1 - index) for index in range(num_blocks)]


def discriminator_stages(resolution: int) -> list[int]:
    """Resolution after each block of the discriminator."""
    check_resolution(resolution, dict(DISCRIMINATOR_WIDTHS))
    widths, num_halvings = DISCRIMINATOR_WIDTHS[resolution]
    return [resolution >> min(index + 1, num_halvings) for index in range(len(widths))]


def plain_conv(in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> nn.Module:
    """Convolution without spectral norm that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


class SAGANGenerator(ModelMixin, ConfigMixin):
    """Noise and class to image: class-conditional norms, nearest upsampling, self-attention.

    Args:
        resolution: Height and width of the images, in pixels: 8, 16, 32, 64, 128, 256 or 512.
        channels: Channel multiplier; the widths of the stages are multiples of it.
        z_dim: Z, width of the noise.
        num_classes: Number of classes.
        attention_resolutions: Self-attention after the blocks that put out these sizes.
        bottom_width: Height and width where the first block starts. Other than 4 it makes images of
            ``resolution * bottom_width / 4`` pixels (``attention_resolutions`` keep their nominal meaning).
        shared_embedding_dim: Width of one class embedding that linear layers turn into every gain and bias. None gives each norm
            its own tables of gains and biases (SAGAN).
        norm: Normalisation inside the blocks.
        moving_variance: See ``BatchNorm2d``.
        cross_replica: Batch statistics over all processes.
        batch_norm_eps: Added to the variance in the blocks; the output's norm has 1e-5 always.
        spectral_norm: Normalise convolutions and linear layers (embedding tables never are, here).
        spectral_norm_eps: See ``SpectralNorm``, as the two below.
        num_singular_values: See ``SpectralNorm``.
        num_power_iterations: See ``SpectralNorm``.
        weight_init: Law of the initial weights.
        image_channels: 1 makes grey images, their one channel repeated; three free channels never agree to the last level.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 128,
        channels: int = 64,
        z_dim: int = 128,
        num_classes: int = 1000,
        attention_resolutions: tuple[int, ...] = (64,),
        bottom_width: int = 4,
        shared_embedding_dim: int | None = None,
        norm: NormKind = "batch",
        moving_variance: Literal["unbiased", "biased"] = "unbiased",
        cross_replica: bool = False,
        batch_norm_eps: float = 1e-5,
        spectral_norm: bool = True,
        spectral_norm_eps: float = 1e-8,
        num_singular_values: int = 1,
        num_power_iterations: int = 1,
        weight_init: WeightInit = "xavier",
        image_channels: Literal[1, 3] = 3,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, z_dim=z_dim, num_classes=num_classes, bottom_width=bottom_width)
        stages = generator_stages(resolution)
        check_attention(tuple(attention_resolutions), stages)
        self.z_dim = z_dim
        self.num_classes = num_classes
        self.bottom_width = bottom_width
        self.image_size = bottom_width << len(stages)
        widths = [channels * multiplier for multiplier in GENERATOR_WIDTHS[resolution]]

        options: dict[str, Any] = {
            "eps": spectral_norm_eps,
            "num_singular_values": num_singular_values,
            "num_iterations": num_power_iterations,
        }
        conv: ConvLayer = partial(SpectralNormConv2d, **options) if spectral_norm else plain_conv
        linear: Callable[..., nn.Module] = partial(SpectralNormLinear, **options) if spectral_norm else nn.Linear
        statistics: dict[str, Any] = {"moving_variance": moving_variance, "cross_replica": cross_replica}

        def affine_layer(num_channels: int) -> nn.Module:
            if shared_embedding_dim is None:
                return ClassEmbedding(num_classes, num_channels)
            return linear(shared_embedding_dim, num_channels, bias=False)

        def norm_layer(num_channels: int) -> nn.Module:
            if norm == "batch":
                layer: nn.Module = BatchNorm2d(num_channels, batch_norm_eps, BATCH_NORM_MOMENTUM, **statistics)
            elif norm == "instance":
                layer = InstanceNorm2d(num_channels, batch_norm_eps, BATCH_NORM_MOMENTUM)
            else:
                layer = nn.Identity()
            return ConditionalNorm2d(layer, num_channels, affine_layer)

        self.class_embedding = None if shared_embedding_dim is None else ClassEmbedding(num_classes, shared_embedding_dim)
        self.linear = linear(z_dim, widths[0] * bottom_width**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(width_in, width_out, conv, norm_layer)
            for width_in, width_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attentions = nn.ModuleDict(
            {str(i): SelfAttention2d(widths[i + 1], conv) for i, size in enumerate(stages) if size in attention_resolutions}
        )
        self.norm_out = AffineBatchNorm2d(widths[-1], **statistics)
        self.conv_out = conv(widths[-1], image_channels)
        initialise_weights(self, weight_init)

    def forward(self, z: Tensor, class_labels: Tensor) -> Tensor:
        """Generate images.

        Args:
            z: (B, Z) noise, standard normal in training.
            class_labels: (B,) int64 in [0, num_classes), or (B, num_classes) weights of a mixture of classes.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        condition = class_labels if self.class_embedding is None else self.class_embedding(class_labels)  # (B,) or (B, D)
        hidden = self.linear(z).unflatten(1, (-1, self.bottom_width, self.bottom_width))  # (B, C, w, w)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, condition)  # (B, C', 2H, 2W)
            if str(index) in self.attentions:
                hidden = self.attentions[str(index)](hidden)
        images = torch.tanh(self.conv_out(F.relu(self.norm_out(hidden))))  # (B, 1 or 3, H, W)
        return images.expand(-1, 3, -1, -1)  # (B, 3, H, W)


class SAGANDiscriminator(ModelMixin, ConfigMixin):
    """Image and class to realness: residual blocks, sum pooling, a linear output plus a class projection (arXiv 1802.05637).

    Args:
        resolution: Height and width of the images, in pixels: 8, 16, 32, 64, 128, 256 or 512.
        channels: Channel multiplier; the widths of the blocks are multiples of it.
        num_classes: Number of classes.
        attention_resolutions: Self-attention after the blocks that put out these sizes.
        wide: Whether a block widens at its first convolution (SAGAN, BigGAN) or at its second (SN-GAN).
        output_dim: Number of outputs; the projection is added to each.
        spectral_norm: Normalise every weight.
        spectral_norm_eps: See ``SpectralNorm``, as the two below.
        num_singular_values: See ``SpectralNorm``.
        num_power_iterations: See ``SpectralNorm``.
        weight_init: Law of the initial weights.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 128,
        channels: int = 64,
        num_classes: int = 1000,
        attention_resolutions: tuple[int, ...] = (64,),
        wide: bool = True,
        output_dim: int = 1,
        spectral_norm: bool = True,
        spectral_norm_eps: float = 1e-8,
        num_singular_values: int = 1,
        num_power_iterations: int = 1,
        weight_init: WeightInit = "xavier",
    ) -> None:
        super().__init__()
        check_positive(channels=channels, num_classes=num_classes, output_dim=output_dim)
        stages = discriminator_stages(resolution)
        check_attention(tuple(attention_resolutions), stages)
        self.num_classes = num_classes
        self.image_size = resolution
        self.output_dim = output_dim
        multipliers, num_halvings = DISCRIMINATOR_WIDTHS[resolution]
        widths = [3, *(channels * multiplier for multiplier in multipliers)]

        options: dict[str, Any] = {
            "eps": spectral_norm_eps,
            "num_singular_values": num_singular_values,
            "num_iterations": num_power_iterations,
        }
        conv: ConvLayer = partial(SpectralNormConv2d, **options) if spectral_norm else plain_conv
        linear: Callable[..., nn.Module] = partial(SpectralNormLinear, **options) if spectral_norm else nn.Linear
        embedding: Callable[..., nn.Module] = partial(SpectralNormEmbedding, **options) if spectral_norm else nn.Embedding

        self.blocks = nn.ModuleList(
            DiscriminatorBlock(widths[i], widths[i + 1], conv, wide, preactivation=i > 0, downsample=i < num_halvings)
            for i in range(len(stages))
        )
        self.attentions = nn.ModuleDict(
            {str(i): SelfAttention2d(widths[i + 1], conv) for i, size in enumerate(stages) if size in attention_resolutions}
        )
        self.linear = linear(widths[-1], output_dim)
        self.class_embedding = embedding(num_classes, widths[-1])
        initialise_weights(self, weight_init)

    def features(self, images: Tensor) -> Tensor:
        """Features that the output and the projection read.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, D), relu then summed over positions.
        """
        hidden = images
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)  # (B, C', H/2, W/2), later ones (B, C', H, W)
            if str(index) in self.attentions:
                hidden = self.attentions[str(index)](hidden)
        return F.relu(hidden).sum((2, 3))  # (B, D)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        """Judge images.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            class_labels: (B,) int64 in [0, num_classes).

        Returns:
            (B,) logits, higher is more real; (B, output_dim) if that is more than 1.
        """
        features = self.features(images)  # (B, D)
        projection = (self.class_embedding(class_labels) * features).sum(1, keepdim=True)  # (B, 1)
        logits = self.linear(features) + projection  # (B, output_dim)
        return logits[:, 0] if self.output_dim == 1 else logits
