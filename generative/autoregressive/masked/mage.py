"""MAGE: an encoder that sees few tokens and a decoder that predicts the masked ones (arXiv 2211.09117), as RCG conditions it
(arXiv 2312.03701): by a representation of the image, by its class, or by nothing."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.autoregressive.masked.maskgit import check_transformer_sizes
from generative.core.errors import UserError
from generative.layers.encoder_block import EncoderBlock
from generative.layers.vector_embedding import VectorEmbedding

ConditionKind = Literal["none", "class", "representation"]
INIT_STD = 0.02  # of positions, and of tables unless told otherwise (official implementation)
HEAD_NORM_EPS = 1e-5  # torch's default, which the official head has
LEADING_ROW = 76
"""Row behind the codes whose embedding leads the tokens: officially id 1,100 of 1,024 codes and 1,000 more ids."""
# Constructor arguments of the published sizes (official implementation; appendix of arXiv 2211.09117).
MAGE_SIZES = MappingProxyType(
    {
        "B": MappingProxyType({"hidden_size": 768, "depth": 12, "num_heads": 12, "decoder_hidden_size": 768}),
        "L": MappingProxyType({"hidden_size": 1024, "depth": 24, "num_heads": 16, "decoder_hidden_size": 1024}),
        "H": MappingProxyType({"hidden_size": 1280, "depth": 32, "num_heads": 16, "decoder_hidden_size": 1280}),
    }
)


class MAGETransformer(ModelMixin, ConfigMixin):
    """A vision transformer's encoder over the kept tokens, a decoder over all of them, and the token table as its last layer.

    A leading token carries the condition; the decoder also puts it, embedded, in every place that is dropped or masked. Word
    embeddings are constant in the last layer: they learn as inputs alone.

    Args:
        num_codes: V.
        num_classes: Number of classes; the label ``num_classes`` is the null condition. 1 where the class has no effect.
        condition: ``representation`` or ``class``, whose embedding is the leading token; ``none`` for a learned one.
        representation_dim: D' of the representations.
        class_dropout_prob: Share of conditions that training drops, for guidance; the objective does it. At 0 there is no null
            condition.
        grid_size: Rows and columns of the token grid; L is their product.
        hidden_size: Width D of the encoder and of the token table.
        depth: Blocks of the encoder.
        num_heads: Heads of an encoder block; divides ``hidden_size``.
        decoder_hidden_size: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Heads of a decoder block.
        mlp_ratio: Width between the layers of an MLP over a block's.
        dropout: Share dropped in training of embeddings, attention weights and layer outputs.
        norm_eps: Of all layer norms but the head's.
        num_spare_ids: Rows of the token table between the codes and the mask, one of which leads the tokens: officially 1,000.
        token_std: Of the initial tables. Logits begin as large as ``token_std`` times the root of the width, and the table learns
            as inputs alone: a narrow network wants more than the official 0.02.

    Raises:
        UserError: If a size is below 1, heads do not divide a width, or the condition is of no such kind.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]

    @register_to_config
    def __init__(
        self,
        num_codes: int = 1024,
        num_classes: int = 1,
        condition: ConditionKind = "representation",
        representation_dim: int = 256,
        class_dropout_prob: float = 0.1,
        grid_size: tuple[int, int] = (16, 16),
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_hidden_size: int = 768,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        norm_eps: float = 1e-6,
        num_spare_ids: int = 1,
        token_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        sizes = {"num_codes": num_codes, "grid_size": min(grid_size), "num_spare_ids": num_spare_ids}
        check_transformer_sizes(hidden_size, depth, num_heads, num_classes, representation_dim=representation_dim, **sizes)
        check_transformer_sizes(decoder_hidden_size, decoder_depth, decoder_num_heads, num_classes)
        if condition not in get_args(ConditionKind):
            raise UserError(f"condition must be one of {', '.join(get_args(ConditionKind))}, got {condition!r}")
        if not 0 <= class_dropout_prob < 1:
            raise UserError(f"class_dropout_prob must be in [0, 1), got {class_dropout_prob}")
        if condition == "none" and class_dropout_prob:
            raise UserError(
                f"class_dropout_prob {class_dropout_prob} needs a condition to drop, and condition is none; set it to 0"
            )
        if not token_std > 0:
            raise UserError(f"token_std must be positive, got {token_std}")
        self.num_classes = num_classes
        self.sequence_length = math.prod(grid_size)
        self.leading_token = num_codes + min(LEADING_ROW, num_spare_ids - 1)
        self.mask_token = num_codes + num_spare_ids
        self.gradient_checkpointing = False
        self.token_embedding = nn.Embedding(self.mask_token + 1, hidden_size)
        self.position_embedding = nn.Embedding(1 + self.sequence_length, hidden_size)  # slot 0 is the leading token's
        self.embedding_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.drop = nn.Dropout(dropout)  # not named like its argument: config values hide modules of the same name
        self.class_embedding: nn.Embedding | None = None
        self.vector_embedding: VectorEmbedding | None = None
        if condition == "class":
            self.class_embedding = nn.Embedding(num_classes + (class_dropout_prob > 0), hidden_size)
        elif condition == "representation":
            self.vector_embedding = VectorEmbedding(representation_dim, hidden_size, num_classes, True, "MAGETransformer")
        blocks = (mlp_ratio, dropout, dropout, norm_eps)
        self.blocks = nn.ModuleList(EncoderBlock(hidden_size, num_heads, *blocks) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.decoder_projection = nn.Linear(hidden_size, decoder_hidden_size)
        self.decoder_positions = nn.Parameter(torch.zeros(1, 1 + self.sequence_length, decoder_hidden_size))
        self.decoder_blocks = nn.ModuleList(
            EncoderBlock(decoder_hidden_size, decoder_num_heads, *blocks) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_hidden_size, eps=norm_eps)
        self.head = nn.Linear(decoder_hidden_size, hidden_size)
        self.head_norm = nn.LayerNorm(hidden_size, eps=HEAD_NORM_EPS)
        self.head_bias = nn.Parameter(torch.zeros(self.mask_token + 1))
        self._initialize()

    def _initialize(self) -> None:
        """Initialise as the official implementation: Xavier-uniform matrices, normal tables and positions, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.token_std)
        nn.init.normal_(self.decoder_positions, std=INIT_STD)

    @property
    def null_label(self) -> int | None:
        """Label of the null condition, or None if the network has none."""
        return self.config.num_classes if self.config.class_dropout_prob > 0 else None

    def embed_condition(self, class_labels: Tensor | None, vector: Tensor | None, batch_size: int) -> Tensor | None:
        """The leading token (B, D) of conditions; None where it is the learned one.

        Args:
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` is the null condition, of representations too.
            vector: (B, D') representations; None is the null condition.
            batch_size: B.

        Raises:
            UserError: If the representations are of another width, or there is no condition and none was trained.
        """
        if self.vector_embedding is not None:
            return self.vector_embedding(vector, class_labels, batch_size)
        if self.class_embedding is not None:
            if class_labels is None:
                if self.null_label is None:
                    raise UserError("this MAGETransformer has no null condition (class_dropout_prob is 0); give class_labels")
                class_labels = torch.full((batch_size,), self.null_label, device=self.head_bias.device)
            return self.class_embedding(class_labels)
        return None

    def encode(
        self, tokens: Tensor, kept: Tensor | None = None, class_labels: Tensor | None = None, vector: Tensor | None = None
    ) -> Tensor:
        """Features of the leading token and the kept ones, after the last norm.

        Args:
            tokens: (B, L) int64 in [0, num_codes) or ``mask_token``.
            kept: (B, S) int64 ascending places of the tokens that the encoder sees; None for all.
            class_labels: See ``embed_condition``.
            vector: See ``embed_condition``.

        Returns:
            (B, 1 + S, D).
        """
        if tokens.shape[1] != self.sequence_length:
            raise ValueError(f"tokens must have {self.sequence_length} positions, got {tokens.shape[1]}")
        x = (
            self.token_embedding(F.pad(tokens, (1, 0), value=self.leading_token)) + self.position_embedding.weight
        )  # (B, 1 + L, D)
        if kept is not None:
            places = F.pad(kept + 1, (1, 0))  # (B, 1 + S)
            x = x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))  # (B, 1 + S, D)
        x = self.drop(self.embedding_norm(x))
        leading = self.embed_condition(class_labels, vector, len(tokens))
        if leading is not None:  # without position, norm and dropout
            x = torch.cat([leading[:, None].to(x.dtype), x[:, 1:]], dim=1)
        return self.norm(self._run(self.blocks, x))

    def decode(self, features: Tensor, kept: Tensor | None, masked: Tensor) -> Tensor:
        """Vectors (B, 1 + L, D) whose products with the token table are logits.

        Args:
            features: (B, 1 + S, D) from ``encode``.
            kept: As given to ``encode``.
            masked: (B, L) bool, the tokens to predict; dropped ones are among them.
        """
        x = self.decoder_projection(features)  # (B, 1 + S, D'')
        filling = x[:, :1]
        if kept is not None:
            places = kept[..., None].expand(-1, -1, x.shape[2])
            seen = filling.repeat(1, self.sequence_length, 1).scatter(1, places, x[:, 1:])  # (B, L, D'')
        else:
            seen = x[:, 1:]
        x = torch.cat([filling, torch.where(masked[..., None], filling, seen)], dim=1) + self.decoder_positions
        x = self.decoder_norm(self._run(self.decoder_blocks, x))
        return self.head_norm(F.gelu(self.head(x)))  # (B, 1 + L, D)

    def logits(self, hidden: Tensor, num_ids: int | None = None) -> Tensor:
        """Logits (..., num_ids) of vectors (..., D) from ``decode``; of the codes unless told otherwise."""
        count = self.config.num_codes if num_ids is None else num_ids
        return F.linear(hidden, self.token_embedding.weight[:count].detach(), self.head_bias[:count])

    def forward(
        self,
        tokens: Tensor,
        class_labels: Tensor | None = None,
        vector: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Predict every token from the condition and the tokens that are seen.

        Args:
            tokens: (B, L) int64; ``mask_token`` where one is masked.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` is the null condition, of representations too.
            vector: (B, D') representations.
            kept: (B, S) int64 ascending places that the encoder sees, all that are not masked among them; None for all.

        Returns:
            (B, L, V) logits; those of tokens that are not masked are not trained.
        """
        features = self.encode(tokens, kept, class_labels, vector)
        return self.logits(self.decode(features, kept, tokens == self.mask_token)[:, 1:])  # (B, L, V)

    def _run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Run blocks one after another."""
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        return x
