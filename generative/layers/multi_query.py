"""Attention whose heads share one key and one value (Shazeer, "Fast Transformer Decoding", arXiv 1911.02150)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.short_attention import attend

NORM_EPS = 1e-6


class MultiQueryAttention(nn.Module):
    """Many queries over one set of keys and values, queries and keys normalised (RMSNorm) over a head.

    Args:
        dim: D of the tokens that ask.
        context_dim: D' of the tokens that are asked.
        num_heads: Heads of the queries; divides D.

    Raises:
        UserError: If the heads do not divide the width.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise UserError(f"attention over {dim} channels can't have {num_heads} heads; change num_head_channels")
        self.num_heads, head_size = num_heads, dim // num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(context_dim, 2 * head_size, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(head_size, eps=NORM_EPS), nn.RMSNorm(head_size, eps=NORM_EPS)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Attend: (B, L, D) to (B, M, D'), which may be the same, gives (B, L, D)."""
        query = normalised(self.query_norm, self.query(tokens).unflatten(-1, (self.num_heads, -1))).transpose(
            1, 2
        )  # (B, heads, L, d)
        key, value = self.key_value(context)[:, None].chunk(2, dim=-1)  # each (B, 1, M, d)
        shape = (-1, self.num_heads, -1, -1)
        mixed = attend(query, normalised(self.key_norm, key).expand(shape), value.expand(shape))
        return self.out(mixed.transpose(1, 2).flatten(2))


def normalised(norm: nn.RMSNorm, values: Tensor) -> Tensor:
    """Values after a norm in float32, in their own precision: torch's fused kernel takes no two."""
    return F.rms_norm(values.float(), norm.normalized_shape, norm.weight.float(), NORM_EPS).to(values.dtype)
