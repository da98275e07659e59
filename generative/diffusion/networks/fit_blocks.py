"""Blocks of FiT and FiTv2 (arXiv 2402.12376, 2410.13925): attention with rotary positions under masks, and its modulations."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.attention import MLP
from generative.layers.rope import apply_rotary
from generative.layers.short_attention import attend
from generative.layers.swiglu import SwiGLU

NormKind = Literal["none", "layernorm", "w_layernorm", "rmsnorm", "w_rmsnorm"]
"""A norm without parameters, or (``w_``) with one weight a feature and no bias."""
ModulationKind = Literal["normal", "lora", "swiglu"]
EPS = 1e-6  # of every norm, official code


def make_norm(kind: NormKind, dim: int) -> nn.Module:
    """A norm over the last dimension, of ``dim`` features."""
    if kind == "none":
        return nn.Identity()
    has_weight = kind.startswith("w_")
    if kind.endswith("layernorm"):
        return nn.LayerNorm(dim, eps=EPS, elementwise_affine=has_weight, bias=False)
    return nn.RMSNorm(dim, eps=EPS, elementwise_affine=has_weight)


class Modulation(nn.Module):
    """Shifts, scales and gates of tokens from the condition of their image.

    Args:
        kind: ``normal`` one layer after a SiLU (DiT); ``lora`` that of low rank, to be added to one that all blocks share
            (FiTv2); ``swiglu`` a SwiGLU.
        hidden_size: Width D of the condition.
        count: Vectors of width D that are made.
        rank: Of ``lora``.
        inner_size: Of ``swiglu``.
        bias: Whether the layers have biases.
    """

    def __init__(
        self, kind: ModulationKind, hidden_size: int, count: int, rank: int = 0, inner_size: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        width = count * hidden_size
        self.kind = kind
        if kind == "swiglu":
            self.swiglu = SwiGLU(hidden_size, inner_size, bias=bias, output_size=width)
        elif kind == "lora":
            self.down = nn.Linear(hidden_size, rank, bias=bias)
            self.linear = nn.Linear(rank, width, bias=bias)
        else:
            self.linear = nn.Linear(hidden_size, width, bias=bias)

    @property
    def last(self) -> nn.Linear:
        """The layer that starts at zero, so that gates do."""
        layer = self.swiglu.down_proj if self.kind == "swiglu" else self.linear
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, condition: Tensor) -> Tensor:
        """(B, D) -> (B, count * D)."""
        if self.kind == "swiglu":
            return self.swiglu(condition)
        hidden = F.silu(condition)
        return self.linear(self.down(hidden) if self.kind == "lora" else hidden)


class FiTAttention(nn.Module):
    """Self-attention with normalised, rotated queries and keys.

    Args:
        hidden_size: Width D.
        num_heads: Heads; divides D.
        q_norm: Of queries, over the width of a head.
        k_norm: Of keys.
        bias: Whether queries, keys and values have biases.
        rotates_values: Rotate values too.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        q_norm: NormKind,
        k_norm: NormKind,
        bias: bool = True,
        rotates_values: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.rotates_values = num_heads, rotates_values
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.q_norm = make_norm(q_norm, hidden_size // num_heads)
        self.k_norm = make_norm(k_norm, hidden_size // num_heads)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor, cos: Tensor | None, sin: Tensor | None, mask: Tensor | None) -> Tensor:
        """Mix tokens.

        Args:
            tokens: (B, L, D).
            cos: (B or 1, 1, L, d / 2) float32 of the rotations; None for none.
            sin: Likewise.
            mask: Broadcasts to (B, 1, L, L) bool, False where a token must not be looked at; None looks at all.

        Returns:
            (B, L, D).
        """
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, L, 3, heads, d)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
        query, key = self.q_norm(query), self.k_norm(key)
        if cos is not None and sin is not None:
            query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
            value = apply_rotary(value, cos, sin) if self.rotates_values else value
        mixed = attend(query.to(value.dtype), key.to(value.dtype), value, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, L, D)


class FiTBlock(nn.Module):
    """Attention and a feed-forward layer, each between a modulated norm and a gate.

    Args:
        hidden_size: Width D.
        attention: Of that width.
        feed_forward: Of that width.
        modulation: Of six vectors.
        norm: Before each of the two.
    """

    def __init__(
        self, hidden_size: int, attention: FiTAttention, feed_forward: MLP | SwiGLU, modulation: Modulation, norm: NormKind
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(norm, hidden_size), make_norm(norm, hidden_size)
        self.attention, self.feed_forward, self.modulation = attention, feed_forward, modulation

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        shared: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        mask: Tensor | None,
        image_of: Tensor | None,
    ) -> Tensor:
        """Transform tokens.

        Args:
            tokens: (R, L, D).
            condition: (B, D) of the images.
            shared: (B, 6D) modulation that all blocks share; None for none.
            cos: See ``FiTAttention``.
            sin: Likewise.
            mask: Likewise.
            image_of: (R, L) int64, the image of each token; None if rows are images.

        Returns:
            (R, L, D).
        """
        values = self.modulation(condition)
        values = per_token(values if shared is None else values + shared, image_of)
        shift1, scale1, gate1, shift2, scale2, gate2 = values.chunk(6, dim=-1)  # each (R, 1 or L, D)
        tokens = tokens + gate1 * self.attention(self.norm1(tokens) * (1 + scale1) + shift1, cos, sin, mask)
        return tokens + gate2 * self.feed_forward(self.norm2(tokens) * (1 + scale2) + shift2)


class FiTFinalLayer(nn.Module):
    """Modulated norm and a linear map to the values of a patch.

    Args:
        hidden_size: Width D.
        patch_values: Values of a patch.
        modulation: Of two vectors.
        norm: Before the map.
    """

    def __init__(self, hidden_size: int, patch_values: int, modulation: Modulation, norm: NormKind) -> None:
        super().__init__()
        self.norm = make_norm(norm, hidden_size)
        self.modulation = modulation
        self.linear = nn.Linear(hidden_size, patch_values)

    def forward(self, tokens: Tensor, condition: Tensor, image_of: Tensor | None) -> Tensor:
        """(R, L, D) -> (R, L, patch values); see ``FiTBlock``."""
        shift, scale = per_token(self.modulation(condition), image_of).chunk(2, dim=-1)
        return self.linear(self.norm(tokens) * (1 + scale) + shift)


def per_token(values: Tensor, image_of: Tensor | None) -> Tensor:
    """Values (B, X) of images as (B, 1, X), or as (R, L, X) for tokens of the images ``image_of`` (R, L)."""
    return values[:, None] if image_of is None else values[image_of]
