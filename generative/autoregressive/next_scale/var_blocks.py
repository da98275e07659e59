"""Blocks of VAR: block-causal attention with normalised queries and keys, adaptive layer norms, drop path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from generative.autoregressive.next_scale.block_causal import QuerySlice, block_causal_attention
from generative.layers.attention import MLP
from generative.layers.linear import linear

# Of the attention with normalised queries and keys: the learned factor on their cosine starts at 4 and is held below 100.
INITIAL_COSINE_SCALE, MAX_COSINE_SCALE = 4.0, 100.0
# Of the attention without: VAR's own factor before 1 / sqrt(d).
PLAIN_ATTENTION_SCALE = 0.25
NORMALIZE_EPS = 1e-12  # as torch.nn.functional.normalize


@dataclass(frozen=True)
class CachedScales:
    """Keys and values of one layer, which a forward pass over some scales extends and reads.

    Attributes:
        keys: (B, heads, L, d), written in place.
        values: (B, heads, L, d), likewise.
        start: Slot of the first new token.
        stop: One behind the slot of the last new token.
    """

    keys: Tensor
    values: Tensor
    start: int
    stop: int


class BlockCausalSelfAttention(nn.Module):
    """Multi-head attention over a pyramid of token maps, with a bias on queries and values but none on keys.

    Args:
        hidden_size: Width D.
        num_heads: Heads.
        qk_l2_norm: Divide queries and keys by their length, and multiply the cosine by a learned factor per head.
        attention_dropout: Share of attention weights dropped in training.
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_l2_norm: bool, attention_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = 1.0 if qk_l2_norm else PLAIN_ATTENTION_SCALE / math.sqrt(hidden_size // num_heads)
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(hidden_size))
        self.v_bias = nn.Parameter(torch.zeros(hidden_size))
        # A learned bias of the keys would matter here, where they are normalised; VAR has none.
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(INITIAL_COSINE_SCALE))) if qk_l2_norm else None
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, slices: Sequence[QuerySlice], levels: Tensor, cached: CachedScales | None = None) -> Tensor:
        """Mix the tokens of x with each other and with those in the cache.

        Args:
            x: (B, S, D) tokens of one scale or of several that follow on each other.
            slices: From ``query_slices`` of these scales.
            levels: (L,) int64 scale of each token.
            cached: Sequences that x extends; None if x starts at the first scale.

        Returns:
            (B, S, D).
        """
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])  # (3 D,)
        qkv = affine(x, self.qkv.weight, bias)  # (B, S, 3 D)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # each (B, S, heads, d)
        if self.log_scale is not None:
            scale = self.log_scale.float().clamp(max=math.log(MAX_COSINE_SCALE)).exp()[:, None]  # (heads, 1)
            q, k = normalize(q, scale), normalize(k, torch.ones_like(scale))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # each (B, heads, S, d)
        if cached is not None:
            cached.keys[:, :, cached.start : cached.stop] = k
            cached.values[:, :, cached.start : cached.stop] = v
            k, v = cached.keys, cached.values  # (B, heads, L, d)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = block_causal_attention(q, k, v, slices, levels, self.scale, dropout)  # (B, heads, S, d)
        return affine(mixed.transpose(1, 2).flatten(2), self.out.weight, self.out.bias)  # (B, S, D)


class FeedForward(MLP):
    """The MLP of a block, its products by the fastest library."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        hidden = F.gelu(affine(tokens, self.fc1.weight, self.fc1.bias), approximate="tanh")  # (B, S, ratio D)
        return affine(hidden, self.fc2.weight, self.fc2.bias)


class VARBlock(nn.Module):
    """Attention and MLP, each behind a modulated norm, gated and added to the residual stream (adaptive layer norm).

    Args:
        hidden_size: Width D.
        num_heads: Heads.
        mlp_ratio: Inner width of the MLP over D.
        shared_adaln: Learn a table that is added to modulations shared by all blocks, rather than a projection of the class.
        qk_l2_norm: See ``BlockCausalSelfAttention``.
        norm_eps: Epsilon of the layer norms.
        dropout: Share of each layer's output features dropped in training.
        attention_dropout: Share of attention weights dropped in training.
        drop_path: Share of images that skip a layer in training (arXiv 1603.09382).
    """

    forward_methods = ("modulate",)
    """What else computes with its weights: FSDP gathers them there too (``generative.core.sharding``)."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float,
        shared_adaln: bool,
        qk_l2_norm: bool,
        norm_eps: float,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.attention = BlockCausalSelfAttention(hidden_size, num_heads, qk_l2_norm, attention_dropout)
        self.mlp = FeedForward(hidden_size, round(hidden_size * mlp_ratio))
        self.modulation = None if shared_adaln else nn.Linear(hidden_size, 6 * hidden_size)
        self.modulation_table = nn.Parameter(torch.randn(6, hidden_size) / hidden_size**0.5) if shared_adaln else None
        self.norm_eps = norm_eps
        self.dropout = nn.Dropout(dropout)
        self.drop_path = drop_path

    @property
    def modulation_rows(self) -> Tensor:
        """Weights that make the modulations, a view whose first axis is of the six: gains, scales, shifts."""
        if self.modulation_table is not None:
            return self.modulation_table
        assert self.modulation is not None
        return self.modulation.weight.unflatten(0, (6, -1))

    def modulate(self, condition: Tensor) -> Tensor:
        """Modulations (B, 6, D): of the activated class embedding (B, D), or of the shared ones (B, 6, D)."""
        if self.modulation_table is not None:
            return condition + self.modulation_table
        assert self.modulation is not None
        return self.modulation(condition).unflatten(-1, (6, -1))

    def forward(
        self,
        x: Tensor,
        modulations: Tensor,
        slices: Sequence[QuerySlice],
        levels: Tensor,
        cached: CachedScales | None = None,
    ) -> Tensor:
        """(B, S, D) and modulations (B, 6, D) -> (B, S, D); other arguments as in ``BlockCausalSelfAttention``."""
        gain1, gain2, scale1, scale2, shift1, shift2 = modulations[:, :, None].unbind(1)  # each (B, 1, D)
        mixed = self.attention(modulated_norm(x, scale1, shift1, self.norm_eps), slices, levels, cached)  # (B, S, D)
        x = torch.addcmul(x, self.dropout(mixed), self.skip(gain1))
        mixed = self.mlp(modulated_norm(x, scale2, shift2, self.norm_eps))  # (B, S, D)
        return torch.addcmul(x, self.dropout(mixed), self.skip(gain2))

    def skip(self, gain: Tensor) -> Tensor:
        """Drop path: zero the gain (B, 1, D) of some images and raise that of the others; cheaper than on whole features."""
        if not self.training or self.drop_path == 0:
            return gain
        keep = torch.rand(len(gain), 1, 1, device=gain.device) >= self.drop_path
        return gain * keep / (1 - self.drop_path)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``torch.nn.functional.linear``; in float32 on a CPU its product is the faster one of ``generative.layers.linear``."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return linear(x, weight).add_(bias)
    return F.linear(x, weight, bias)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``norm(x) (1 + scale) + shift`` with a layer norm that has no weights of its own; (B, S, D), (B, 1, D) -> (B, S, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


class Normalize(torch.autograd.Function):
    """Division by length with the gradient written out: half the passes of what autograd makes of it.

    Of y = s x / |x| with a gradient g it is s / |x| (g - y (y . g) / s^2), and (y . g) / s for the scale s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        """Vectors (B, S, heads, d) and scales (heads, 1) -> (B, S, heads, d)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)  # (B, S, heads, 1)
        factor = scale / lengths.clamp(min=NORMALIZE_EPS)
        result = x * factor.to(x.dtype)
        ctx.save_for_backward(result, factor, scale)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of both, where asked for."""
        result, factor, scale = ctx.saved_tensors
        along = (gradient * result).sum(dim=-1, keepdim=True, dtype=factor.dtype)  # (B, S, heads, 1)
        of_scale = (along / scale).sum(dim=(0, 1)).to(scale.dtype) if ctx.needs_input_grad[1] else None
        share = (factor * along / scale.square()).to(result.dtype)
        return torch.addcmul(gradient * factor.to(result.dtype), result, share, value=-1), of_scale


def normalize(x: Tensor, scale: Tensor) -> Tensor:
    """Vectors (B, S, heads, d) brought to a length of ``scale`` (heads, 1); once differentiable."""
    if torch.compiler.is_compiling():
        return F.normalize(x, dim=-1, eps=NORMALIZE_EPS) * scale.to(x.dtype)
    result: Tensor = Normalize.apply(x, scale)
    return result
