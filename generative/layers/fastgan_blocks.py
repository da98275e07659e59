"""Blocks of FastGAN (arXiv 2101.04775) as Projected GAN (arXiv 2111.01007) trains them, class-conditional ones too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.batch_norm import AffineBatchNorm2d, BatchNorm2d, ConditionalNorm2d
from generative.layers.stored_spectral_norm import StoredSpectralConv2d, StoredSpectralLinear

EXCITATION_SIZE = 4  # a skip-layer excitation pools its small map to 4x4 (arXiv 2101.04775, figure 3)


class NoiseInjection(nn.Module):
    """Adds one noise map to all channels: out = x + w * noise, w learned and 0 at first (arXiv 1812.04948)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        """Inject.

        Args:
            sample: (B, C, H, W).
            noise: (B, 1, H, W) or (1, 1, H, W); None draws from torch's global generator.

        Returns:
            (B, C, H, W).
        """
        if noise is None:
            noise = torch.randn((len(sample), 1, *sample.shape[2:]), dtype=sample.dtype, device=sample.device)
        return sample + (self.weight * noise).to(sample.dtype)


class FastGANBlock(nn.Module):
    """Upsample x2 (nearest), then once or twice: conv, noise, batch norm, gated linear unit.

    Args:
        in_channels: Channels in.
        out_channels: Channels out; each convolution makes twice as many, half of which gate the others.
        condition_dim: Width of the class embedding that the norms' gains and biases follow; None for learned constants.
        lite: One convolution without noise in place of two with.
        cross_replica: Batch statistics over all processes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        condition_dim: int | None = None,
        lite: bool = False,
        cross_replica: bool = False,
    ) -> None:
        super().__init__()
        doubled = 2 * out_channels
        widths_in = (in_channels,) if lite else (in_channels, out_channels)
        self.convs = nn.ModuleList(StoredSpectralConv2d(width, doubled, padding=1) for width in widths_in)
        # The official conditional block uses one learned weight for both of its injections, the unconditional one has two.
        num_weights = 0 if lite else 1 if condition_dim is not None else 2
        self.injections = nn.ModuleList(NoiseInjection() for _ in range(num_weights))
        self.is_conditional = condition_dim is not None
        if condition_dim is None:
            norms: list[nn.Module] = [AffineBatchNorm2d(doubled, cross_replica=cross_replica) for _ in widths_in]
        else:
            affine = partial(StoredSpectralLinear, condition_dim)
            norms = [ConditionalNorm2d(BatchNorm2d(doubled, cross_replica=cross_replica), doubled, affine) for _ in widths_in]
        self.norms = nn.ModuleList(norms)

    def forward(self, sample: Tensor, condition: Tensor | None, noise: Sequence[Tensor | None]) -> Tensor:
        """Run the block.

        Args:
            sample: (B, C, H, W).
            condition: (B, condition_dim), None for an unconditional block.
            noise: Maps (B or 1, 1, 2H, 2W), one for each convolution; None draws one.

        Returns:
            (B, C', 2H, 2W).
        """
        hidden = F.interpolate(sample, scale_factor=2)  # (B, C, 2H, 2W)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            hidden = conv(hidden)  # (B, 2C', 2H, 2W)
            if len(self.injections) > 0:
                hidden = self.injections[min(index, len(self.injections) - 1)](hidden, noise[index])
            hidden = norm(hidden, condition) if self.is_conditional else norm(hidden)
            hidden = F.glu(hidden, dim=1)  # (B, C', 2H, 2W): first half times the sigmoid of the second
        return hidden


class SkipLayerExcitation(nn.Module):
    """Scales the channels of a large map by what a small, early one says (arXiv 2101.04775, eq. 2).

    Args:
        in_channels: Channels of the small map.
        out_channels: Channels of the large map.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = StoredSpectralConv2d(in_channels, out_channels, kernel_size=EXCITATION_SIZE)
        self.conv2 = StoredSpectralConv2d(out_channels, out_channels, kernel_size=1)

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        """Excite.

        Args:
            small: (B, C, h, w).
            large: (B, C', H, W).

        Returns:
            (B, C', H, W).
        """
        pooled = F.adaptive_avg_pool2d(small, EXCITATION_SIZE)  # (B, C, 4, 4)
        gate = torch.sigmoid(self.conv2(F.silu(self.conv1(pooled))))  # (B, C', 1, 1)
        return large * gate
