"""Deep convolutional GAN (arXiv 1511.06434) as PyTorch-StudioGAN builds it: its ``deep_conv`` networks, without residual blocks.

The networks of the WGAN-GP, DCGAN with two learning rates, and AM-GAN configurations here. The released code hard-codes 32-pixel
images and their widths; here the widths are arguments, and the number of them sets the size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.gan.dcgan_layers import Activation, DCGANLayers, make_activation
from generative.gan.residual import check_attention, check_positive
from generative.layers.batch_norm import AffineBatchNorm2d, BatchNorm2d, ConditionalNorm2d
from generative.layers.checkpointing import run_block
from generative.layers.gan_blocks import WeightInit, initialise_weights
from generative.layers.projection_head import projection_logits, sum_pool
from generative.layers.self_attention import attention_after

Conditioning = Literal["none", "projection", "class_output"]

BOTTOM_SIZE = 4
"""Height and width where the generator starts, in pixels (arXiv 1511.06434, figure 1)."""
BATCH_NORM_EPS = 1e-4
"""PyTorch-StudioGAN's, ten times torch's."""


class DCGANGenerator(ModelMixin, ConfigMixin):
    """Noise and class to image: a linear layer to 4x4, transposed convolutions with batch norm, a convolution, tanh.

    Images have ``4 * 2^(number of widths - 1)`` pixels a side: two widths make 8-pixel images, four make 32, six make 128.

    Args:
        z_dim: Z, width of the noise.
        num_classes: Number of classes of the data.
        widths: Channels at 4x4 and after each block, every one of which doubles the size. The default is the official one.
        class_conditional: Gains and biases of batch norm depend on the class (officially ``cBN``); else labels are ignored.
        attention_resolutions: Self-attention after the blocks that put out these sizes.
        activation: After each batch norm; ``leaky_relu`` has slope 0.1.
        spectral_norm: Normalise every weight, by the vectors of the last training step in eval mode.
        batch_norm_eps: Added to the variance.
        batch_norm_momentum: Weight of the newest batch in the moving averages.
        cross_replica: Batch statistics over all processes.
        weight_init: Distribution of the initial weights; None for torch's own.
        image_channels: 1 makes grey images, their one channel repeated.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        z_dim: int = 128,
        num_classes: int = 10,
        widths: tuple[int, ...] = (512, 256, 128, 64),
        class_conditional: bool = True,
        attention_resolutions: tuple[int, ...] = (),
        activation: Activation = "relu",
        spectral_norm: bool = False,
        batch_norm_eps: float = BATCH_NORM_EPS,
        batch_norm_momentum: float = 0.1,
        cross_replica: bool = False,
        weight_init: WeightInit | None = "orthogonal",
        image_channels: Literal[1, 3] = 3,
    ) -> None:
        super().__init__()
        check_positive(z_dim=z_dim, num_classes=num_classes, **{f"widths[{i}]": width for i, width in enumerate(widths)})
        if len(widths) < 2:
            raise UserError(f"widths needs two numbers at least, channels at 4x4 and after a block, got {tuple(widths)}")
        if image_channels not in (1, 3):
            raise UserError(f"image_channels must be 1 or 3, got {image_channels}")
        self.z_dim = z_dim
        self.num_classes = num_classes
        self.image_size = BOTTOM_SIZE << (len(widths) - 1)
        self.class_conditional = class_conditional
        stages = [BOTTOM_SIZE << (index + 1) for index in range(len(widths) - 1)]
        check_attention(tuple(attention_resolutions), stages)
        layers = DCGANLayers(spectral_norm)
        statistics: dict[str, Any] = {
            "eps": batch_norm_eps,
            "momentum": batch_norm_momentum,
            "cross_replica": cross_replica,
        }

        def norm_layer(num_channels: int) -> nn.Module:
            if not class_conditional:
                return AffineBatchNorm2d(num_channels, **statistics)
            table = partial(layers.class_embedding, num_classes)
            return ConditionalNorm2d(BatchNorm2d(num_channels, **statistics), num_channels, table)

        self.activate = make_activation(activation)
        self.linear = layers.linear(z_dim, widths[0] * BOTTOM_SIZE**2)
        self.convs = nn.ModuleList(layers.up_conv(widths[i], widths[i + 1]) for i in range(len(stages)))
        self.norms = nn.ModuleList(norm_layer(width) for width in widths[1:])
        self.attentions = attention_after(stages, widths[1:], attention_resolutions, layers.conv)
        self.conv_out = layers.conv(widths[-1], image_channels)
        self.gradient_checkpointing = False
        initialise_weights(self, weight_init, zero_biases=True, optional=True)

    def run_stage(self, index: int, hidden: Tensor, class_labels: Tensor) -> Tensor:
        """Transposed convolution, norm and activation of one stage: (B, C, H, W) to (B, C', 2H, 2W)."""
        hidden, norm = self.convs[index](hidden), self.norms[index]
        return self.activate(norm(hidden, class_labels) if self.class_conditional else norm(hidden))

    def forward(self, z: Tensor, class_labels: Tensor) -> Tensor:
        """Generate images.

        Args:
            z: (B, Z) noise, standard normal in training.
            class_labels: (B,) int64 in [0, num_classes), or (B, num_classes) weights of a mixture of classes.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        hidden = self.linear(z).unflatten(1, (-1, BOTTOM_SIZE, BOTTOM_SIZE))  # (B, C, 4, 4)
        for index in range(len(self.convs)):
            hidden = run_block(self, self.run_stage, index, hidden, class_labels)  # (B, C', 2H, 2W)
            if str(index) in self.attentions:
                hidden = run_block(self, self.attentions[str(index)], hidden)
        return torch.tanh(self.conv_out(hidden)).expand(-1, 3, -1, -1)  # (B, 3, H, W)


class DCGANDiscriminator(ModelMixin, ConfigMixin):
    """Image and class to realness: pairs of a 3x3 and a halving 4x4 convolution, a last convolution, sum pooling, outputs.

    Args:
        image_size: Height and width of the images, in pixels, at least ``2^(number of widths)``.
        num_classes: Number of classes of the data.
        widths: Channels out of each block, every one of which halves the size. The default is the official one.
        last_width: D, channels of the last convolution and width of the features.
        conditioning: ``projection`` adds the features' product with a class embedding (arXiv 1802.05637; officially ``PD``);
            ``class_output`` has one output per class and takes the label's (officially ``MD``); ``none`` ignores labels.
        output_dim: Number of outputs unless ``class_output``; None for ``num_classes + 1``, as AM-GAN wants with no conditioning.
        attention_resolutions: Self-attention after the blocks that put out these sizes.
        activation: After each convolution; ``leaky_relu`` has slope 0.1.
        spectral_norm: Normalise every weight, by the vectors of the last training step in eval mode.
        batch_norm: After each convolution. Officially where there is no spectral norm; the paper of WGAN-GP has none in the
            critic, since its penalty is on single images (arXiv 1704.00028, section 4).
        batch_norm_eps: Added to the variance.
        batch_norm_momentum: Weight of the newest batch in the moving averages.
        weight_init: Distribution of the initial weights; None for torch's own.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        num_classes: int = 10,
        widths: tuple[int, ...] = (64, 128, 256),
        last_width: int = 512,
        conditioning: Conditioning = "projection",
        output_dim: int | None = 1,
        attention_resolutions: tuple[int, ...] = (),
        activation: Activation = "relu",
        spectral_norm: bool = False,
        batch_norm: bool = True,
        batch_norm_eps: float = BATCH_NORM_EPS,
        batch_norm_momentum: float = 0.1,
        weight_init: WeightInit | None = "orthogonal",
    ) -> None:
        super().__init__()
        sizes = {f"widths[{i}]": width for i, width in enumerate(widths)}
        output_dim = num_classes + 1 if output_dim is None else output_dim
        check_positive(num_classes=num_classes, last_width=last_width, output_dim=output_dim, **sizes)
        if not widths or image_size >> len(widths) < 1:
            raise UserError(f"image_size must be at least 2^(number of widths), got {image_size} with {len(widths)} widths")
        if conditioning not in ("none", "projection", "class_output"):
            raise UserError(f"conditioning must be none, projection or class_output, got {conditioning!r}")
        if conditioning == "class_output" and output_dim != 1:
            raise UserError(f"conditioning class_output has one output per class; leave output_dim at 1, got {output_dim}")
        # At one pixel there is nothing to attend to, and the keys could not be pooled.
        stages = [image_size >> (index + 1) for index in range(len(widths))]
        check_attention(tuple(attention_resolutions), [size for size in stages if size > 1])
        self.num_classes = num_classes
        self.image_size = image_size
        self.output_dim = output_dim
        self.conditioning = conditioning
        layers = DCGANLayers(spectral_norm)

        def norm_layer(num_channels: int) -> nn.Module:
            return AffineBatchNorm2d(num_channels, batch_norm_eps, batch_norm_momentum) if batch_norm else nn.Identity()

        self.activate = make_activation(activation)
        self.blocks = nn.ModuleList()
        for width_in, width in zip((3, *widths[:-1]), widths, strict=True):
            keep, halve = layers.conv(width_in, width), layers.conv(width, width, kernel_size=4, stride=2)
            parts = (keep, norm_layer(width), self.activate, halve, norm_layer(width), self.activate)
            self.blocks.append(nn.Sequential(*parts))
        self.attentions = attention_after(stages, widths, attention_resolutions, layers.conv)
        self.last = nn.Sequential(layers.conv(widths[-1], last_width), norm_layer(last_width), self.activate)
        self.linear = layers.linear(last_width, num_classes if conditioning == "class_output" else output_dim)
        self.class_embedding = layers.embedding(num_classes, last_width) if conditioning == "projection" else None
        self.gradient_checkpointing = False
        initialise_weights(self, weight_init, zero_biases=True, optional=True)

    def features(self, images: Tensor) -> Tensor:
        """Features that the outputs and the projection read.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, D), summed over positions.
        """
        hidden = images
        for index, block in enumerate(self.blocks):
            hidden = run_block(self, block, hidden)  # (B, C', H/2, W/2)
            if str(index) in self.attentions:
                hidden = run_block(self, self.attentions[str(index)], hidden)
        return sum_pool(run_block(self, self.last, hidden))  # (B, D)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        """Compute the realness logits of images.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            class_labels: (B,) int64 in [0, num_classes).

        Returns:
            (B,) logits, higher is more real; (B, output_dim) if that is more than 1.
        """
        features = self.features(images)  # (B, D)
        # (B, output_dim), or (B, num_classes)
        logits = projection_logits(features, class_labels, self.linear, self.class_embedding)
        if self.conditioning == "class_output":
            return logits.gather(1, class_labels[:, None])[:, 0]  # (B,)
        return logits[:, 0] if self.output_dim == 1 else logits
