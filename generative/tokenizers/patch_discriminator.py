"""PatchGAN: a small convolutional discriminator that scores overlapping patches (arXiv 1611.07004, section 3.2.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.checkpointing import is_repeated, run_block
from generative.layers.spectral_norm import SpectralNorm

KERNEL_SIZE, PADDING = 4, 1
LEAK = 0.2
INIT_STD = 0.02  # pix2pix's, which VQGAN's official code keeps
MAX_WIDENING = 8


class SpectralNormPatchConv2d(nn.Conv2d):
    """4x4 convolution whose weight is divided by its spectral norm (arXiv 1802.05957)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, KERNEL_SIZE, stride, PADDING)
        self.spectral_norm = SpectralNorm(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        return F.conv2d(input, self.spectral_norm(self.weight), self.bias, self.stride, self.padding)


class PatchBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose moving averages move once where a block is computed twice (``generative.layers.checkpointing``)."""

    moves_in_training = True

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not is_repeated() or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        averages = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(input, *averages, self.weight, self.bias, self.training, eps=self.eps)


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """A convolution of stride 2 for each layer, one of stride 1, and one that gives the logits.

    With the defaults it is VQGAN's ``NLayerDiscriminator`` (arXiv 2012.09841): patches of 70 pixels, 8 pixels apart.

    Args:
        channels: Channels of the first layer ("ndf"); they double with each layer, up to 8 times as many.
        num_layers: Convolutions of stride 2. Images must have at least ``2 ** (num_layers + 1) + 1`` pixels.
        normalisation: ``batch`` norm of the official code, over one micro-batch of one process; or ``spectral`` norm of every
            weight and no batch norm, with which an image's logits do not depend on its batch.

    Raises:
        UserError: If an argument is out of range.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, channels: int = 64, num_layers: int = 3, normalisation: Literal["batch", "spectral"] = "batch") -> None:
        super().__init__()
        if channels < 1 or num_layers < 1:
            raise UserError(f"channels and num_layers must be at least 1, got {channels} and {num_layers}")
        if normalisation not in ("batch", "spectral"):
            raise UserError(f"normalisation must be batch or spectral, got {normalisation!r}")
        is_batch = normalisation == "batch"

        def conv(width_in: int, width_out: int, stride: int, bias: bool = True) -> nn.Conv2d:
            if is_batch:
                return nn.Conv2d(width_in, width_out, KERNEL_SIZE, stride, PADDING, bias=bias)
            return SpectralNormPatchConv2d(width_in, width_out, stride)

        layers: list[nn.Module] = [conv(3, channels, 2), nn.LeakyReLU(LEAK)]
        width = channels
        for index in range(1, num_layers + 1):
            widened = channels * min(2**index, MAX_WIDENING)
            # Batch norm subtracts what a bias would add.
            layers.append(conv(width, widened, 2 if index < num_layers else 1, bias=not is_batch))
            layers += [PatchBatchNorm2d(widened)] if is_batch else []
            layers.append(nn.LeakyReLU(LEAK))
            width = widened
        self.layers = nn.Sequential(*layers, conv(width, 1, 1))
        self.starts = [index for index, layer in enumerate(self.layers) if isinstance(layer, nn.Conv2d)]
        self.gradient_checkpointing = False
        self.apply(init_weights)

    def grid_size(self, image_size: int) -> int:
        """Rows (and columns) of patches of an image.

        Raises:
            UserError: If the image is too small for one.
        """
        size = image_size
        for _ in range(self.config.num_layers):
            size //= 2
        if size < 3:  # the two last convolutions take a pixel each
            raise UserError(
                f"images of {image_size} pixels are too small for a patch discriminator of num_layers={self.config.num_layers}; "
                "lower num_layers"
            )
        return size - 2

    def forward(self, images: Tensor) -> Tensor:
        """Compute the realness logits of patches.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, 1, h, w) logits, h and w as ``grid_size`` says.
        """
        hidden = images
        for start, end in pairwise(self.starts):
            hidden = run_block(self, self.layers[start:end], hidden)  # (B, C, h, w)
        return self.layers[-1](hidden)


def init_weights(module: nn.Module) -> None:
    """pix2pix's initial distribution: N(0, 0.02) for convolutions, N(1, 0.02) for the gains of batch norm."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, INIT_STD)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, INIT_STD)
        nn.init.zeros_(module.bias)
