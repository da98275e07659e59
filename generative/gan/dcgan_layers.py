"""Layers of the DCGAN networks (arXiv 1511.06434), with spectral norm as PyTorch-StudioGAN trains with it, and how they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.class_embedding import ClassEmbedding
from generative.layers.gan_blocks import NORMAL_INIT_STD, WeightInit
from generative.layers.spectral_norm import SpectralNorm
from generative.layers.stored_spectral_norm import StoredSpectralConv2d, StoredSpectralLinear

Activation = Literal["relu", "leaky_relu", "elu", "gelu"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),  # PyTorch-StudioGAN's slope; DCGAN's paper has 0.2
    "elu": nn.ELU,
    "gelu": nn.GELU,
}
WEIGHT_LAWS: dict[WeightInit, Callable[[Tensor], Tensor]] = {
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "normal": partial(nn.init.normal_, std=NORMAL_INIT_STD),
}

SPECTRAL_NORM_EPS = 1e-6
"""PyTorch-StudioGAN's: smallest norm that a vector of the power iteration is divided by."""


class StoredSpectralConvTranspose2d(nn.ConvTranspose2d):
    """Transposed 4x4 convolution of stride 2, which doubles the size, divided by its spectral norm with outputs as rows."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.spectral_norm = SpectralNorm(out_channels, SPECTRAL_NORM_EPS, num_inputs=in_channels * 4**2)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', 2H, 2W); ``output_size`` is torch's and goes unused."""
        weight = self.spectral_norm(self.weight.transpose(0, 1)).transpose(0, 1)  # (C, C', 4, 4)
        return F.conv_transpose2d(input, weight, self.bias, stride=2, padding=1)


class StoredSpectralEmbedding(nn.Embedding):
    """Embedding table of the discriminator, divided by its spectral norm."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.spectral_norm = SpectralNorm(num_embeddings, SPECTRAL_NORM_EPS, num_inputs=embedding_dim)

    def forward(self, input: Tensor) -> Tensor:
        """Look up (B,) int64 to (B, embedding_dim)."""
        return F.embedding(input, self.spectral_norm(self.weight))


class StoredSpectralClassEmbedding(ClassEmbedding):
    """Class embedding divided by its spectral norm, taken of the transposed table: officially it is a layer on one-hot labels."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.spectral_norm = SpectralNorm(embedding_dim, SPECTRAL_NORM_EPS, num_inputs=num_embeddings)

    def forward(self, input: Tensor) -> Tensor:
        """Embed (B,) labels or (B, num_classes) weights of mixtures to (B, embedding_dim)."""
        table = self.spectral_norm(self.weight.T).T  # (num_classes, D)
        return input.to(table.dtype) @ table if input.is_floating_point() else F.embedding(input, table)


@dataclass(frozen=True)
class DCGANLayers:
    """Makes the layers of one network, spectrally normalised or not, all of them."""

    spectral_norm: bool

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True, stride: int = 1) -> nn.Module:
        """Convolution that keeps the size (odd kernel, stride 1) or halves it (4x4, stride 2)."""
        padding = (kernel_size - 1) // 2
        if not self.spectral_norm:
            return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        return StoredSpectralConv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias, eps=SPECTRAL_NORM_EPS)

    def up_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        """Transposed convolution that doubles the size."""
        if not self.spectral_norm:
            return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        return StoredSpectralConvTranspose2d(in_channels, out_channels)

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """Linear layer."""
        if not self.spectral_norm:
            return nn.Linear(in_features, out_features)
        return StoredSpectralLinear(in_features, out_features, eps=SPECTRAL_NORM_EPS)

    def embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """Table that is looked up by label, for the discriminator."""
        return (StoredSpectralEmbedding if self.spectral_norm else nn.Embedding)(num_embeddings, embedding_dim)

    def class_embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """Table that takes mixtures of classes too, for the generator."""
        return (StoredSpectralClassEmbedding if self.spectral_norm else ClassEmbedding)(num_embeddings, embedding_dim)


def initialise(network: nn.Module, init: WeightInit | None) -> None:
    """Draw all weights and set biases to 0, as PyTorch-StudioGAN does; None keeps what torch drew.

    Raises:
        UserError: If there is no such law.
    """
    if init is None:
        return
    if init not in WEIGHT_LAWS:
        raise UserError(f"weight_init must be one of {', '.join(WEIGHT_LAWS)} or null, got {init!r}")
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)):
            WEIGHT_LAWS[init](module.weight)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                nn.init.zeros_(module.bias)


def make_activation(name: Activation) -> nn.Module:
    """Build an activation, or raise ``UserError`` for one that is not known."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()
