"""Self-attention GAN (arXiv 1805.08318): residual generator and projection discriminator, spectrally normalised both.

Architecture as in the BigGAN authors' PyTorch code, whose results the parity tests hold these networks to. BigGAN is made of the
same stages: ``generative.gan.residual`` has what the two share.
"""

from __future__ import annotations

from typing import Literal

from diffusers import ModelMixin as ModelMixin  # diffusers loads a class only where its own base is a name of the module
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.gan.residual import ResidualDiscriminator, ResidualGenerator, check_positive
from generative.layers.batch_norm import NormKind
from generative.layers.gan_blocks import GANLayers, WeightInit


class SAGANGenerator(ResidualGenerator):
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
        weight_init: Distribution of the initial weights.
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
        check_positive(z_dim=z_dim)
        self.z_dim = z_dim
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
            first_dim=z_dim,
            shared_embedding_dim=shared_embedding_dim,
            chunk_dim=0,
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
        return self.generate(z, [condition] * len(self.blocks))


class SAGANDiscriminator(ResidualDiscriminator):
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
        weight_init: Distribution of the initial weights.
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
        layers = GANLayers(spectral_norm, spectral_norm_eps, num_singular_values, num_power_iterations)
        self.build(layers, resolution, channels, num_classes, attention_resolutions, wide, output_dim, weight_init)
