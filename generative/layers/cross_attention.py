"""Attention of some tokens to others, or to themselves, with projections of their own."""

from __future__ import annotations

from torch import Tensor, nn

from generative.layers.short_attention import attend


class CrossAttention(nn.Module):
    """Multi-head attention whose width between its projections need not be that of its tokens.

    Args:
        dim: D of the tokens that ask.
        context_dim: D' of the tokens that are asked.
        inner_dim: Width of queries, keys and values together; a rest that does not divide into the heads is left out.
        num_heads: Heads, at most ``inner_dim``.
        dropout: Share of attention weights dropped in training.
    """

    def __init__(self, dim: int, context_dim: int, inner_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        width = num_heads * (inner_dim // num_heads)
        self.query = nn.Linear(dim, width)
        self.key = nn.Linear(context_dim, width)
        self.value = nn.Linear(context_dim, width)
        self.out = nn.Linear(width, dim)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Attend.

        Args:
            tokens: (B, L, D).
            context: (B, M, D').

        Returns:
            (B, L, D).
        """
        query, key, value = (
            values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L or M, d)
            for values in (self.query(tokens), self.key(context), self.value(context))
        )
        mixed = attend(query, key, value, dropout=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))
