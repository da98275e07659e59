"""BigGAN (arXiv 1809.11096): SAGAN's stages with a class embedding that all norms share and noise that enters every block.

Architecture as in the BigGAN authors' PyTorch code, whose results the parity tests hold these networks to. The stages are in
``generative.gan.residual``; BigGAN-deep has networks of its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import ModelMixin as ModelMixin  # diffusers loads a class only where its own base is a name of the module
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.gan.residual import ResidualDiscriminator, ResidualGenerator, check_positive, generator_stages
from generative.layers.batch_norm import NormKind
from generative.layers.gan_blocks import GANLayers, WeightInit


def chunk_width(z_dim: int, resolution: int) -> int:
    """Width of one chunk of hierarchical noise: one for the first linear layer and one for each block.

    Args:
        z_dim: Width asked for, which is rounded down to a whole number of equal chunks.
        resolution: Resolution of the generator, which says how many blocks it has.

    Raises:
        UserError: If the noise is narrower than there are chunks.
    """
    num_chunks = len(generator_stages(resolution)) + 1
    if z_dim < num_chunks:
        raise UserError(
            f"z_dim must be at least {num_chunks} for hierarchical noise at resolution {resolution} "
            f"(a chunk for the first layer and for each block), got {z_dim}"
        )
    return z_dim // num_chunks


class BigGANGenerator(ResidualGenerator):
    """Noise and class to image: hierarchical noise, shared class embedding, class-conditional norms, self-attention.

    The noise is split into equal chunks. The first feeds the linear layer; each of the others stands behind the class embedding
    in the condition [embedding, chunk] of its block, from which linear layers make every gain and bias (arXiv 1809.11096, figure
    15 and appendix B).

    Args:
        resolution: Height and width of the images, in pixels: 8, 16, 32, 64, 128, 256 or 512.
        channels: Channel multiplier; the widths of the stages are multiples of it.
        z_dim: Width of the noise. Hierarchical noise rounds it down to a multiple of the number of blocks + 1; the attribute
            ``z_dim`` says what ``forward`` takes.
        num_classes: Number of classes.
        attention_resolutions: Self-attention after the blocks that put out these sizes.
        hierarchical: Give each block a chunk of the noise; else all of it enters the first layer.
        shared_embedding_dim: Width of one class embedding that linear layers turn into every gain and bias. None gives each norm
            its own tables of gains and biases (SAGAN), which cannot take chunks of noise.
        bottom_width: Height and width where the first block starts. Other than 4 it makes images of
            ``resolution * bottom_width / 4`` pixels (``attention_resolutions`` keep their nominal meaning).
        norm: Normalisation inside the blocks.
        moving_variance: See ``BatchNorm2d``.
        cross_replica: Batch statistics over all processes.
        batch_norm_eps: Added to the variance in the blocks; the output's norm has 1e-5 always.
        spectral_norm: Normalise convolutions and linear layers (embedding tables never are, here).
        spectral_norm_eps: See ``SpectralNorm``, as the two below.
        num_singular_values: See ``SpectralNorm``.
        num_power_iterations: See ``SpectralNorm``.
        weight_init: Distribution of the initial weights.
        image_channels: 1 makes grey images, their one channel repeated.

    Raises:
        UserError: For options that are out of range or do not fit together.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 128,
        channels: int = 96,
        z_dim: int = 120,
        num_classes: int = 1000,
        attention_resolutions: tuple[int, ...] = (64,),
        hierarchical: bool = True,
        shared_embedding_dim: int | None = 128,
        bottom_width: int = 4,
        norm: NormKind = "batch",
        moving_variance: Literal["unbiased", "biased"] = "unbiased",
        cross_replica: bool = False,
        batch_norm_eps: float = 1e-5,
        spectral_norm: bool = True,
        spectral_norm_eps: float = 1e-6,
        num_singular_values: int = 1,
        num_power_iterations: int = 1,
        weight_init: WeightInit = "orthogonal",
        image_channels: Literal[1, 3] = 3,
    ) -> None:
        super().__init__()
        check_positive(z_dim=z_dim)
        if hierarchical and shared_embedding_dim is None:
            raise UserError(
                "hierarchical noise needs a shared class embedding to stand behind, got shared_embedding_dim None; "
                "give its width or set hierarchical to false"
            )
        self.chunk_dim = chunk_width(z_dim, resolution) if hierarchical else 0
        self.z_dim = self.chunk_dim * (len(generator_stages(resolution)) + 1) if hierarchical else z_dim
        layers = GANLayers(
            spectral_norm=spectral_norm,
            spectral_norm_eps=spectral_norm_eps,
            num_singular_values=num_singular_values,
            num_power_iterations=num_power_iterations,
            norm=norm,
            batch_norm_eps=batch_norm_eps,
            moving_variance=moving_variance,
            cross_replica=cross_replica,
        )
        self.build(
            layers,
            resolution,
            channels,
            num_classes,
            attention_resolutions,
            bottom_width,
            first_dim=self.chunk_dim if hierarchical else z_dim,
            shared_embedding_dim=shared_embedding_dim,
            chunk_dim=self.chunk_dim,
            image_channels=image_channels,
            weight_init=weight_init,
        )

    def forward(self, z: Tensor, class_labels: Tensor) -> Tensor:
        """Generate images.

        Args:
            z: (B, Z) noise, standard normal in training.
            class_labels: (B,) int64 in [0, num_classes), or (B, num_classes) weights of a mixture of classes.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        condition = class_labels if self.class_embedding is None else self.class_embedding(class_labels)  # (B,) or (B, D)
        if self.chunk_dim == 0:
            return self.generate(z, [condition] * len(self.blocks))
        first, *rest = z.split(self.chunk_dim, dim=1)  # (B, K) each
        conditions = [torch.cat([condition, chunk.to(condition.dtype)], dim=1) for chunk in rest]  # (B, D + K) each
        return self.generate(first, conditions)


class BigGANDiscriminator(ResidualDiscriminator):
    """Image and class to realness: SAGAN's discriminator, wider and with orthogonal initial weights.

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
        weight_init: Distribution of the initial weights.

    Raises:
        UserError: For options that are out of range.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 128,
        channels: int = 96,
        num_classes: int = 1000,
        attention_resolutions: tuple[int, ...] = (64,),
        wide: bool = True,
        output_dim: int = 1,
        spectral_norm: bool = True,
        spectral_norm_eps: float = 1e-6,
        num_singular_values: int = 1,
        num_power_iterations: int = 1,
        weight_init: WeightInit = "orthogonal",
    ) -> None:
        super().__init__()
        layers = GANLayers(spectral_norm, spectral_norm_eps, num_singular_values, num_power_iterations)
        self.build(layers, resolution, channels, num_classes, attention_resolutions, wide, output_dim, weight_init)
