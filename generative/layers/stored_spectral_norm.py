"""Layers whose spectral norm keeps both singular vectors, as ``torch.nn.utils.spectral_norm`` does.

Train mode makes one power iteration and stores it; eval mode divides by u W v with the stored vectors. Projected GAN was trained
with these.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.spectral_norm import SpectralNorm

TORCH_EPS = 1e-12  # torch.nn.utils.spectral_norm's default


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
        # A convolution's own initial law; its weight is (in_features, C, S, S).
        self.weight = nn.ConvTranspose2d(in_features, out_channels, size, bias=False).weight
        self.spectral_norm = SpectralNorm(out_channels, eps, num_inputs=in_features * size**2)

    def forward(self, vector: Tensor) -> Tensor:
        """Map (B, in_features) to (B, C, S, S)."""
        weight = self.spectral_norm(self.weight.transpose(0, 1)).transpose(0, 1)  # (in_features, C, S, S)
        return (vector @ weight.flatten(1)).unflatten(1, weight.shape[1:])  # (B, C, S, S)
