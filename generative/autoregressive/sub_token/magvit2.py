"""Open-MAGVIT2's autoregressive transformer: asymmetric token factorisation and next sub-token prediction."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.autoregressive.next_token.causal_blocks import CausalSelfAttention, TransformerBlock, causal_mask, initialize
from generative.autoregressive.next_token.transformer import check_shares, check_sizes
from generative.core.errors import UserError
from generative.layers.drop_path import drop_path_rates
from generative.layers.kv_cache import CachedSlots, KVCache
from generative.layers.linear import Linear, autocast_dtype
from generative.layers.rope import AxialRotaryEmbedding
from generative.layers.swiglu import SwiGLU, swiglu_hidden_size
from generative.tokenizers.lookup_free_quantizer import join_ids, split_ids


class MAGVIT2Transformer(ModelMixin, ConfigMixin):
    """Class-conditional transformer over tokens of huge codebooks (Open-MAGVIT2, arXiv 2409.04410, section 3.2).

    An id is taken apart into K sub-tokens, the first of which has the lowest bits. A spatial transformer, LlamaGen's, reads the
    class and the tokens before (the sums of their sub-tokens' embeddings) and gives one context vector per position; at each
    position an intra transformer reads that context and the sub-tokens before, and predicts the next sub-token: its slots are
    [context, sub-token 0, ..., sub-token K - 2], and slot k goes through head k. Both share the rotary positions of LlamaGen, in
    which the first slot's queries and keys vanish.

    Args:
        num_codes: V; a power of two.
        num_classes: Number of classes; label ``num_classes`` is the null condition.
        sub_token_bits: Bits of each sub-token, two or more of them, which add up to the bits of a code.
        grid_size: Rows and columns of the token grid; L is their product.
        hidden_size: Width D.
        depth: Blocks of the spatial transformer.
        intra_depth: Blocks of the intra transformer.
        num_heads: Attention heads; ``hidden_size / num_heads`` must be a multiple of 4.
        num_kv_heads: Key and value heads; None for as many as ``num_heads``.
        mlp_multiple_of: The SwiGLU's inner width is 8/3 of ``hidden_size``, rounded up to a multiple of this.
        mlp_multiplier: Of that width before it is rounded up; None for 1.
        rope_base: Base of the rotary frequencies.
        norm_eps: Epsilon of all RMS norms.
        initializer_range: Standard deviation of the initial weights; None for one set by width and depth, see ``initialize``.
        embedding_dropout: Share of embedded features dropped in training.
        attention_dropout: Share of attention weights dropped in training.
        residual_dropout: Share of each attention layer's output features dropped in training.
        mlp_dropout: The same of the SwiGLUs; None for as much.
        drop_path: Rate of stochastic depth in the last block of each of the two, falling to 0 in the first.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]

    @register_to_config
    def __init__(
        self,
        num_codes: int = 2**18,
        num_classes: int = 1000,
        sub_token_bits: tuple[int, ...] = (6, 12),
        grid_size: tuple[int, int] = (16, 16),
        hidden_size: int = 1024,
        depth: int = 24,
        intra_depth: int = 2,
        num_heads: int = 16,
        num_kv_heads: int | None = None,
        mlp_multiple_of: int = 256,
        mlp_multiplier: float | None = None,
        rope_base: float = 10000.0,
        norm_eps: float = 1e-5,
        initializer_range: float | None = 0.02,
        embedding_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.1,
        mlp_dropout: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        others = {"num_classes": num_classes, "grid_size": min(grid_size), "intra_depth": intra_depth}
        check_sizes(hidden_size, depth, num_heads, num_kv_heads, **others)
        mlp_dropout = residual_dropout if mlp_dropout is None else mlp_dropout
        check_shares(
            embedding_dropout=embedding_dropout,
            attention_dropout=attention_dropout,
            residual_dropout=residual_dropout,
            mlp_dropout=mlp_dropout,
            drop_path=drop_path,
        )
        check_sub_tokens(num_codes, tuple(sub_token_bits))
        self.bits = tuple(sub_token_bits)
        self.num_classes = num_classes
        self.sequence_length = grid_size[0] * grid_size[1]
        self.num_kv_heads = num_kv_heads
        self.head_size = hidden_size // num_heads
        self.gradient_checkpointing = False
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.embeddings = nn.ModuleList(nn.Embedding(2**count, hidden_size) for count in self.bits)
        self.dropout = nn.Dropout(embedding_dropout)
        # The intra transformer's slots are the first ones of the same table, of which there must be enough.
        self.rotary = AxialRotaryEmbedding(*grid_size, self.head_size, rope_base, zero_class_slot=True)
        inner_size = swiglu_hidden_size(hidden_size, mlp_multiple_of, mlp_multiplier)

        def make_blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                TransformerBlock(
                    CausalSelfAttention(
                        hidden_size, num_heads, num_kv_heads, False, norm_eps, attention_dropout, residual_dropout
                    ),
                    SwiGLU(hidden_size, inner_size, mlp_dropout),
                    hidden_size,
                    norm_eps,
                    rate,
                )
                for rate in drop_path_rates(drop_path, count)
            )

        self.blocks = make_blocks(depth)
        self.intra_blocks = make_blocks(intra_depth)
        self.norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.heads = nn.ModuleList(Linear(hidden_size, 2**count) for count in self.bits)
        initialize(self, hidden_size, depth + intra_depth, initializer_range)
        for head in self.heads:
            nn.init.zeros_(head.get_parameter("weight"))  # the first prediction is uniform

    @property
    def num_sub_tokens(self) -> int:
        """K."""
        return len(self.bits)

    def split(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) -> sub-tokens (B, L, K) int64."""
        return torch.stack(split_ids(tokens, self.bits), dim=-1)

    def join(self, sub_tokens: Tensor) -> Tensor:
        """Sub-tokens (B, L, K) -> ids (B, L)."""
        return join_ids(sub_tokens.unbind(-1), self.bits)

    def embed(self, sub_tokens: Tensor) -> Tensor:
        """Sum of the embeddings of all sub-tokens (B, S, K) of each position -> (B, S, D)."""
        first, *others = (embedding(sub_tokens[..., k]) for k, embedding in enumerate(self.embeddings))
        for other in others:
            first = first + other
        return first

    def forward(self, tokens: Tensor, class_labels: Tensor | None = None) -> list[Tensor]:
        """Predict every sub-token from the class, the tokens before and the sub-tokens before (teacher forcing).

        Args:
            tokens: (B, S) int64 in [0, V), S <= L.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.

        Returns:
            K logits, (B, S, 2^bits[k]).
        """
        batch_size, length = tokens.shape
        if not 1 <= length <= self.sequence_length:
            raise ValueError(f"tokens must have 1 to {self.sequence_length} positions, got {length}")
        sub_tokens = self.split(tokens)  # (B, S, K)
        labels = self._labels(class_labels, batch_size, tokens.device)
        x = torch.cat([self.class_embedding(labels)[:, None], self.embed(sub_tokens[:, :-1])], dim=1)  # (B, S, D)
        contexts = self._blocks(self.blocks, self.dropout(x))  # (B, S, D)
        slots = [contexts, *(self.embeddings[k](sub_tokens[..., k]) for k in range(self.num_sub_tokens - 1))]
        x = self._blocks(self.intra_blocks, torch.stack(slots, dim=2).flatten(0, 1))  # (B S, K, D)
        x = self.norm(x).unflatten(0, (batch_size, length))  # (B, S, K, D)
        return [head(x[:, :, k]) for k, head in enumerate(self.heads)]

    def make_cache(self, batch_size: int, length: int | None = None) -> KVCache:
        """Empty cache of the spatial transformer for so many sequences, guidance branches counted, and at most L slots."""
        return self._make_cache(len(self.blocks), batch_size, min(length or self.sequence_length, self.sequence_length))

    def make_intra_cache(self, batch_size: int) -> KVCache:
        """Empty cache of the intra transformer; positions use it one after the other."""
        return self._make_cache(len(self.intra_blocks), batch_size, self.num_sub_tokens)

    def extend(self, start: int, sub_tokens: Tensor, cache: KVCache, class_labels: Tensor | None = None) -> Tensor:
        """Contexts of positions ``start`` to ``start + S - 1``, whose slots are added to the cache.

        Args:
            start: First position; every earlier one is in the cache.
            sub_tokens: (B, S, K) int64; entry s is the token before position ``start + s`` (anything valid before position 0).
            cache: Of ``make_cache``, written in place.
            class_labels: (B,) int64; None is the null condition.

        Returns:
            (B, S, D), equal to those within ``forward``.
        """
        x = self.embed(sub_tokens)  # (B, S, D)
        if start == 0:
            x[:, 0] = self.class_embedding(self._labels(class_labels, len(x), x.device))
        return self._cached_blocks(self.blocks, x, start, cache)

    def predict_sub_token(self, start: int, context: Tensor, sub_tokens: Tensor, cache: KVCache) -> Tensor:
        """Predict the next sub-token of one position.

        Args:
            start: Sub-tokens of this position that the cache holds the slots before of; usually all.
            context: (B, D), of ``extend``; the input of slot 0.
            sub_tokens: (B, k) int64, those known of this position; k < K.
            cache: Of ``make_intra_cache``, written in place.

        Returns:
            (B, 2^bits[k]) logits of sub-token k.
        """
        known = sub_tokens.shape[1]
        slots = [self.embeddings[k - 1](sub_tokens[:, k - 1]) if k else context for k in range(start, known + 1)]
        x = self._cached_blocks(self.intra_blocks, torch.stack(slots, dim=1), start, cache)  # (B, known + 1 - start, D)
        return self.heads[known](self.norm(x[:, -1]))

    def _blocks(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Run whole sequences (B, S, D) through some blocks."""
        cos, sin = self.rotary(torch.arange(x.shape[1], device=x.device))  # (S, d / 2)
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, cos, sin)  # (B, S, D)
            else:
                x = block(x, cos, sin)  # (B, S, D)
        return x

    def _cached_blocks(self, blocks: nn.ModuleList, x: Tensor, start: int, cache: KVCache) -> Tensor:
        """Run the slots from ``start`` on (B, S, D) through some blocks, after those in the cache."""
        stop = start + x.shape[1]
        slots = torch.arange(start, stop, device=x.device)  # (S,)
        cos, sin = self.rotary(slots)
        mask = causal_mask(start, stop, x.device)
        for index, block in enumerate(blocks):
            x = block(x, cos, sin, CachedSlots(*cache.layer(index), slots, mask, stop))
        return x

    def _make_cache(self, depth: int, batch_size: int, length: int) -> KVCache:
        shape = (depth, batch_size, self.num_kv_heads, length, self.head_size)
        keys = torch.zeros(shape, device=self.device, dtype=autocast_dtype(self.device) or self.dtype)
        return KVCache(keys, torch.zeros_like(keys))

    def _labels(self, class_labels: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        if class_labels is None:
            return torch.full((batch_size,), self.num_classes, device=device)
        return class_labels


def check_sub_tokens(num_codes: int, bits: tuple[int, ...]) -> None:
    """Refuse sub-tokens that are too few or do not make up a code, with a ``UserError``."""
    if num_codes < 4 or num_codes & (num_codes - 1):
        raise UserError(f"num_codes must be a power of two, 4 or more, got {num_codes}")
    if len(bits) < 2 or min(bits) < 1 or 2 ** sum(bits) != num_codes:
        raise UserError(
            f"sub_token_bits must be two or more positive numbers that add up to the {num_codes.bit_length() - 1} bits of "
            f"num_codes={num_codes}, got {list(bits)}; ImageTransformer predicts whole tokens"
        )
