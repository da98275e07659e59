"""Self-attention and the feed-forward network of a transformer block."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.short_attention import attend


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection.

    Args:
        dim: Width D.
        num_heads: Heads; divides D.
        bias: Whether the two projections have biases.
        qkv_bias: Whether the first of them has one; None for as ``bias`` says.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, qkv_bias: bool | None = None) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias if qkv_bias is None else qkv_bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens.

        Args:
            tokens: (B, L, D).

        Returns:
            (B, L, D).
        """
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)  # (B, L, 3, heads, D/heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, D/heads)
        mixed = attend(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, dim))  # (B, L, D)


class MLP(nn.Module):
    """Two linear layers around a GELU.

    Args:
        dim: Width D.
        hidden_dim: Width between the layers.
        approximate: ``tanh`` approximation of the GELU (DiT) or ``none``, the exact one.
        bias: Whether the layers have biases.
    """

    def __init__(self, dim: int, hidden_dim: int, approximate: Literal["tanh", "none"] = "tanh", bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)
        self.approximate = approximate

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.fc2(F.gelu(self.fc1(tokens), approximate=self.approximate))
