"""Scaled dot-product attention that is fast where torch's is not: short sequences in bfloat16 on a CPU, with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.layers.forward_mode import is_forward_differentiated

# Longest sequence for which plain products beat torch's fused kernel and its backward pass. Measured on one core with AMX, torch
# 2.15: 64 x 4 heads of 48 over 72 slots take 16 ms instead of 58, 4 x 12 heads of 64 over 320 slots 33 instead of 54; over 1,088
# slots the fused kernel wins.
LONGEST = 512


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax of scaled products over the slots, times the values.

    Args:
        query: (B, heads, S, d).
        key: (B, heads, L, d).
        value: (B, heads, L, d).
        mask: Broadcasts to (B, heads, S, L) bool, False where a slot must not be looked at; each query sees one slot at least.
        dropout: Share of attention weights dropped.

    Returns:
        (B, heads, S, d).
    """
    is_plain = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad and key.shape[2] <= LONGEST
    if not is_plain and not is_forward_differentiated():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)  # (B, heads, S, L)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    return F.dropout(weights, dropout) @ value if dropout else weights @ value
