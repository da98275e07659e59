"""Stages, widths and forward passes that SAGAN's and BigGAN's networks share (arXiv 1805.08318, 1809.11096).

Architecture as in the BigGAN authors' PyTorch code (``G_arch`` and ``D_arch`` of BigGAN.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.checkpointing import run_block
from generative.layers.class_embedding import ClassEmbedding
from generative.layers.gan_blocks import DiscriminatorBlock, GANLayers, GeneratorBlock, WeightInit, initialise_weights
from generative.layers.projection_head import projection_logits, sum_pool
from generative.layers.self_attention import attention_after

# Widths of generator stages by resolution, in multiples of ``channels``: into the first block, then out of each, every one of
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


class ResidualGenerator(ModelMixin, ConfigMixin):
    """What SAGAN's and BigGAN's generators share: blocks with attention between them, and the layers before and after."""

    _supports_gradient_checkpointing = True

    def build(
        self,
        layers: GANLayers,
        resolution: int,
        channels: int,
        num_classes: int,
        attention_resolutions: Sequence[int],
        bottom_width: int,
        first_dim: int,
        shared_embedding_dim: int | None,
        chunk_dim: int,
        image_channels: int,
        weight_init: WeightInit,
    ) -> None:
        """Make the layers. Arguments as ``SAGANGenerator``'s, and:

        Args:
            layers: Makes the layers.
            first_dim: Width of the noise that enters the first linear layer.
            chunk_dim: Width of the noise that stands behind the class embedding in the blocks' conditions; 0 for none.

        Raises:
            UserError: If an option is out of range.
        """
        check_positive(channels=channels, num_classes=num_classes, bottom_width=bottom_width)
        if shared_embedding_dim is not None:
            check_positive(shared_embedding_dim=shared_embedding_dim)
        stages = generator_stages(resolution)
        check_attention(tuple(attention_resolutions), stages)
        self.num_classes = num_classes
        self.bottom_width = bottom_width
        self.image_size = bottom_width << len(stages)
        widths = [channels * multiplier for multiplier in GENERATOR_WIDTHS[resolution]]

        def affine_layer(num_channels: int) -> nn.Module:
            if shared_embedding_dim is None:
                return ClassEmbedding(num_classes, num_channels)
            return layers.linear(shared_embedding_dim + chunk_dim, num_channels, bias=False)

        def norm_layer(num_channels: int) -> nn.Module:
            return layers.conditional_norm(num_channels, affine_layer)

        self.class_embedding = None if shared_embedding_dim is None else ClassEmbedding(num_classes, shared_embedding_dim)
        self.linear = layers.linear(first_dim, widths[0] * bottom_width**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(width_in, width_out, layers.conv, norm_layer)
            for width_in, width_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attentions = attention_after(stages, widths[1:], attention_resolutions, layers.conv)
        self.norm_out = layers.output_norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], image_channels)
        self.gradient_checkpointing = False
        initialise_weights(self, weight_init)

    def finish(self, hidden: Tensor) -> Tensor:
        """Norm and relu of (B, C, H, W), before the last convolution."""
        return F.relu(self.norm_out(hidden), inplace=True)

    def generate(self, first: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        """Run the stages.

        Args:
            first: (B, first_dim) noise.
            conditions: What the norms of each block take.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        hidden = self.linear(first).unflatten(1, (-1, self.bottom_width, self.bottom_width))  # (B, C, w, w)
        for index, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True)):
            hidden = run_block(self, block, hidden, condition)  # (B, C', 2H, 2W)
            if str(index) in self.attentions:
                hidden = run_block(self, self.attentions[str(index)], hidden)
        images = torch.tanh(self.conv_out(run_block(self, self.finish, hidden)))  # (B, 1 or 3, H, W)
        return images.expand(-1, 3, -1, -1)  # (B, 3, H, W)


class ResidualDiscriminator(ModelMixin, ConfigMixin):
    """What SAGAN's and BigGAN's discriminators share, which is all but the defaults."""

    _supports_gradient_checkpointing = True

    def build(
        self,
        layers: GANLayers,
        resolution: int,
        channels: int,
        num_classes: int,
        attention_resolutions: Sequence[int],
        wide: bool,
        output_dim: int,
        weight_init: WeightInit,
    ) -> None:
        """Make the layers. Arguments as ``SAGANDiscriminator``'s, and ``layers``, which makes them.

        Raises:
            UserError: If an option is out of range.
        """
        check_positive(channels=channels, num_classes=num_classes, output_dim=output_dim)
        stages = discriminator_stages(resolution)
        check_attention(tuple(attention_resolutions), stages)
        self.num_classes = num_classes
        self.image_size = resolution
        self.output_dim = output_dim
        multipliers, num_halvings = DISCRIMINATOR_WIDTHS[resolution]
        widths = [3, *(channels * multiplier for multiplier in multipliers)]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(widths[i], widths[i + 1], layers.conv, wide, preactivation=i > 0, downsample=i < num_halvings)
            for i in range(len(stages))
        )
        self.attentions = attention_after(stages, widths[1:], attention_resolutions, layers.conv)
        self.linear = layers.linear(widths[-1], output_dim)
        self.class_embedding = layers.embedding(num_classes, widths[-1])
        self.gradient_checkpointing = False
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
            hidden = run_block(self, block, hidden)  # (B, C', H/2, W/2), later ones (B, C', H, W)
            if str(index) in self.attentions:
                hidden = run_block(self, self.attentions[str(index)], hidden)
        return sum_pool(F.relu(hidden))  # (B, D)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        """Compute the realness logits of images.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            class_labels: (B,) int64 in [0, num_classes).

        Returns:
            (B,) logits, higher is more real; (B, output_dim) if that is more than 1.
        """
        logits = projection_logits(self.features(images), class_labels, self.linear, self.class_embedding)  # (B, output_dim)
        return logits[:, 0] if self.output_dim == 1 else logits
