"""Layers whose spectral norm keeps both singular vectors, as ``torch.nn.utils.spectral_norm`` does.

Train mode makes one power iteration and stores it; eval mode divides by u W v with the stored vectors. Projected GAN and
PyTorch-StudioGAN's networks were trained with these.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.class_embedding import ClassEmbedding
from generative.layers.spectral_norm import SpectralNorm

TORCH_EPS = 1e-12  # torch.nn.utils.spectral_norm's default


def normalise_transposed(weight: Tensor, spectral_norm: SpectralNorm) -> Tensor:
    """Divide a weight (inputs, outputs, ...) by its spectral norm, the matrix of which has the outputs as its rows."""
    return spectral_norm(weight.transpose(0, 1)).transpose(0, 1)  # (inputs, outputs, ...)


class StoredSpectralConv2d(nn.Conv2d):
    """Convolution whose weight is divided by its spectral norm, both singular vectors of which are kept.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Height and width of the kernel.
        stride: Step of the kernel.
        padding: Zeros around the map.
        groups: Number of channel groups.
        bias: Whether to add a bias, which is not normalised.
        eps: See ``SpectralNorm``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
        eps: float = TORCH_EPS,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.spectral_norm = SpectralNorm(out_channels, eps, num_inputs=self.weight[0].numel())

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', H', W')."""
        weight = self.spectral_norm(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, groups=self.groups)


class StoredSpectralConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with a bias whose weight is divided by its spectral norm, both singular vectors of which are kept.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Height and width of the kernel; this, stride and padding as they are here double the size.
        stride: Step of the kernel on the larger map.
        padding: Rows and columns cut off around the larger map.
        eps: See ``SpectralNorm``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 4,
        stride: int = 2,
        padding: int = 1,
        eps: float = TORCH_EPS,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.margin = padding  # torch types its own ``padding`` as a word or a tuple
        self.spectral_norm = SpectralNorm(out_channels, eps, num_inputs=in_channels * kernel_size**2)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', H', W'); ``output_size`` is torch's and goes unused."""
        weight = normalise_transposed(self.weight, self.spectral_norm)  # (C, C', K, K)
        return F.conv_transpose2d(input, weight, self.bias, self.stride, self.margin)


class StoredSpectralLinear(nn.Linear):
    """Linear layer whose weight is divided by its spectral norm, both singular vectors of which are kept.

    Args:
        in_features: Width in.
        out_features: Width out.
        bias: Whether to add a bias, which is not normalised.
        eps: See ``SpectralNorm``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, eps: float = TORCH_EPS) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.spectral_norm = SpectralNorm(out_features, eps, num_inputs=in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(input, self.spectral_norm(self.weight), self.bias)


class StoredSpectralEmbedding(nn.Embedding):
    """Embedding table that is divided by its spectral norm, both singular vectors of which are kept.

    Args:
        num_embeddings: Rows of the table.
        embedding_dim: D, width of a row.
        eps: See ``SpectralNorm``.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, eps: float = TORCH_EPS) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.spectral_norm = SpectralNorm(num_embeddings, eps, num_inputs=embedding_dim)

    def forward(self, input: Tensor) -> Tensor:
        """Look up (B,) int64 to (B, D)."""
        return F.embedding(input, self.spectral_norm(self.weight))


class StoredSpectralClassEmbedding(ClassEmbedding):
    """Class embedding divided by its spectral norm, taken of the transposed table: officially it is a layer on one-hot labels.

    Args:
        num_embeddings: Number of classes.
        embedding_dim: D, width of a row.
        eps: See ``SpectralNorm``.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, eps: float = TORCH_EPS) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.spectral_norm = SpectralNorm(embedding_dim, eps, num_inputs=num_embeddings)

    def forward(self, input: Tensor) -> Tensor:
        """Embed (B,) labels or (B, num_classes) weights of mixtures to (B, D)."""
        table = normalise_transposed(self.weight, self.spectral_norm)  # (num_classes, D)
        return input.to(table.dtype) @ table if input.is_floating_point() else F.embedding(input, table)


class StoredSpectralVectorToMap(nn.Module):
    """Transposed convolution of a 1x1 map, which is one matrix product, spectrally normalised over its output axis.

    Args:
        in_features: Width of the vector.
        out_channels: C, channels out.
        size: S, height and width of the map, and of the kernel.
        eps: See ``SpectralNorm``.
    """

    def __init__(self, in_features: int, out_channels: int, size: int = 4, eps: float = TORCH_EPS) -> None:
        super().__init__()
        # A convolution's default initialisation; its weight is (in_features, C, S, S).
        self.weight = nn.ConvTranspose2d(in_features, out_channels, size, bias=False).weight
        self.spectral_norm = SpectralNorm(out_channels, eps, num_inputs=in_features * size**2)

    def forward(self, vector: Tensor) -> Tensor:
        """Map (B, in_features) to (B, C, S, S)."""
        weight = normalise_transposed(self.weight, self.spectral_norm)  # (in_features, C, S, S)
        return (vector @ weight.flatten(1)).unflatten(1, weight.shape[1:])  # (B, C, S, S)
