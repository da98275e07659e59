"""Gated feed-forward layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.linear import Linear


def swiglu_hidden_size(hidden_size: int, multiple_of: int, multiplier: float | None = None) -> int:
    """Inner width that gives a SwiGLU as many weights as a two-layer MLP four times as wide: 8/3 of the width, rounded up.

    Args:
        hidden_size: Width of the residual stream.
        multiple_of: Round up to a multiple of this (LlamaGen: 256).
        multiplier: Of the width before it is rounded (LLaMA's ffn_dim_multiplier); None for 1.
    """
    inner = int(8 * hidden_size / 3)
    if multiplier is not None:
        inner = int(multiplier * inner)
    return (inner + multiple_of - 1) // multiple_of * multiple_of


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202, eq. 6).

    Args:
        hidden_size: Width D of the input.
        inner_size: Width between.
        dropout: Share of output features dropped in training.
        bias: Whether the layers have biases.
        output_size: Width of the output; None for D.
    """

    def __init__(
        self, hidden_size: int, inner_size: int, dropout: float = 0.0, bias: bool = False, output_size: int | None = None
    ) -> None:
        super().__init__()
        layer = nn.Linear if bias else Linear
        self.gate_up_proj = layer(hidden_size, 2 * inner_size)
        self.down_proj = layer(inner_size, output_size or hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., output size)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # 2 x (..., inner)
        return self.dropout(self.down_proj(F.silu(gate) * up))  # (..., D)
