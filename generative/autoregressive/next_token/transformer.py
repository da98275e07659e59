"""Decoder-only transformer over the tokens of an image, in raster order."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.autoregressive.next_token.causal_blocks import CausalSelfAttention, TransformerBlock, causal_mask, initialize
from generative.core.errors import UserError
from generative.layers.drop_path import drop_path_rates
from generative.layers.kv_cache import CachedSlots, KVCache
from generative.layers.linear import Linear, autocast_dtype
from generative.layers.rope import AxialRotaryEmbedding
from generative.layers.swiglu import SwiGLU, swiglu_hidden_size


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
        mlp_dropout: The same of the SwiGLUs, where they differ from the attention layers; None where they do not.
        drop_path: Rate of stochastic depth in the last block, falling to 0 in the first.
        mlp_multiplier: Of the SwiGLU's inner width before it is rounded up; None for 1.
        initializer_range: Standard deviation of the initial weights (LlamaGen: 0.02); None for one set by width and depth, see
            ``initialize``.
        null_class: Whether there is a null condition; without one there is no label dropout and no guidance.
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
        mlp_dropout: float | None = None,
        drop_path: float = 0.0,
        mlp_multiplier: float | None = None,
        initializer_range: float | None = None,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        grid_height, grid_width = grid_size
        others = {"num_codes": num_codes, "num_classes": num_classes, "grid_size": min(grid_size)}
        check_sizes(hidden_size, depth, num_heads, num_kv_heads, **others)
        check_shares(
            embedding_dropout=embedding_dropout,
            attention_dropout=attention_dropout,
            residual_dropout=residual_dropout,
            mlp_dropout=mlp_dropout or 0.0,
            drop_path=drop_path,
        )
        if class_rope not in ("identity", "zero"):
            raise UserError(f"class_rope must be identity or zero, got {class_rope!r}")
        self.num_codes = num_codes
        self.num_classes = num_classes
        self.sequence_length = grid_height * grid_width
        self.head_size = hidden_size // num_heads
        self.num_kv_heads = num_kv_heads
        self.gradient_checkpointing = False
        self.class_embedding = nn.Embedding(num_classes + null_class, hidden_size)
        self.token_embedding = nn.Embedding(num_codes, hidden_size)
        self.dropout = nn.Dropout(embedding_dropout)  # not named like its argument: config values hide modules of the same name
        self.rotary = AxialRotaryEmbedding(grid_height, grid_width, self.head_size, rope_base, class_rope == "zero")
        inner_size = swiglu_hidden_size(hidden_size, mlp_multiple_of, mlp_multiplier)
        mlp_dropout = residual_dropout if mlp_dropout is None else mlp_dropout
        self.blocks = nn.ModuleList(
            TransformerBlock(
                CausalSelfAttention(hidden_size, num_heads, num_kv_heads, qk_norm, norm_eps, attention_dropout, residual_dropout),
                SwiGLU(hidden_size, inner_size, mlp_dropout),
                hidden_size,
                norm_eps,
                rate,
            )
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.head = Linear(hidden_size, num_codes)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draw the weights as ``initializer_range`` says.

        The head starts at zero: the first prediction is uniform, the first loss ln V.
        """
        initialize(self, self.class_embedding.embedding_dim, len(self.blocks), self.config.initializer_range)
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

    def make_cache(
        self,
        batch_size: int,
        length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KVCache:
        """Allocate an empty cache.

        Args:
            batch_size: Number of sequences, guidance branches counted.
            length: Slots, no more than L; None for L, which ``extend`` asks for.
            device: Where; None for the network's device.
            dtype: Of keys and values; None for autocast's, or without it the network's.
        """
        length = min(length or self.sequence_length, self.sequence_length)
        shape = (len(self.blocks), batch_size, self.num_kv_heads, length, self.head_size)
        device = torch.device(device or self.device)
        keys = torch.zeros(shape, device=device, dtype=dtype or autocast_dtype(device) or self.dtype)
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
        mask = torch.arange(self.sequence_length, device=tokens.device) <= positions[:, None]  # (S, L)
        return self._run(x, positions, cache, mask, None)

    def decode_step(self, token: Tensor, position: int | Tensor, cache: KVCache, class_labels: Tensor | None = None) -> Tensor:
        """Predict one token.

        Args:
            token: (B,) int64, the token before ``position`` (ignored at position 0).
            position: Position to predict, in [0, L). A number reads only the slots filled so far: the faster way, but compiled
                code would be compiled anew for each. A tensor (1,) int64 reads and masks all slots: compiled once.
            cache: Cache of B sequences that holds every earlier position, written in place.
            class_labels: (B,) int64; None is the null condition.

        Returns:
            (B, V) logits.
        """
        if isinstance(position, Tensor):
            return self.extend(token[:, None], position.reshape(1), cache, class_labels)[:, 0]  # (B, V)
        return self.extend_from(position, token[:, None], cache, class_labels)[:, 0]  # (B, V)

    def extend_from(self, start: int, tokens: Tensor, cache: KVCache, class_labels: Tensor | None = None) -> Tensor:
        """``extend`` for positions ``start`` to ``start + S - 1``, reading the filled part of the cache only.

        Args:
            start: First position to predict; every earlier one is in the cache.
            tokens: (B, S) int64; entry s is the token before position ``start + s``.
            cache: Cache of B sequences, written in place.
            class_labels: (B,) int64; None is the null condition.

        Returns:
            (B, S, V) logits.
        """
        stop = start + tokens.shape[1]
        slots = torch.arange(start, stop, device=tokens.device)  # (S,)
        x = self.token_embedding(tokens)  # (B, S, D)
        if start == 0:
            x[:, 0] = self.class_embedding(self._labels(class_labels, len(tokens), tokens.device))
        return self._run(x, slots, cache, causal_mask(start, stop, tokens.device), stop)

    def _run(self, x: Tensor, slots: Tensor, cache: KVCache, mask: Tensor | None, stop: int | None) -> Tensor:
        """Logits of embedded inputs (B, S, D) at some slots, after those in the cache."""
        cos, sin = self.rotary(slots)  # (S, d / 2)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, CachedSlots(*cache.layer(index), slots, mask, stop))  # (B, S, D)
        return self.head(self.norm(x))  # (B, S, V)

    def _labels(self, class_labels: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        if class_labels is not None:
            return class_labels
        if not self.config.null_class:
            raise UserError("this transformer has no null condition (null_class is false); give class_labels")
        return torch.full((batch_size,), self.num_classes, device=device)


def check_sizes(hidden_size: int, depth: int, num_heads: int, num_kv_heads: int, **others: int) -> None:
    """Refuse sizes that cannot be built, naming the argument.

    Args:
        hidden_size: D.
        depth: Blocks.
        num_heads: Query heads.
        num_kv_heads: Key heads.
        others: By name; at least 1 each.
    """
    sizes = others | {"hidden_size": hidden_size, "depth": depth, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if hidden_size % num_heads or hidden_size // num_heads % 4:
        raise UserError(
            f"hidden_size {hidden_size} over num_heads {num_heads} must give heads of a multiple of 4 features; change one"
        )
    if num_heads % num_kv_heads:
        raise UserError(f"num_heads {num_heads} must be a multiple of num_kv_heads, got {num_kv_heads}")


def check_shares(**shares: float) -> None:
    """Refuse shares outside [0, 1), naming the argument."""
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} must be in [0, 1), got {value}")
