"""Layers of the DCGAN networks (arXiv 1511.06434), with spectral norm as PyTorch-StudioGAN trains with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from generative.core.errors import UserError
from generative.layers.class_embedding import ClassEmbedding
from generative.layers.stored_spectral_norm import (
    StoredSpectralClassEmbedding,
    StoredSpectralConv2d,
    StoredSpectralConvTranspose2d,
    StoredSpectralEmbedding,
    StoredSpectralLinear,
)

Activation = Literal["relu", "leaky_relu", "elu", "gelu"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),  # PyTorch-StudioGAN's slope; DCGAN's paper has 0.2
    "elu": nn.ELU,
    "gelu": nn.GELU,
}

SPECTRAL_NORM_EPS = 1e-6
"""PyTorch-StudioGAN's: smallest norm that a vector of the power iteration is divided by."""


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
        return StoredSpectralConvTranspose2d(in_channels, out_channels, eps=SPECTRAL_NORM_EPS)

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """Linear layer."""
        if not self.spectral_norm:
            return nn.Linear(in_features, out_features)
        return StoredSpectralLinear(in_features, out_features, eps=SPECTRAL_NORM_EPS)

    def embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """Table that is looked up by label, for the discriminator."""
        if not self.spectral_norm:
            return nn.Embedding(num_embeddings, embedding_dim)
        return StoredSpectralEmbedding(num_embeddings, embedding_dim, eps=SPECTRAL_NORM_EPS)

    def class_embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """Table that takes mixtures of classes too, for the generator."""
        if not self.spectral_norm:
            return ClassEmbedding(num_embeddings, embedding_dim)
        return StoredSpectralClassEmbedding(num_embeddings, embedding_dim, eps=SPECTRAL_NORM_EPS)


def make_activation(name: Activation) -> nn.Module:
    """Build an activation, or raise ``UserError`` for one that is not known."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()
