"""BigGAN-deep (arXiv 1809.11096, appendix B): bottleneck blocks, two to a stage; class embedding and all of z enter every norm.

Architecture as in the BigGAN authors' PyTorch code; with other options the generator is the one released on TF-Hub, as
huggingface/pytorch-pretrained-BigGAN runs it. Parity tests hold both to the originals' results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.gan.residual import (
    DISCRIMINATOR_WIDTHS,
    GENERATOR_WIDTHS,
    ResidualDiscriminator,
    check_attention,
    check_positive,
    check_resolution,
    generator_stages,
)
from generative.layers.batch_norm import NormKind
from generative.layers.checkpointing import run_block
from generative.layers.class_embedding import ClassEmbedding
from generative.layers.deep_blocks import FULL_TRUNCATION, DeepDiscriminatorBlock, DeepGeneratorBlock, DeepLayers
from generative.layers.gan_blocks import GANLayers, WeightInit, initialise_weights
from generative.layers.self_attention import SelfAttention2d, attention_after

BlockWidths = tuple[bool, int, int]
"""Whether a block doubles the size, and its width in and out, in multiples of ``channels``."""


def discriminator_stages(resolution: int) -> list[int]:
    """Resolution after each stage of the discriminator.

    ``DISCRIMINATOR_WIDTHS`` holds one width more than there are stages: here the first is the stem's, and a stage stands between
    two. At 32 to 256 these are the BigGAN authors' numbers for BigGAN-deep too; 512 mirrors the released generator, and 8 and 16
    are ours.
    """
    check_resolution(resolution, dict(DISCRIMINATOR_WIDTHS))
    widths, num_halvings = DISCRIMINATOR_WIDTHS[resolution]
    return [resolution >> min(index + 1, num_halvings) for index in range(len(widths) - 1)]


def generator_blocks(resolution: int, depth: int) -> tuple[BlockWidths, ...]:
    """The generator's blocks: ``depth`` to a stage, the last of which doubles the size and narrows."""
    check_resolution(resolution, dict(GENERATOR_WIDTHS))
    blocks: list[BlockWidths] = []
    for width_in, width_out in pairwise(GENERATOR_WIDTHS[resolution]):
        blocks += [(False, width_in, width_in)] * (depth - 1) + [(True, width_in, width_out)]
    return tuple(blocks)


def check_blocks(blocks: Sequence[BlockWidths], attention_after: Sequence[int]) -> None:
    """Raise ``UserError`` unless each block takes what the one before puts out, and attention follows blocks there are."""
    if not blocks:
        raise UserError("block_widths must name at least one block")
    for index, (before, after) in enumerate(pairwise(blocks)):
        if before[2] != after[1]:
            raise UserError(f"block {index} puts out width {before[2]} but block {index + 1} takes {after[1]}; make them equal")
    wrong = [index for index in attention_after if not -1 <= index < len(blocks)]
    if wrong:
        raise UserError(f"attention_after must number blocks from -1 to {len(blocks) - 1}, got {wrong[0]}")


class BigGANDeepGenerator(ModelMixin, ConfigMixin):
    """Noise and class to image: bottleneck blocks, class-conditional norms, nearest upsampling, self-attention.

    The concatenation [class embedding, z] feeds the first linear layer and, through linear layers, every gain and bias.

    Args:
        resolution: Height and width of the images, in pixels: 8, 16, 32, 64, 128, 256 or 512.
        channels: Channel multiplier; the widths of the stages are multiples of it.
        z_dim: Z, width of the noise.
        num_classes: Number of classes.
        shared_embedding_dim: Width of the class embedding.
        attention_resolutions: Self-attention after the stages that put out these sizes.
        depth: Blocks in each stage.
        bottom_width: Height and width where the first block starts. Other than 4 it makes images of
            ``resolution * bottom_width / 4`` pixels (``attention_resolutions`` keep their nominal meaning).
        norm: Normalisation inside the blocks.
        moving_variance: See ``BatchNorm2d``.
        cross_replica: Batch statistics over all processes.
        batch_norm_eps: Added to the variance in the blocks; the output's norm has 1e-5, unless ``num_statistics`` is more than 1.
        num_statistics: More than 1: batch norm by that many fixed statistics, one per truncation; see ``TruncationBatchNorm2d``.
        spectral_norm: Normalise convolutions and linear layers (the embedding table never is).
        spectral_norm_eps: See ``SpectralNorm``, as the two below.
        num_singular_values: See ``SpectralNorm``.
        num_power_iterations: See ``SpectralNorm``.
        right_vectors: Spectral norm keeps its right vectors, and eval mode does not iterate; see ``SpectralNorm``.
        weight_init: Distribution of the initial weights.
        image_channels: 1 makes grey images, their one channel repeated.
        output_channels: Channels of the last convolution, the first ``image_channels`` of which are the image; None: no more.
        block_widths: Blocks one by one, in place of those of ``resolution`` and ``depth``, which are then not read.
        attention_after: With ``block_widths``: self-attention after the blocks of these numbers (-1: before the first), not by
            ``attention_resolutions``.

    Raises:
        UserError: For options that are out of range or do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        resolution: int = 128,
        channels: int = 128,
        z_dim: int = 128,
        num_classes: int = 1000,
        shared_embedding_dim: int = 128,
        attention_resolutions: tuple[int, ...] = (64,),
        depth: int = 2,
        bottom_width: int = 4,
        norm: NormKind = "batch",
        moving_variance: Literal["unbiased", "biased"] = "unbiased",
        cross_replica: bool = False,
        batch_norm_eps: float = 1e-5,
        num_statistics: int = 1,
        spectral_norm: bool = True,
        spectral_norm_eps: float = 1e-6,
        num_singular_values: int = 1,
        num_power_iterations: int = 1,
        right_vectors: bool = False,
        weight_init: WeightInit = "orthogonal",
        image_channels: Literal[1, 3] = 3,
        output_channels: int | None = None,
        block_widths: tuple[BlockWidths, ...] | None = None,
        attention_after: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        check_positive(channels=channels, z_dim=z_dim, num_classes=num_classes, shared_embedding_dim=shared_embedding_dim)
        check_positive(depth=depth, bottom_width=bottom_width, num_statistics=num_statistics)
        if num_statistics > 1 and norm != "batch":
            raise UserError(f"num_statistics {num_statistics} are those of norm 'batch', got norm {norm!r}")
        if output_channels is not None and output_channels < image_channels:
            raise UserError(f"output_channels must be at least image_channels {image_channels}, got {output_channels}")
        if block_widths is None:
            stages = generator_stages(resolution)
            check_attention(tuple(attention_resolutions), stages)
            attention_after = tuple(depth * i + depth - 1 for i, size in enumerate(stages) if size in attention_resolutions)
            block_widths = generator_blocks(resolution, depth)
        check_blocks(block_widths, attention_after)
        self.z_dim = z_dim
        self.num_classes = num_classes
        self.num_statistics = num_statistics
        self.image_channels = image_channels
        self.bottom_width = bottom_width
        self.image_size = bottom_width << sum(doubles for doubles, _, _ in block_widths)
        widths = [block_widths[0][1] * channels, *(width_out * channels for _, _, width_out in block_widths)]

        layers = DeepLayers(
            spectral_norm=spectral_norm,
            spectral_norm_eps=spectral_norm_eps,
            num_singular_values=num_singular_values,
            num_power_iterations=num_power_iterations,
            norm=norm,
            batch_norm_eps=batch_norm_eps,
            moving_variance=moving_variance,
            cross_replica=cross_replica,
            num_statistics=num_statistics,
            right_vectors=right_vectors,
        )
        condition_dim = shared_embedding_dim + z_dim
        norm_layer = partial(layers.conditional_norm, affine_layer=partial(layers.linear, condition_dim, bias=False))
        self.class_embedding = ClassEmbedding(num_classes, shared_embedding_dim)
        self.linear = layers.linear(condition_dim, widths[0] * bottom_width**2)
        self.blocks = nn.ModuleList(
            DeepGeneratorBlock(width_in, width_out, layers.conv, norm_layer, block[0])
            for (width_in, width_out), block in zip(pairwise(widths), block_widths, strict=True)
        )
        self.attentions = nn.ModuleDict(
            {str(index): SelfAttention2d(widths[index + 1], layers.conv) for index in attention_after}
        )
        self.norm_out = layers.output_norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], output_channels or image_channels)
        self.gradient_checkpointing = False
        initialise_weights(self, weight_init)

    def finish(self, hidden: Tensor, *fixed: float) -> Tensor:
        """Norm and relu of (B, C, H, W), before the last convolution."""
        return F.relu(self.norm_out(hidden, *fixed))

    def forward(self, z: Tensor, class_labels: Tensor, truncation: float | None = None) -> Tensor:
        """Generate images.

        Args:
            z: (B, Z) noise, standard normal in training.
            class_labels: (B,) int64 in [0, num_classes), or (B, num_classes) weights of a mixture of classes.
            truncation: With ``num_statistics`` > 1: threshold in (0, 1] whose batch-norm statistics to take; None: 1.

        Returns:
            (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: If the threshold is out of range, or given to a generator without statistics by threshold.
        """
        condition = torch.cat([self.class_embedding(class_labels), z], dim=1)  # (B, D + Z)
        fixed = self._statistics_of(truncation)
        hidden = self.linear(condition).unflatten(1, (-1, self.bottom_width, self.bottom_width))  # (B, C, w, w)
        if "-1" in self.attentions:
            hidden = run_block(self, self.attentions["-1"], hidden)
        for index, block in enumerate(self.blocks):
            hidden = run_block(self, block, hidden, condition, *fixed)  # (B, C', H, W), the last of a stage (B, C', 2H, 2W)
            if str(index) in self.attentions:
                hidden = run_block(self, self.attentions[str(index)], hidden)
        images = self.conv_out(run_block(self, self.finish, hidden, *fixed))[:, : self.image_channels]  # (B, 1 or 3, H, W)
        return torch.tanh(images).expand(-1, 3, -1, -1)  # (B, 3, H, W)

    def _statistics_of(self, truncation: float | None) -> tuple[float, ...]:
        """What the norms take besides the condition: a threshold, or nothing."""
        if self.num_statistics == 1:
            if truncation is not None:
                raise UserError(
                    f"this generator has one set of batch-norm statistics; leave truncation {truncation} to the noise"
                )
            return ()
        if truncation is None:
            return (FULL_TRUNCATION,)
        if not 0 < truncation <= FULL_TRUNCATION:
            raise UserError(f"truncation must be in (0, {FULL_TRUNCATION:g}], which the statistics cover, got {truncation}")
        return (float(truncation),)


class BigGANDeepDiscriminator(ResidualDiscriminator):
    """Image and class to realness: bottleneck blocks, sum pooling, a linear output plus a class projection (arXiv 1802.05637).

    Args:
        resolution: Height and width of the images, in pixels: 8, 16, 32, 64, 128, 256 or 512.
        channels: Channel multiplier; the widths of the stages are multiples of it.
        num_classes: Number of classes.
        attention_resolutions: Self-attention after the stages that put out these sizes.
        depth: Blocks in each stage, the first of which widens and halves the size.
        output_dim: Number of outputs; the projection is added to each.
        spectral_norm: Normalise every weight.
        spectral_norm_eps: See ``SpectralNorm``, as the two below.
        num_singular_values: See ``SpectralNorm``.
        num_power_iterations: See ``SpectralNorm``.
        weight_init: Distribution of the initial weights.

    Raises:
        UserError: For options that are out of range or do not fit together.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 128,
        channels: int = 128,
        num_classes: int = 1000,
        attention_resolutions: tuple[int, ...] = (64,),
        depth: int = 2,
        output_dim: int = 1,
        spectral_norm: bool = True,
        spectral_norm_eps: float = 1e-6,
        num_singular_values: int = 1,
        num_power_iterations: int = 1,
        weight_init: WeightInit = "orthogonal",
    ) -> None:
        super().__init__()
        check_positive(channels=channels, num_classes=num_classes, depth=depth, output_dim=output_dim)
        stages = discriminator_stages(resolution)
        check_attention(tuple(attention_resolutions), stages)
        self.num_classes = num_classes
        self.image_size = resolution
        self.output_dim = output_dim
        multipliers, num_halvings = DISCRIMINATOR_WIDTHS[resolution]
        widths = [channels * multiplier for multiplier in multipliers]

        layers = GANLayers(spectral_norm, spectral_norm_eps, num_singular_values, num_power_iterations)
        self.conv_in = layers.conv(3, widths[0])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    DeepDiscriminatorBlock(width_out if i else width_in, width_out, layers.conv, stage < num_halvings and i == 0)
                    for i in range(depth)
                )
            )
            for stage, (width_in, width_out) in enumerate(pairwise(widths))
        )
        self.attentions = attention_after(stages, widths[1:], attention_resolutions, layers.conv)
        self.linear = layers.linear(widths[-1], output_dim)
        self.class_embedding = layers.embedding(num_classes, widths[-1])
        self.gradient_checkpointing = False
        initialise_weights(self, weight_init)

    def features(self, images: Tensor) -> Tensor:
        """Relu then summed over positions, (B, D), of images (B, 3, H, W) in [-1, 1]."""
        return super().features(self.conv_in(images))
