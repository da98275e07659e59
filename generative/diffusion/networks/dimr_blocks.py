"""Blocks of DiMR (arXiv 2406.09416, section 3.2): of transformers at the lowest resolution, of ConvNeXt above it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.axial_rope import AxialRoPE, QKNorm
from generative.layers.short_attention import attend
from generative.layers.time_dependent import NormType, make_norm

PositionType = Literal["learned", "axial_rope"]


class GatedMLP(nn.Module):
    """Norm, then ``down(gelu(gate(x)) * up(x))`` with the exact GELU and biases.

    Args:
        dim: Width D.
        inner_size: Width between.
        norm: Kind of norm.
    """

    def __init__(self, dim: int, inner_size: int, norm: NormType) -> None:
        super().__init__()
        self.norm = make_norm(norm, dim)
        self.gate = nn.Linear(dim, inner_size)
        self.up = nn.Linear(dim, inner_size)
        self.down = nn.Linear(inner_size, dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, ..., D) at times (B,) -> (B, ..., D)."""
        x = self.norm(x, time)
        return self.down(F.gelu(self.gate(x)) * self.up(x))


class NormedAttention(nn.Module):
    """Norm, then self-attention; with ``axial_rope`` on queries and keys that are normed and rotated.

    Args:
        dim: Width D.
        num_heads: Attention heads.
        norm: Kind of norm.
        positions: Where the tokens' places come in; ``learned`` is the caller's to add.
    """

    def __init__(self, dim: int, num_heads: int, norm: NormType, positions: PositionType) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = make_norm(norm, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        is_rotary = positions == "axial_rope"
        self.rope = AxialRoPE(dim // num_heads, num_heads) if is_rotary else None
        self.qk_norm = QKNorm(num_heads) if is_rotary else None

    def forward(self, tokens: Tensor, time: Tensor, places: Tensor | None) -> Tensor:
        """Mix tokens (B, L, D) at times (B,); ``places`` (L, 2) are read with ``axial_rope``."""
        qkv = self.qkv(self.norm(tokens, time)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, D / heads)
        if self.rope is not None and self.qk_norm is not None:
            query, key = self.rope(self.qk_norm(query), places), self.rope(self.qk_norm(key), places)
        mixed = attend(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention and a gated MLP, each added to the tokens.

    Args:
        dim: Width D.
        inner_size: Width between the MLP's layers.
        num_heads: Attention heads.
        dropout: Share of what is added dropped in training.
        norm: Kind of norm.
        positions: See ``NormedAttention``.
    """

    def __init__(
        self, dim: int, inner_size: int, num_heads: int, dropout: float, norm: NormType, positions: PositionType
    ) -> None:
        super().__init__()
        self.attention = NormedAttention(dim, num_heads, norm, positions)
        self.mlp = GatedMLP(dim, inner_size, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, time: Tensor, places: Tensor | None = None) -> Tensor:
        """Transform tokens (B, L, D) at times (B,)."""
        tokens = tokens + self.dropout(self.attention(tokens, time, places))
        return tokens + self.dropout(self.mlp(tokens, time))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution without a norm and a gated MLP, each added to the map.

    Args:
        dim: Width D.
        inner_size: Width between the MLP's layers.
        kernel_size: Odd size of the convolution.
        dropout: Share of what is added dropped in training.
        norm: Kind of norm.
    """

    def __init__(self, dim: int, inner_size: int, kernel_size: int, dropout: float, norm: NormType) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.mlp = GatedMLP(dim, inner_size, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Transform a map (B, h, w, D) at times (B,)."""
        x = x + self.dropout(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.dropout(self.mlp(x, time))
