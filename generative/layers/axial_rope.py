"""Axial rotary positions of learned frequencies, and the norm of queries and keys beside them (HDiT, arXiv 2401.11605; DiMR)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_FREQUENCY = 10.0  # highest at the start, in half turns over half the image
QK_NORM_EPS, QK_SCALE_INIT, MAX_QK_SCALE = 1e-6, 10.0, 100.0


def axial_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Rows and columns of the centres of a grid in [-1, 1], the longer side spanning all of it: (height * width, 2) float32."""
    longest = max(height, width)

    def centers(count: int) -> Tensor:
        return (2 * torch.arange(count, device=device, dtype=torch.float32) + 1 - count) / longest

    return torch.stack(torch.meshgrid(centers(height), centers(width), indexing="ij"), dim=-1).reshape(-1, 2)


class AxialRoPE(nn.Module):
    """Rotates pairs of features by angles that grow with the row, then with the column.

    Args:
        head_dim: Features E of a head; those beyond a multiple of 4 stay as they are.
        num_heads: Heads, each with frequencies of its own.
    """

    def __init__(self, head_dim: int, num_heads: int) -> None:
        super().__init__()
        count = head_dim // 4
        log_frequencies = torch.linspace(math.log(math.pi), math.log(MAX_FREQUENCY * math.pi / 2), count).expand(num_heads, count)
        self.row_frequencies = nn.Parameter(log_frequencies.clone())  # logarithms
        self.column_frequencies = nn.Parameter(log_frequencies.clone())

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate (B, heads, L, E) at positions (L, 2)."""
        rows, columns = positions[:, 0, None], positions[:, 1, None]  # (L, 1)
        angles = torch.cat(
            [rows * self.row_frequencies.float().exp()[:, None], columns * self.column_frequencies.float().exp()[:, None]], dim=2
        )  # (heads, L, E / 2)
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        turned, rest = x.split([2 * angles.shape[2], x.shape[3] - 2 * angles.shape[2]], dim=3)
        even, odd = turned.unflatten(3, (-1, 2)).unbind(4)
        return torch.cat([torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=4).flatten(3), rest], dim=3)


class QKNorm(nn.Module):
    """Root-mean-square norm over a head's features, with one learned scale a head that is the logits' once.

    Args:
        num_heads: Heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((num_heads,), math.log(QK_SCALE_INIT)))  # a logarithm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, heads, L, E)."""
        # Capped, but with a gradient there, so that it can come down again.
        capped = self.scale + (self.scale.clamp(max=math.log(MAX_QK_SCALE)) - self.scale).detach()
        scale = (0.5 * capped - 0.25 * math.log(x.shape[-1])).exp()[:, None, None]
        inverse = (x.float().square().mean(-1, keepdim=True) + QK_NORM_EPS).rsqrt()
        return (x * (scale * inverse)).to(x.dtype)
