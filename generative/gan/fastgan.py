"""FastGAN's generator (arXiv 2101.04775) in the two forms that Projected GAN (arXiv 2111.01007) trains: with classes and without.

Architecture as in the Projected GAN authors' code, whose results the parity tests hold it to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.batch_norm import AffineBatchNorm2d
from generative.layers.checkpointing import run_block
from generative.layers.class_embedding import ClassEmbedding
from generative.layers.fastgan_blocks import FastGANBlock, SkipLayerExcitation
from generative.layers.stored_spectral_norm import StoredSpectralConv2d, StoredSpectralVectorToMap

BOTTOM_SIZE = 4
# Width of the map of each size in multiples of ``channels``, from the official code. Its smallest images have 128 pixels; ours of
# fewer end at the map of their size, with the widths of this same table.
STAGE_WIDTHS: dict[int, float] = {
    4: 16,
    8: 8,
    16: 4,
    32: 2,
    64: 2,
    128: 1,
    256: 0.5,
    512: 0.25,
    1024: 0.125,
}
# Size of a large map -> size of the small one that excites it, 16 times smaller; 1024 has none in the official code.
EXCITATIONS = {64: 4, 128: 8, 256: 16, 512: 32}
INJECTIONS_PER_STAGE = 2
Z_EPS = 1e-8  # added to the mean square of the noise, as in "Progressive Growing of GANs" (arXiv 1710.10196)


def stage_width(size: int, channels: int) -> int:
    """Channels of the map of a size.

    Raises:
        UserError: If none are left.
    """
    width = int(STAGE_WIDTHS[size] * channels)
    if width < 1:
        raise UserError(f"channels={channels} leaves no channel at {size} pixels; give at least {round(1 / STAGE_WIDTHS[size])}")
    return width


class FastGANGenerator(ModelMixin, ConfigMixin):
    """Noise, and class if conditional, to image: upsampling blocks with noise injections, large maps excited by small ones.

    The output is not squashed: images of a trained generator lie in [-1, 1] because the real ones do, and pipelines clamp.

    Args:
        image_size: Height and width of the images, in pixels: a power of two from 8 to 1024. Below 128 is not in the paper.
        z_dim: Z, width of the noise and of the class embedding.
        num_classes: Number of classes of the data.
        channels: Channel multiplier ("ngf").
        conditional: Give the class to every batch norm; otherwise labels are accepted and ignored. The official conditional code
            cannot build 512 and 1024; here they follow the unconditional ones.
        lite: One convolution in a stage and no noise injections.
        image_channels: 3, or 1 for grey images, their one channel repeated.
        cross_replica: Batch statistics over all processes.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        z_dim: int = 256,
        num_classes: int = 1000,
        channels: int = 128,
        conditional: bool = True,
        lite: bool = False,
        image_channels: int = 3,
        cross_replica: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("z_dim", z_dim), ("num_classes", num_classes), ("channels", channels)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        sizes = [size for size in STAGE_WIDTHS if BOTTOM_SIZE < size <= image_size]
        if not sizes or sizes[-1] != image_size:
            known = ", ".join(str(size) for size in STAGE_WIDTHS if size > BOTTOM_SIZE)
            raise UserError(f"image_size must be one of {known}, got {image_size}")
        if image_channels not in (1, 3):
            raise UserError(f"image_channels must be 3, or 1 for grey images, got {image_channels}")
        self.z_dim = z_dim
        self.num_classes = num_classes
        self.image_size = image_size
        self.noise_shapes: tuple[tuple[int, ...], ...] = tuple(
            (1, size, size) for size in sizes for _ in range(0 if lite else INJECTIONS_PER_STAGE)
        )
        width = {size: stage_width(size, channels) for size in (BOTTOM_SIZE, *sizes)}
        self.class_embedding = ClassEmbedding(num_classes, z_dim) if conditional else None
        self.project_in = StoredSpectralVectorToMap(z_dim, 2 * width[BOTTOM_SIZE], BOTTOM_SIZE)
        self.norm_in = AffineBatchNorm2d(2 * width[BOTTOM_SIZE], cross_replica=cross_replica)
        condition_dim = z_dim if conditional else None
        self.blocks = nn.ModuleDict(
            {str(size): FastGANBlock(width[size // 2], width[size], condition_dim, lite, cross_replica) for size in sizes}
        )
        self.excitations = nn.ModuleDict(
            {str(size): SkipLayerExcitation(width[EXCITATIONS[size]], width[size]) for size in sizes if size in EXCITATIONS}
        )
        self.conv_out = StoredSpectralConv2d(width[image_size], image_channels, padding=1, bias=True)
        self.gradient_checkpointing = False

    def check_noise(self, noise: Sequence[Tensor] | None) -> list[Tensor | None]:
        """One entry for each injection, Nones to be drawn.

        Raises:
            UserError: If maps are missing or of other shapes than ``noise_shapes`` says.
        """
        if noise is None:
            return [None] * len(self.noise_shapes)
        shapes = [tuple(image_noise.shape[1:]) for image_noise in noise]
        if shapes != list(self.noise_shapes):
            raise UserError(f"noise must hold maps of shapes {list(self.noise_shapes)} for each image, got {shapes}")
        return list(noise)

    def forward(self, z: Tensor, class_labels: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Generate images.

        Args:
            z: (B, Z) noise, standard normal in training; only its direction matters.
            class_labels: (B,) int64 in [0, num_classes), or (B, num_classes) weights of a mixture of classes.
            noise: Maps to inject, (B, 1, H, W) or (1, 1, H, W) as ``noise_shapes`` lists them. None draws them from torch's
                global generator.

        Returns:
            (B, 3, H, W), not clamped to [-1, 1].

        Raises:
            UserError: If ``noise`` does not fit ``noise_shapes``.
        """
        maps_of_noise = self.check_noise(noise)
        condition = None if self.class_embedding is None else self.class_embedding(class_labels)  # (B, Z)
        direction = z * torch.rsqrt(z.square().mean(1, keepdim=True) + Z_EPS)  # (B, Z), of mean square 1
        hidden = F.glu(self.norm_in(self.project_in(direction)), dim=1)  # (B, C, 4, 4)
        maps = {BOTTOM_SIZE: hidden}
        per_stage = len(maps_of_noise) // len(self.blocks)
        for index, (key, block) in enumerate(self.blocks.items()):
            stage_noise = maps_of_noise[index * per_stage : (index + 1) * per_stage]
            hidden = run_block(self, block, hidden, condition, stage_noise)  # (B, C', 2H, 2W)
            if key in self.excitations:
                hidden = self.excitations[key](maps[EXCITATIONS[int(key)]], hidden)
            maps[int(key)] = hidden
        images = self.conv_out(hidden)  # (B, 1 or 3, H, W)
        return images.expand(-1, 3, -1, -1)  # (B, 3, H, W)
