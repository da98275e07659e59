"""Decoder-only transformer over the tokens of an image, in raster order."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.kv_cache import CachedSlots, KVCache
from generative.layers.rope import AxialRotaryEmbedding, apply_rotary
from generative.layers.swiglu import SwiGLU, swiglu_hidden_size


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
        self.qkv_proj = nn.Linear(hidden_size, (num_heads + 2 * num_kv_heads) * self.head_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)
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
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q = apply_rotary(self.q_norm(q), cos, sin)  # (B, heads, S, d)
        k = apply_rotary(self.k_norm(k), cos, sin)  # (B, kv heads, S, d)
        mask = None
        if cached is not None:
            k = cached.keys.index_copy_(2, cached.slots, k)  # (B, kv heads, L, d)
            v = cached.values.index_copy_(2, cached.slots, v)
            mask = cached.mask
        if self.num_kv_heads != self.num_heads:
            repeats = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)  # (B, heads, ..., d)
        dropout = self.attention_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=cached is None)
        x = x.transpose(1, 2).flatten(2)  # (B, S, D)
        return self.dropout(self.out_proj(x))


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, then SwiGLU, each added to the residual stream.

    Args:
        attention: Its attention layer.
        mlp: Its feed-forward layer.
        hidden_size: Width D.
        norm_eps: Epsilon of the RMS norms (arXiv 1910.07467).
    """

    def __init__(self, attention: CausalSelfAttention, mlp: SwiGLU, hidden_size: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.mlp = mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: CachedSlots | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D); arguments as in ``CausalSelfAttention``."""
        x = x + self.attention(self.attention_norm(x), cos, sin, cached)
        return x + self.mlp(self.mlp_norm(x))


class ImageTransformer(ModelMixin, ConfigMixin):
    """Class-conditional decoder-only transformer in the manner of LlamaGen (arXiv 2406.06525).

    The class is embedded as slot 0 of the sequence, token i as slot i + 1; slot i predicts token i. Pre-norm blocks with RMS
    norm, SwiGLU, rotary positions over the token grid, no biases, a head that does not share the embedding's weights.

    Args:
        num_codes: V, number of token ids.
        num_classes: Number of classes; label ``num_classes`` is the null condition.
        grid_size: Rows and columns of the token grid; L is their product.
        hidden_size: Width D of the residual stream.
        depth: Number of blocks.
        num_heads: Attention heads; ``hidden_size / num_heads`` must be a multiple of 4.
        num_kv_heads: Key and value heads; None for as many as ``num_heads``.
        mlp_multiple_of: The SwiGLU's inner width is 8/3 of ``hidden_size``, rounded up to a multiple of this.
        qk_norm: Normalise queries and keys.
        rope_base: Base of the rotary frequencies.
        class_rope: Rotation of the class slot: ``identity`` leaves it unrotated, ``zero`` makes its query and key vanish
            (LlamaGen).
        norm_eps: Epsilon of all RMS norms.
        embedding_dropout: Share of embedded features dropped in training.
        attention_dropout: Share of attention weights dropped in training.
        residual_dropout: Share of each layer's output features dropped in training.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]

    @register_to_config
    def __init__(
        self,
        num_codes: int,
        num_classes: int,
        grid_size: tuple[int, int] = (16, 16),
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_kv_heads: int | None = None,
        mlp_multiple_of: int = 256,
        qk_norm: bool = False,
        rope_base: float = 10000.0,
        class_rope: Literal["identity", "zero"] = "identity",
        norm_eps: float = 1e-5,
        embedding_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        grid_height, grid_width = grid_size
        _check_sizes(num_codes, num_classes, grid_height, grid_width, hidden_size, depth, num_heads, num_kv_heads)
        if class_rope not in ("identity", "zero"):
            raise UserError(f"class_rope must be identity or zero, got {class_rope!r}")
        self.num_codes = num_codes
        self.num_classes = num_classes
        self.sequence_length = grid_height * grid_width
        self.head_size = hidden_size // num_heads
        self.num_kv_heads = num_kv_heads
        self.gradient_checkpointing = False
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.token_embedding = nn.Embedding(num_codes, hidden_size)
        self.dropout = nn.Dropout(embedding_dropout)  # not named like its argument: config values hide modules of the same name
        self.rotary = AxialRotaryEmbedding(grid_height, grid_width, self.head_size, rope_base, class_rope == "zero")
        inner_size = swiglu_hidden_size(hidden_size, mlp_multiple_of)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                CausalSelfAttention(hidden_size, num_heads, num_kv_heads, qk_norm, norm_eps, attention_dropout, residual_dropout),
                SwiGLU(hidden_size, inner_size, residual_dropout),
                hidden_size,
                norm_eps,
            )
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.head = nn.Linear(hidden_size, num_codes, bias=False)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Normal weights of std 1 / sqrt(3 D), as in VAR, the layers that write to the residual stream smaller by sqrt(2 depth).

        The head starts at zero: the first prediction is uniform, the first loss ln V.
        """
        std = 1 / math.sqrt(3 * self.class_embedding.embedding_dim)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
        residual_std = std / math.sqrt(2 * len(self.blocks))
        for module in self.modules():
            if isinstance(module, CausalSelfAttention):
                nn.init.normal_(module.out_proj.weight, std=residual_std)
            elif isinstance(module, SwiGLU):
                nn.init.normal_(module.down_proj.weight, std=residual_std)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict every token from the class and the tokens before it (teacher forcing).

        Args:
            tokens: (B, S) int64 in [0, num_codes), S <= L; the last one is predicted but not read.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.

        Returns:
            (B, S, V) logits; position i is the prediction of token i.
        """
        batch_size, length = tokens.shape
        if not 1 <= length <= self.sequence_length:
            raise ValueError(f"tokens must have 1 to {self.sequence_length} positions, got {length}")
        labels = self._labels(class_labels, batch_size, tokens.device)
        x = torch.cat([self.class_embedding(labels)[:, None], self.token_embedding(tokens[:, :-1])], dim=1)  # (B, S, D)
        x = self.dropout(x)
        cos, sin = self.rotary(torch.arange(length, device=tokens.device))  # (S, d / 2)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, cos, sin)  # (B, S, D)
            else:
                x = block(x, cos, sin)  # (B, S, D)
        return self.head(self.norm(x))  # (B, S, V)

    def make_cache(self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """Allocate an empty cache.

        Args:
            batch_size: Number of sequences, guidance branches counted.
            device: Where; None for the network's device.
            dtype: Of keys and values; None for the network's dtype.
        """
        shape = (len(self.blocks), batch_size, self.num_kv_heads, self.sequence_length, self.head_size)
        keys = torch.zeros(shape, device=device or self.device, dtype=dtype or self.dtype)
        return KVCache(keys, torch.zeros_like(keys))

    def extend(self, tokens: Tensor, positions: Tensor, cache: KVCache, class_labels: Tensor | None = None) -> Tensor:
        """Predict tokens at some positions and add the slots read for it to the cache; shapes do not change from call to call.

        Args:
            tokens: (B, S) int64; entry s is the token BEFORE ``positions[s]`` (anything valid at position 0, which reads the
                class instead).
            positions: (S,) int64, ascending; every earlier position is in the cache already or among them.
            cache: Cache of B sequences, written in place.
            class_labels: (B,) int64; None is the null condition.

        Returns:
            (B, S, V) logits, equal to those of ``forward`` at these positions.
        """
        labels = self._labels(class_labels, tokens.shape[0], tokens.device)
        is_class = (positions == 0)[:, None]  # (S, 1)
        x = torch.where(is_class, self.class_embedding(labels)[:, None], self.token_embedding(tokens))  # (B, S, D)
        cos, sin = self.rotary(positions)  # (S, d / 2)
        mask = torch.arange(self.sequence_length, device=tokens.device) <= positions[:, None]  # (S, L)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, CachedSlots(*cache.layer(index), positions, mask))  # (B, S, D)
        return self.head(self.norm(x))  # (B, S, V)

    def decode_step(self, token: Tensor, position: int | Tensor, cache: KVCache, class_labels: Tensor | None = None) -> Tensor:
        """Predict one token.

        Args:
            token: (B,) int64, the token before ``position`` (ignored at position 0).
            position: Position to predict, in [0, L); a tensor (1,) int64 keeps compiled code from specialising on it.
            cache: Cache of B sequences that holds every earlier position, written in place.
            class_labels: (B,) int64; None is the null condition.

        Returns:
            (B, V) logits.
        """
        positions = torch.as_tensor(position, device=token.device).reshape(1)
        return self.extend(token[:, None], positions, cache, class_labels)[:, 0]  # (B, V)

    def _labels(self, class_labels: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        if class_labels is None:
            return torch.full((batch_size,), self.num_classes, device=device)
        return class_labels


def _check_sizes(
    num_codes: int,
    num_classes: int,
    grid_height: int,
    grid_width: int,
    hidden_size: int,
    depth: int,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """Refuse sizes that cannot be built, naming the argument."""
    for name, value in (
        ("num_codes", num_codes),
        ("num_classes", num_classes),
        ("grid_size", min(grid_height, grid_width)),
        ("hidden_size", hidden_size),
        ("depth", depth),
        ("num_heads", num_heads),
        ("num_kv_heads", num_kv_heads),
    ):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if hidden_size % num_heads or hidden_size // num_heads % 4:
        raise UserError(
            f"hidden_size {hidden_size} over num_heads {num_heads} must give heads of a multiple of 4 features; change one"
        )
    if num_heads % num_kv_heads:
        raise UserError(f"num_heads {num_heads} must be a multiple of num_kv_heads, got {num_kv_heads}")
