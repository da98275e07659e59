"""Block of a vision transformer with dropout, as timm has it (MAE, MAR, eMIGM)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.short_attention import attend


class DroppedSelfAttention(nn.Module):
    """Multi-head self-attention with dropout of weights and outputs.

    Args:
        dim: Width D.
        num_heads: Heads; divides D.
        attention_dropout: Share of attention weights dropped in training.
        residual_dropout: Share of output features dropped in training.
    """

    def __init__(self, dim: int, num_heads: int, attention_dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(residual_dropout)

    def forward(self, tokens: Tensor, key_mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Mix tokens.

        Args:
            tokens: (B, S, D).
            key_mask: (B, 1, 1, S) bool, False for tokens that none may look at.
            queries: (B, M, D) the tokens that look, where not all of them do.

        Returns:
            (B, S, D), or (B, M, D).
        """
        if queries is None:
            q, k, v = self._heads(self.qkv(tokens), 3)
        else:
            dim = tokens.shape[2]
            (q,) = self._heads(F.linear(queries, self.qkv.weight[:dim], self.qkv.bias[:dim]), 1)  # (B, heads, M, d)
            k, v = self._heads(F.linear(tokens, self.qkv.weight[dim:], self.qkv.bias[dim:]), 2)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attend(q, k, v, key_mask, dropout)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))  # (B, S or M, D)

    def _heads(self, projected: Tensor, count: int) -> Tensor:
        """(B, S, count D) -> (count, B, heads, S, d)."""
        return projected.unflatten(-1, (count, self.num_heads, -1)).permute(2, 0, 3, 1, 4)


class DroppedMLP(nn.Module):
    """Two linear layers around an exact GELU, dropout after each.

    Args:
        dim: Width D.
        hidden_dim: Width between the layers.
        residual_dropout: Share of features dropped in training.
    """

    def __init__(self, dim: int, hidden_dim: int, residual_dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(residual_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(tokens)))))


class EncoderBlock(nn.Module):
    """Pre-norm block of a vision transformer (arXiv 2010.11929), as timm has it.

    Args:
        dim: Width D.
        num_heads: Heads; divides D.
        mlp_ratio: Width of the MLP over D.
        attention_dropout: Share of attention weights dropped in training.
        residual_dropout: Share of the features of attention and MLP dropped in training.
        norm_eps: Epsilon of the layer norms.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, attention_dropout: float, residual_dropout: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = DroppedSelfAttention(dim, num_heads, attention_dropout, residual_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = DroppedMLP(dim, int(dim * mlp_ratio), residual_dropout)

    def forward(self, tokens: Tensor, key_mask: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Transform tokens, or only some of them.

        Args:
            tokens: (B, S, D).
            key_mask: As in ``DroppedSelfAttention``.
            rows: (B, M) int64, the tokens that are wanted; the others are looked at only, which spares their MLP. None for all.

        Returns:
            (B, S, D), or (B, M, D).
        """
        normed = self.norm1(tokens)
        if rows is None:
            tokens = tokens + self.attention(normed, key_mask)
        else:
            index = rows[..., None].expand(-1, -1, tokens.shape[2])
            tokens = tokens.gather(1, index) + self.attention(normed, key_mask, normed.gather(1, index))  # (B, M, D)
        return tokens + self.mlp(self.norm2(tokens))
