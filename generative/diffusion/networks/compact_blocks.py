"""Blocks of the compact U-Net (SnapGen, arXiv 2412.09619): separable convolutions with expansion, lean transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.dropout import Dropout
from generative.layers.group_norm import group_norm
from generative.layers.multi_query import MultiQueryAttention
from generative.layers.unet_blocks import activate, zero_initialized

TRANSFORMER_NORM_EPS = 1e-6  # of the group norm in front of a transformer, as Stable Diffusion's


class SeparableConv(nn.Module):
    """A depthwise 3 x 3 convolution that widens, then a pointwise one.

    Args:
        in_channels: C.
        out_channels: C'.
        expansion: Channels between the two over C.
        stride: 2 halves the resolution.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int = 1) -> None:
        super().__init__()
        # One convolution for each time of widening: with several outputs a channel, torch's take 4 to 7 times as long on a CPU.
        self.depthwise = nn.ModuleList(
            [nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False) for _ in range(expansion)]
        )
        self.pointwise = nn.Conv2d(expansion * in_channels, out_channels, 1)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        return self.pointwise(torch.cat([conv(sample) for conv in self.depthwise], dim=1))


class SeparableResidualBlock(nn.Module):
    """Norm, SiLU, separable convolution, twice, added to the input; the time scales and shifts the second norm's output.

    Args:
        in_channels: C.
        out_channels: C'; where it differs, the input passes through a 1x1 convolution.
        embedding_dim: Width of the time's embedding.
        expansion: See ``SeparableConv``.
        dropout: Before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(in_channels), group_norm(out_channels)
        self.conv1 = SeparableConv(in_channels, out_channels, expansion)
        self.conv2 = SeparableConv(out_channels, out_channels, expansion)
        zero_initialized(self.conv2.pointwise)
        self.modulation = nn.Linear(embedding_dim, 2 * out_channels)
        self.dropout = Dropout(dropout)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, C, H, W) under (B, E), its SiLU already taken, to (B, C', H, W)."""
        hidden = self.conv1(activate(self.norm1(sample)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        return self.skip(sample) + self.conv2(self.dropout(activate(hidden)))


class GatedMLP(nn.Module):
    """GEGLU (arXiv 2002.05202): a linear map times the GELU of another, and a map back.

    Args:
        dim: D.
        ratio: Width between over D.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 2 * ratio * dim), nn.Linear(ratio * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        values, gates = self.fc1(tokens).chunk(2, dim=-1)
        return self.fc2(values * F.gelu(gates))


class CompactTransformerLayer(nn.Module):
    """Self-attention where the resolution is low, attention to the class's few tokens, a gated MLP.

    Args:
        dim: D.
        context_dim: Width of the class's tokens.
        num_heads: Heads of the queries.
        mlp_ratio: Of the MLP.
        has_self_attention: Whether positions attend to one another.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int, mlp_ratio: int, has_self_attention: bool) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim) if has_self_attention else None
        self.self_attention = MultiQueryAttention(dim, dim, num_heads) if has_self_attention else None
        self.cross_norm, self.cross_attention = nn.LayerNorm(dim), MultiQueryAttention(dim, context_dim, num_heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), GatedMLP(dim, mlp_ratio)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Map (B, L, D) under (B, K, context_dim) to (B, L, D)."""
        if self.self_attention is not None and self.self_norm is not None:
            normed = self.self_norm(tokens)
            tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), context)
        return tokens + self.mlp(self.mlp_norm(tokens))


class CompactTransformer(nn.Module):
    """Transformer layers over the positions of a map, between a norm and two linear maps, added to the map.

    Args:
        num_channels: C.
        context_dim: Width of the class's tokens.
        num_heads: Heads of the queries.
        mlp_ratio: Of the layers.
        depth: Layers.
        has_self_attention: See ``CompactTransformerLayer``.
    """

    def __init__(
        self, num_channels: int, context_dim: int, num_heads: int, mlp_ratio: int, depth: int, has_self_attention: bool
    ) -> None:
        super().__init__()
        self.norm = group_norm(num_channels, eps=TRANSFORMER_NORM_EPS)
        self.inner = nn.Linear(num_channels, num_channels)
        options = (num_channels, context_dim, num_heads, mlp_ratio, has_self_attention)
        self.layers = nn.ModuleList([CompactTransformerLayer(*options) for _ in range(depth)])
        self.out = zero_initialized(nn.Linear(num_channels, num_channels))

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        """Map (B, C, H, W) under (B, K, context_dim) to the same shape."""
        tokens = self.inner(self.norm(sample).permute(0, 2, 3, 1).flatten(1, 2))  # (B, HW, C)
        for layer in self.layers:
            tokens = layer(tokens, context)
        return sample + self.out(tokens).unflatten(1, sample.shape[2:]).permute(0, 3, 1, 2)


class CompactStage(nn.Module):
    """A residual block and the transformer behind it, where there is one.

    Args:
        block: The residual block.
        transformer: Or None.
    """

    def __init__(self, block: SeparableResidualBlock, transformer: CompactTransformer | None) -> None:
        super().__init__()
        self.block, self.transformer = block, transformer

    def forward(self, sample: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """Map (B, C, H, W) under the time (B, E) and the class (B, K, context_dim) to (B, C', H, W)."""
        sample = self.block(sample, embedding)
        return sample if self.transformer is None else self.transformer(sample, context)
