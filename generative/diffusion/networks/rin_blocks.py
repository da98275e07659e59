"""Parts of RIN (Jabri et al., arXiv 2212.11972): what reads, processes and writes, and where tokens are."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.cross_attention import CrossAttention
from generative.layers.drop_path import DropPath
from generative.layers.dropout import Dropout

LAYER_NORM_EPS = 1e-6
GROUP_NORM_EPS = 1e-5
MAX_GROUPS, LEAST_GROUP_CHANNELS = 32, 4  # of the group norm in ``DepthwiseBlock``
POSITION_STD = 0.02  # of learned positions
BASE = 10_000.0  # longest wavelength of sinusoids over 2 pi

PositionKind = Literal["learned", "sin_cos", "sin_cos_plus_learned"]


def layer_norm(dim: int) -> nn.LayerNorm:
    """Layer norm of the official implementation."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def sinusoid(places: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of places (...) at wavelengths from 2 pi up, (..., dim) float32; an odd width has one sine more."""
    indices = torch.arange(dim, device=places.device)
    rates = BASE ** -(2 * (indices // 2).float() / dim)
    angles = places.float()[..., None] * rates
    return torch.cat([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1)


def grid_sinusoid(rows: int, columns: int, dim: int, extent: float) -> Tensor:
    """Fixed positions of a grid, (rows * columns, dim) float32.

    The first half of the width is of the row, the second of the column; a grid of one line has one coordinate in all of it.

    Args:
        rows: Of the grid.
        columns: Of the grid.
        dim: Width; even for a grid of several lines.
        extent: Coordinates run from 0 to this.
    """
    if 1 in (rows, columns):
        length = rows * columns
        return sinusoid(torch.arange(length) / (length - 1) * extent, dim)
    down, across = (
        sinusoid(torch.arange(length, dtype=torch.float32) / (length - 1) * extent, dim // 2) for length in (rows, columns)
    )
    halves = (down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1))
    return torch.cat(halves, dim=-1).flatten(0, 1)


class Positions(nn.Module):
    """What tells the places of tokens apart, (L, D): learned, fixed, or fixed and a learned part that starts at zero.

    Args:
        kind: Which.
        rows: Of the tokens' grid.
        columns: 1 where the tokens have an order only.
        dim: D.
        extent: Coordinates of fixed ones run from 0 to this.

    Raises:
        UserError: If fixed ones are asked for where there is but one place along an axis, or D is odd on a grid.
    """

    fixed: Tensor | None

    def __init__(self, kind: PositionKind, rows: int, columns: int, dim: int, extent: float) -> None:
        super().__init__()
        if kind not in ("learned", "sin_cos", "sin_cos_plus_learned"):
            raise UserError(f"RIN: positions must be learned, sin_cos or sin_cos_plus_learned, got {kind!r}")
        if kind != "learned" and rows * columns < 2:
            raise UserError(f"RIN: positions {kind} need at least 2 tokens, got {rows * columns}; take learned ones")
        if kind != "learned" and min(rows, columns) > 1 and dim % 2:
            raise UserError(f"RIN: positions {kind} on a grid need an even width, got {dim}; take learned ones")
        self.learned = nn.Parameter(torch.zeros(rows * columns, dim)) if kind != "sin_cos" else None
        if kind == "learned" and self.learned is not None:
            nn.init.trunc_normal_(self.learned, std=POSITION_STD)
        fixed = None if kind == "learned" else grid_sinusoid(rows, columns, dim, extent)
        self.register_buffer("fixed", fixed, persistent=False)

    def forward(self) -> Tensor:
        """The positions."""
        if self.fixed is None:
            assert self.learned is not None
            return self.learned
        return self.fixed if self.learned is None else self.fixed.to(self.learned.dtype) + self.learned


class FeedForward(nn.Module):
    """x + MLP(norm(x)) with an exact GELU.

    Args:
        dim: D.
        ratio: Width between the two layers over D.
        dropout: Between them.
        drop_path: Of the branch.
    """

    def __init__(self, dim: int, ratio: int, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim * ratio), nn.Linear(dim * ratio, dim)
        self.dropout, self.drop_path = Dropout(dropout), DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, L, D) to the same shape."""
        return tokens + self.drop_path(self.fc2(self.dropout(F.gelu(self.fc1(self.norm(tokens))))))


class Exchange(nn.Module):
    """Reading or writing: tokens attend to others, then pass a feed-forward network (section 2.2).

    Args:
        dim: D of the tokens that change.
        context_dim: D' of the tokens that they attend to; the attention is as wide as the narrower of both.
        num_heads: Heads.
        mlp_ratio: Of the feed-forward network; 0 leaves it out.
        norm_context: Normalise the tokens that are attended to.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int, mlp_ratio: int, norm_context: bool) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.context_norm = layer_norm(context_dim) if norm_context else nn.Identity()
        self.attention = CrossAttention(dim, context_dim, min(dim, context_dim), num_heads)
        self.mlp = FeedForward(dim, mlp_ratio) if mlp_ratio > 0 else nn.Identity()

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Map (B, L, D) under (B, M, D') to (B, L, D)."""
        return self.mlp(tokens + self.attention(self.norm(tokens), self.context_norm(context)))


class ProcessLayer(nn.Module):
    """A transformer layer over the latents.

    Args:
        dim: D.
        num_heads: Heads.
        mlp_ratio: Of the feed-forward network.
        dropout: Between its layers.
        attention_dropout: Of the attention weights.
        drop_path: Of both branches.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: int, dropout: float, attention_dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.attention = CrossAttention(dim, dim, dim, num_heads, attention_dropout)
        self.drop_path = DropPath(drop_path)
        self.mlp = FeedForward(dim, mlp_ratio, dropout, drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, L, D) to the same shape."""
        normed = self.norm(tokens)
        return self.mlp(tokens + self.drop_path(self.attention(normed, normed)))


class DepthwiseBlock(nn.Module):
    """Depthwise convolution, group norm, SiLU and a 1x1 convolution over the image's tokens; other tokens pass by.

    Args:
        dim: D.
        grid_size: Height and width of the image's grid of tokens.
        kernel_size: k; of an even one the last row and column look one token further.
        dropout: Before the last convolution.

    Raises:
        UserError: If the groups of the norm do not divide the width.
    """

    def __init__(self, dim: int, grid_size: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        groups = min(dim // LEAST_GROUP_CHANNELS, MAX_GROUPS)
        if groups < 1 or dim % groups:
            raise UserError(f"RIN: conv_kernel_size needs a tape_dim that {max(groups, 1)} groups divide, got {dim}")
        self.grid_size, self.kernel_size = grid_size, kernel_size
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, groups=dim)
        self.norm = nn.GroupNorm(groups, dim, eps=GROUP_NORM_EPS)
        self.dropout = Dropout(dropout)
        self.pointwise = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, L, D) to the same shape."""
        length = self.grid_size**2
        images = tokens[:, :length].unflatten(1, (self.grid_size, self.grid_size)).permute(0, 3, 1, 2)  # (B, D, h, w)
        around = ((self.kernel_size - 1) // 2, self.kernel_size // 2) * 2
        hidden = self.dropout(F.silu(self.norm(self.depthwise(F.pad(images, around))))).flatten(2).transpose(1, 2)  # (B, h w, D)
        return torch.cat([tokens[:, :length] + self.pointwise(hidden), tokens[:, length:]], dim=1)


class ScalarEmbedder(nn.Module):
    """A number as a token: its sinusoid, standardised within the row, through a two-layer MLP.

    Args:
        width: D; a multiple of 4, as the sinusoid has a quarter of it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequency_dim = width // 4
        self.linear_1, self.linear_2 = nn.Linear(width // 4, width), nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        """Embed values (B,) as (B, D)."""
        waves = sinusoid(values, self.frequency_dim)
        waves = (waves - waves.mean(-1, keepdim=True)) / waves.std(-1, correction=0, keepdim=True)
        return self.linear_2(F.silu(self.linear_1(waves.to(self.linear_1.weight.dtype))))


@torch.no_grad()
def glorot_by_heads(attention: CrossAttention) -> None:
    """Initialise an attention's projections as Keras does, whose kernels have an axis of heads.

    It counts fans by the last two axes of a kernel times all others: those of (D, heads, d) are D heads and D d, so that the
    weights are smaller than those of a plain linear layer.
    """
    heads = attention.num_heads
    for linear in (attention.query, attention.key, attention.value):
        bound = math.sqrt(6 / (linear.in_features * (heads + linear.out_features / heads)))
        nn.init.uniform_(linear.weight, -bound, bound)
    head_size = attention.out.in_features / heads
    bound = math.sqrt(6 / (heads * (head_size + attention.out.out_features)))
    nn.init.uniform_(attention.out.weight, -bound, bound)
