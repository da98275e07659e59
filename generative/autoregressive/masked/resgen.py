"""ResGen: masked prediction of cumulative embeddings of residual codes (arXiv 2412.10208).

No official code is known, and of the paper only its abstract, figures 1 to 3, table 1 and summaries could be read. From these:

- A position's D codes are masked from the deepest to the coarsest; n = ceil(gamma(r) L D) codes of an image are masked, spread
  over its L positions at random (section on masking).
- What is predicted is not a code but z_i = sum_j e(x_ij; j) (1 - m_ij), the sum of the embeddings of the position's masked codes.
  Steps of sampling so depend neither on L nor on D; the codes are those to which z_i quantises (figure 1).
- z_i has a mixture of Gaussians; training is a variational bound of a discrete diffusion process; sampling keeps the codes with
  the highest confidence, with temperature on the confidence and top-p on the draw (figure 3), and uses guidance (table 1).
- At 256 pixels: 64 positions, depth 8 or 16, 574 M parameters (table 1).

Ours, for want of the text: the transformer (pre-norm blocks, a slot for the class, learned positions, an embedding of how many
codes of a position are known), gamma = cosine, the low-rank isotropic mixture and its normalisation by the remainder's expected
size, the confidence of a code (see ``residual_decoding``), and guidance on weights and means but not on scales.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.autoregressive.masked.gaussian_mixture import (
    GaussianMixture,
    initialize_mixture_bias,
    mixture_size,
    unpack_mixture,
)
from generative.autoregressive.masked.maskgit import check_transformer_sizes, initialize_weights, make_block
from generative.core.errors import UserError
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.rvq import RVQTokenizer

LAYER_NORM_EPS = 1e-6


class ResGenTransformer(ModelMixin, ConfigMixin):
    """Bidirectional transformer from what is known of every position to a mixture of Gaussians of what is not.

    Args:
        code_depth: Codes of a position.
        code_dim: Width of a code's embedding.
        num_classes: Number of classes; label ``num_classes`` is the null condition.
        grid_size: Rows and columns of positions; L is their product.
        hidden_size: Width D.
        depth: Number of blocks.
        num_heads: Attention heads; divides ``hidden_size``.
        mlp_ratio: Width between the layers of an MLP over D.
        dropout: Share dropped in training of embeddings, attention weights and layer outputs.
        num_mixtures: Gaussians of the mixture.
        mixture_rank: Rank of the differences of their means; None for ``code_dim``.
        min_scale: Smallest standard deviation, over that of the vector predicted.

    Raises:
        UserError: If a size is below 1, the heads do not divide the width, the rank is above ``code_dim``, or ``min_scale`` is
            not positive.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerEncoderLayer"]
    remainder_scales: Tensor
    is_measured: Tensor

    @register_to_config
    def __init__(
        self,
        code_depth: int,
        code_dim: int,
        num_classes: int,
        grid_size: tuple[int, int] = (8, 8),
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        num_mixtures: int = 256,
        mixture_rank: int | None = None,
        min_scale: float = 0.01,
    ) -> None:
        super().__init__()
        rank = code_dim if mixture_rank is None else mixture_rank
        others = {"code_depth": code_depth, "code_dim": code_dim, "num_mixtures": num_mixtures, "mixture_rank": rank}
        check_transformer_sizes(hidden_size, depth, num_heads, num_classes, grid_size=min(grid_size), **others)
        if rank > code_dim:
            raise UserError(f"mixture_rank must be at most code_dim {code_dim}, got {rank}")
        if not min_scale > 0:
            raise UserError(f"min_scale must be positive, got {min_scale}")
        self.num_classes = num_classes
        self.sequence_length = grid_size[0] * grid_size[1]
        self.gradient_checkpointing = False
        self.code_proj = nn.Linear(code_dim, hidden_size)
        self.known_embedding = nn.Embedding(code_depth + 1, hidden_size)
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.position_embedding = nn.Embedding(1 + self.sequence_length, hidden_size)  # slot 0 is the class
        self.drop = nn.Dropout(dropout)  # not named like its argument: config values hide modules of the same name
        self.blocks = nn.ModuleList(
            make_block(hidden_size, num_heads, mlp_ratio, dropout, norm_first=True, eps=LAYER_NORM_EPS) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(hidden_size, mixture_size(num_mixtures, code_dim, rank))
        self.basis = nn.Parameter(torch.empty(code_dim, rank))
        self.register_buffer("remainder_scales", torch.ones(code_depth))
        self.register_buffer("is_measured", torch.zeros((), dtype=torch.int64))  # 1 from ``measure_remainder_scales`` on
        initialize_weights(self)
        nn.init.orthogonal_(self.basis)
        initialize_mixture_bias(self.head.bias, code_dim, num_mixtures, rank)

    @torch.no_grad()
    def measure_remainder_scales(self, codes: Tensor) -> None:
        """Take from examples what the network's input and output are divided by.

        ``remainder_scales[u]`` is the root mean square of a value of the codes u, u + 1, ... summed: so vectors of coarse and of
        fine codes are of the same size to the network. The codebooks alone do not tell: fine remainders choose short codes.

        Args:
            codes: (B, L, code_depth, code_dim) embeddings of the codes of a batch.
        """
        remainders = codes.float().flip(2).cumsum(2).flip(2)  # (B, L, code_depth, code_dim)
        scales = remainders.square().mean(dim=(0, 1, 3)).sqrt()  # (code_depth,)
        self.remainder_scales.copy_(scales.clamp(min=torch.finfo(scales.dtype).eps))
        self.is_measured.fill_(1)

    def scale_of(self, num_known: Tensor) -> Tensor:
        """Divisor (..., 1) of the remainder of positions of which (...) codes are known; 1-like where all are."""
        return self.remainder_scales[num_known.clamp(max=len(self.remainder_scales) - 1)][..., None]

    def forward(self, known: Tensor, num_known: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict the remainder of every position, divided by ``scale_of``.

        Args:
            known: (B, L, code_dim) sums of the embeddings of each position's known codes.
            num_known: (B, L) int64 in [0, code_depth], how many are known: the coarsest ones.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.

        Returns:
            (B, L, ``mixture_size``) for ``mixture``.
        """
        if known.shape[1] != self.sequence_length:
            raise ValueError(f"known must have {self.sequence_length} positions, got {known.shape[1]}")
        if class_labels is None:
            class_labels = torch.full((len(known),), self.num_classes, device=known.device)
        scaled = (known / self.remainder_scales[0]).to(self.code_proj.weight.dtype)
        x = self.code_proj(scaled) + self.known_embedding(num_known)  # (B, L, D)
        x = torch.cat([self.class_embedding(class_labels)[:, None], x], dim=1)  # (B, 1 + L, D)
        x = self.drop(x + self.position_embedding.weight)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x)  # (B, 1 + L, D)
            else:
                x = block(x)  # (B, 1 + L, D)
        return self.head(self.norm(x[:, 1:]))  # (B, L, mixture_size)

    def mixture(self, prediction: Tensor) -> GaussianMixture:
        """The mixture (float32) of predictions (..., ``mixture_size``)."""
        return unpack_mixture(prediction, self.basis, self.config.num_mixtures, self.config.min_scale)

    @property
    def num_guided(self) -> int:
        """How many of the first numbers of a prediction guidance acts on: weights and means."""
        return self.head.out_features - self.config.num_mixtures


def check_residual_match(transformer: ResGenTransformer, tokenizer: ImageTokenizer) -> RVQTokenizer:
    """Refuse a transformer and a tokenizer that do not speak of the same codes; returns the tokenizer.

    Raises:
        UserError: If the tokenizer has no residual codes, or depth, width or grid differ.
    """
    if not isinstance(tokenizer, RVQTokenizer):
        raise UserError(f"ResGen needs a tokenizer with residual codes (RVQTokenizer), got {type(tokenizer).__name__}")
    config = transformer.config
    if config.code_depth != tokenizer.depth:
        raise UserError(
            f"the transformer has code_depth={config.code_depth} but the tokenizer has {tokenizer.depth} codes a vector"
        )
    width = tokenizer.codebooks_tensor.shape[-1]
    if config.code_dim != width:
        raise UserError(f"the transformer has code_dim={config.code_dim} but the tokenizer's codes have {width} values")
    if tuple(config.grid_size) != tuple(tokenizer.grid_size):
        raise UserError(
            f"the transformer has grid_size={tuple(config.grid_size)} but the tokenizer's grid is {tuple(tokenizer.grid_size)}"
        )
    return tokenizer
