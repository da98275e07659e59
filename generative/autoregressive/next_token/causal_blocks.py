"""Blocks of LLaMA-like transformers over tokens: causal attention with rotary positions, then SwiGLU."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.drop_path import DropPath
from generative.layers.kv_cache import CachedSlots
from generative.layers.linear import Linear
from generative.layers.rope import apply_rotary
from generative.layers.swiglu import SwiGLU

# Without matrix units for bfloat16, torch's attention for CPUs takes longer in bfloat16 than in float32: its backward pass three
# times as long on an AMD EPYC (AVX-512 with BF16).
SLOW_HALF_ATTENTION = not getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention with rotary positions, without biases.

    Args:
        hidden_size: Width D.
        num_heads: Query heads.
        num_kv_heads: Key and value heads, each shared by ``num_heads / num_kv_heads`` query heads (arXiv 2305.13245).
        qk_norm: RMS-normalise queries and keys per head before they are rotated (arXiv 2010.04245, 2302.05442).
        norm_eps: Epsilon of those norms.
        attention_dropout: Share of attention weights dropped in training.
        residual_dropout: Share of output features dropped in training.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        qk_norm: bool,
        norm_eps: float,
        attention_dropout: float,
        residual_dropout: float,
    ) -> None:
        super().__init__()
        self.head_size = hidden_size // num_heads
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.attention_dropout = attention_dropout
        self.qk_norm = qk_norm
        self.qkv_proj = Linear(hidden_size, (num_heads + 2 * num_kv_heads) * self.head_size)
        self.out_proj = Linear(hidden_size, hidden_size)
        self.q_norm = nn.RMSNorm(self.head_size, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_size, eps=norm_eps) if qk_norm else nn.Identity()
        self.dropout = nn.Dropout(residual_dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: CachedSlots | None = None) -> Tensor:
        """Attend to this and earlier slots.

        Args:
            x: (B, S, D).
            cos: (S, d / 2) cosines of the rotary angles.
            sin: (S, d / 2) sines.
            cached: Sequences that x extends; None if x is a whole sequence from its first slot on.

        Returns:
            (B, S, D).
        """
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (B, heads + 2 kv heads, S, d)
        widen = cached is None and SLOW_HALF_ATTENTION and heads.device.type == "cpu" and not torch.compiler.is_compiling()
        if widen:
            heads = heads.float()  # itself if it is float32
        q_and_k, v = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.qk_norm:
            q, k = q_and_k.split([self.num_heads, self.num_kv_heads], dim=1)
            q = apply_rotary(self.q_norm(q), cos, sin)  # (B, heads, S, d)
            k = apply_rotary(self.k_norm(k), cos, sin)  # (B, kv heads, S, d)
        else:
            q, k = apply_rotary(q_and_k, cos, sin).split([self.num_heads, self.num_kv_heads], dim=1)
        if cached is None:
            k, v = self._repeat(k), self._repeat(v)  # (B, heads, S, d)
            dropout = self.attention_dropout if self.training else 0.0
            with torch.autocast(q.device.type, enabled=False) if widen else nullcontext():
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, heads, S, d)
        else:
            x = self._attend(q, *cached.write(k, v), cached)  # (B, heads, S, d)
        x = x.transpose(1, 2).flatten(2).to(self.out_proj.weight.dtype if widen else x.dtype)  # (B, S, D)
        return self.dropout(self.out_proj(x))

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, cached: CachedSlots) -> Tensor:
        """Attention of the new inputs to cached slots."""
        if cached.mask is not None or q.shape[2] != 1:
            return F.scaled_dot_product_attention(q, self._repeat(keys), self._repeat(values), attn_mask=cached.mask)
        # The query heads that share a key head become as many queries: the cache need not be copied.
        groups = q.reshape(len(q), self.num_kv_heads, -1, self.head_size)  # (B, kv heads, heads / kv heads, d)
        if q.device.type != "cpu":
            return F.scaled_dot_product_attention(groups, keys, values).reshape(q.shape)
        # torch's kernel for CPUs is made for many queries: with one, plain products take half its time, in bfloat16 a third.
        if keys.dtype != torch.float32:
            keys, values = cached.keys, cached.values  # products of part of them would copy that part first
        scores = torch.matmul(groups * self.head_size**-0.5, keys.transpose(-1, -2)).float()  # (B, kv heads, groups, slots)
        scores[..., cached.stop :] = -math.inf
        return torch.matmul(scores.softmax(dim=-1).to(values.dtype), values).reshape(q.shape)

    def _repeat(self, heads: Tensor) -> Tensor:
        """(B, kv heads, ..., d) -> (B, heads, ..., d)."""
        if self.num_kv_heads == self.num_heads:
            return heads
        return heads.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, then SwiGLU, each added to the residual stream.

    Args:
        attention: Its attention layer.
        mlp: Its feed-forward layer.
        hidden_size: Width D.
        norm_eps: Epsilon of the RMS norms (arXiv 1910.07467).
        drop_path: Rate of stochastic depth of either branch.
    """

    def __init__(
        self, attention: CausalSelfAttention, mlp: SwiGLU, hidden_size: int, norm_eps: float, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: CachedSlots | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D); arguments as in ``CausalSelfAttention``."""
        x = x + self.drop_path(self.attention(self.attention_norm(x), cos, sin, cached))
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


def initialize(network: nn.Module, hidden_size: int, depth: int, initializer_range: float | None) -> None:
    """Draw the weights of linear layers and embeddings from centred normal distributions.

    Args:
        network: Changed in place.
        hidden_size: D.
        depth: Blocks that write to one residual stream.
        initializer_range: Standard deviation of all of them (LlamaGen: 0.02). None for 1 / sqrt(3 D), as in VAR, with the layers
            that write to the residual stream smaller by sqrt(2 depth).
    """
    std = 1 / math.sqrt(3 * hidden_size) if initializer_range is None else initializer_range
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
    if initializer_range is not None:
        return
    for module in network.modules():
        if isinstance(module, CausalSelfAttention):
            nn.init.normal_(module.out_proj.weight, std=std / math.sqrt(2 * depth))
        elif isinstance(module, SwiGLU):
            nn.init.normal_(module.down_proj.weight, std=std / math.sqrt(2 * depth))


def causal_mask(start: int, stop: int, device: torch.device) -> Tensor | None:
    """Which of the slots before ``stop`` those from ``start`` on attend to, (S, stop) bool; None if there is but one new slot."""
    if stop - start == 1:
        return None
    return torch.ones(stop - start, stop, dtype=torch.bool, device=device).tril(start)
