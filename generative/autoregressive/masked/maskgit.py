"""MaskGIT: a bidirectional transformer that predicts masked image tokens (arXiv 2202.04200)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError

INIT_STD = 0.02  # of every matrix and table, cut at two standard deviations (BERT, the official MaskGIT)
LAYER_NORM_EPS = 1e-12  # BERT's, as in the official MaskGIT


def initialize_weights(network: nn.Module) -> None:
    """BERT's initial weights: matrices and tables normal with ``INIT_STD``, cut at two of them; biases zero."""
    for name, parameter in network.named_parameters():
        if parameter.ndim >= 2:
            nn.init.trunc_normal_(parameter, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def check_transformer_sizes(hidden_size: int, depth: int, num_heads: int, num_classes: int, **others: int) -> None:
    """Refuse sizes that cannot be built, with a ``UserError`` that names the argument."""
    sizes = {"hidden_size": hidden_size, "depth": depth, "num_heads": num_heads, "num_classes": num_classes, **others}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if hidden_size % num_heads:
        raise UserError(f"num_heads must divide hidden_size {hidden_size}, got {num_heads}")


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of the GELU (jax's default)."""
    return F.gelu(x, approximate="tanh")


def make_block(
    hidden_size: int, num_heads: int, mlp_ratio: float, dropout: float, norm_first: bool, eps: float
) -> nn.TransformerEncoderLayer:
    """Bidirectional block: attention, then an MLP, each added to the residual stream and dropped out.

    Args:
        hidden_size: Width D.
        num_heads: Attention heads.
        mlp_ratio: Width between the layers of the MLP over D.
        dropout: Share dropped in training of attention weights and layer outputs.
        norm_first: Normalise what enters a layer; else the sum that leaves it (BERT).
        eps: Of the layer norms.
    """
    block = nn.TransformerEncoderLayer(
        hidden_size, num_heads, int(hidden_size * mlp_ratio), dropout, gelu_tanh, eps, batch_first=True, norm_first=norm_first
    )
    block.dropout.p = 0.0  # between the layers of the MLP, where BERT has none
    return block


class MaskGITTransformer(ModelMixin, ConfigMixin):
    """BERT over image tokens: class slot, learned positions, post-norm blocks, prediction by the token table itself.

    The published network has hidden_size 768, depth 24 and an MLP of 3,072 features; the paper says 8 heads (appendix A), the
    official configuration 16. As officially: the class is a slot before the tokens, embeddings are normalised, GELU is the tanh
    approximation, the head is dense, GELU, layer norm, then the product with the token embeddings plus a bias. Ours: the null
    class (the paper has no guidance), and logits for the V codes only (the official head also scores classes and the mask, and
    its sampler cuts them off).

    Args:
        num_codes: V; the id ``num_codes`` is the mask.
        num_classes: Number of classes; label ``num_classes`` is the null condition.
        grid_size: Rows and columns of the token grid; L is their product.
        hidden_size: Width D.
        depth: Number of blocks.
        num_heads: Attention heads; divides ``hidden_size``.
        mlp_ratio: Width between the layers of an MLP over D.
        dropout: Share dropped in training of embeddings, attention weights and layer outputs.

    Raises:
        UserError: If a size is below 1, or the heads do not divide the width.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerEncoderLayer"]

    @register_to_config
    def __init__(
        self,
        num_codes: int,
        num_classes: int,
        grid_size: tuple[int, int] = (16, 16),
        hidden_size: int = 768,
        depth: int = 24,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_transformer_sizes(hidden_size, depth, num_heads, num_classes, num_codes=num_codes, grid_size=min(grid_size))
        self.num_classes = num_classes
        self.mask_token = num_codes
        self.sequence_length = grid_size[0] * grid_size[1]
        self.gradient_checkpointing = False
        self.token_embedding = nn.Embedding(num_codes + 1, hidden_size)
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.position_embedding = nn.Embedding(1 + self.sequence_length, hidden_size)  # slot 0 is the class
        self.embedding_norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.drop = nn.Dropout(dropout)  # not named like its argument: config values hide modules of the same name
        self.blocks = nn.ModuleList(
            make_block(hidden_size, num_heads, mlp_ratio, dropout, norm_first=False, eps=LAYER_NORM_EPS) for _ in range(depth)
        )
        self.head = nn.Linear(hidden_size, hidden_size)
        self.head_norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.head_bias = nn.Parameter(torch.zeros(num_codes))
        initialize_weights(self)

    def forward(self, tokens: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict every token from the class and the tokens that are not masked.

        Args:
            tokens: (B, L) int64 in [0, num_codes]; ``num_codes`` is the mask.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.

        Returns:
            (B, L, V) logits; those of tokens that are not masked are not trained.
        """
        if tokens.shape[1] != self.sequence_length:
            raise ValueError(f"tokens must have {self.sequence_length} positions, got {tokens.shape[1]}")
        if class_labels is None:
            class_labels = torch.full((len(tokens),), self.num_classes, device=tokens.device)
        x = torch.cat([self.class_embedding(class_labels)[:, None], self.token_embedding(tokens)], dim=1)  # (B, 1 + L, D)
        x = self.drop(self.embedding_norm(x + self.position_embedding.weight))
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x)  # (B, 1 + L, D)
            else:
                x = block(x)  # (B, 1 + L, D)
        x = self.head_norm(gelu_tanh(self.head(x[:, 1:])))  # (B, L, D)
        return F.linear(x, self.token_embedding.weight[: self.mask_token], self.head_bias)  # (B, L, V)
