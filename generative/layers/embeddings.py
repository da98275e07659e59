"""Sinusoidal embeddings of timesteps and of positions on a grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Longest wavelength of the sinusoids over 2 pi (Vaswani et al., arXiv 1706.03762, section 3.5).
MAX_PERIOD = 10_000.0


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = MAX_PERIOD, frequency_shift: int = 0) -> Tensor:
    """Embed timesteps as cosines, then sines, of geometrically spaced frequencies (ADM, DiT, SiT).

    Args:
        timesteps: (B,) any real values; not rescaled here.
        dim: Width of the embedding. An odd width ends with a zero.
        max_period: Longest wavelength over 2 pi, in timesteps.
        frequency_shift: 1 spaces the frequencies so that the last one's is the longest wavelength (DDPM, diffusers' DiT).

    Returns:
        (B, dim) float32 in [-1, 1].
    """
    half = dim // 2
    # Multiplied before divided, as officially: at t = 999 a rounding of the exponent shows in the fourth digit of the sine.
    places = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    exponents = -math.log(max_period) * places / (half - frequency_shift)
    angles = timesteps.float()[:, None] * exponents.exp()  # (B, dim // 2)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim % 2))


class TimestepEmbedder(nn.Module):
    """Sinusoid of the timestep through a two-layer MLP.

    Args:
        hidden_size: Width D of the result.
        frequency_embedding_size: Width of the sinusoid.
        frequency_shift: See ``timestep_embedding``.
    """

    def __init__(self, hidden_size: int, frequency_embedding_size: int, frequency_shift: int = 0) -> None:
        super().__init__()
        self.frequency_embedding_size, self.frequency_shift = frequency_embedding_size, frequency_shift
        self.linear_1 = nn.Linear(frequency_embedding_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed timesteps (B,) as (B, D)."""
        frequencies = timestep_embedding(timestep, self.frequency_embedding_size, frequency_shift=self.frequency_shift)  # (B, F)
        return self.linear_2(F.silu(self.linear_1(frequencies.to(self.linear_1.weight.dtype))))


def sincos_positions_1d(positions: Tensor, dim: int, max_period: float = MAX_PERIOD) -> Tensor:
    """Embed positions as sines, then cosines.

    Args:
        positions: (L,) positions.
        dim: Even width.
        max_period: Longest wavelength over 2 pi, in positions.

    Returns:
        (L, dim) float64 in [-1, 1].
    """
    exponents = torch.arange(dim // 2, dtype=torch.float64) / (dim / 2)
    angles = positions.double()[:, None] / max_period**exponents  # (L, dim // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions_2d(dim: int, height: int, width: int) -> Tensor:
    """Embed the positions of a grid: the first half of the width encodes the column, the second the row (MAE, DiT).

    Args:
        dim: Width of the embedding, a multiple of 4.
        height: Rows of the grid.
        width: Columns of the grid.

    Returns:
        (height * width, dim) float32 in row-major order of the grid.

    Raises:
        ValueError: If ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2D sine-cosine positions need a width that is a multiple of 4, got {dim}")
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    halves = [sincos_positions_1d(columns, dim // 2), sincos_positions_1d(rows, dim // 2)]
    return torch.cat(halves, dim=1).float()  # (L, dim)
