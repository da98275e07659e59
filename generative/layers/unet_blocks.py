"""Blocks of ADM's U-Nets (arXiv 2105.05233, section 3): residual blocks that know the time, attention, changes of resolution."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.dropout import Dropout
from generative.layers.group_norm import group_norm
from generative.layers.resample_conv import upsample_conv
from generative.layers.resampling import Resampling, resample
from generative.layers.short_attention import attend

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zero_initialized(layer: Layer) -> Layer:
    """A layer that gives zero until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def activate(hidden: Tensor) -> Tensor:
    """SiLU, in place where no gradient needs its input."""
    return F.silu(hidden, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input; the embedding acts between the two.

    Args:
        in_channels: C.
        out_channels: C'; where it differs, the input passes through a 1x1 convolution.
        embedding_dim: Width of the embedding.
        dropout: Probability, before the second convolution.
        use_scale_shift_norm: The embedding scales and shifts the second norm's output ("AdaGN", eq. 1); else it is added before.
        resampling: Change the resolution of both branches, after the first SiLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = True,
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        self.resampling = resampling
        self.use_scale_shift_norm = use_scale_shift_norm
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding_dim, 2 * out_channels if use_scale_shift_norm else out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = zero_initialized(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Transform maps under an embedding.

        Args:
            sample: (B, C, H, W).
            embedding: (B, D), its SiLU already taken: all blocks of a network read the same.

        Returns:
            (B, C', H', W').
        """
        hidden = activate(self.norm1(sample))
        if self.resampling == "up":
            hidden, sample = upsample_conv(hidden, self.conv1), resample(sample, "up")
        elif self.resampling == "down":
            hidden, sample = self.conv1(resample(hidden, "down")), resample(sample, "down")
        else:
            hidden = self.conv1(hidden)
        modulation = self.modulation(embedding)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        else:
            hidden = self.norm2(hidden + modulation)
        return self.skip(sample) + self.conv2(self.dropout(activate(hidden)))


def split_heads(qkv: Tensor, num_heads: int, use_new_attention_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, L, d) of one projection (B, L, 3 heads d).

    Args:
        qkv: Of tokens.
        num_heads: Heads.
        use_new_attention_order: Whether all queries come first, then all keys, then all values; else those of each head lie
            together, as in most published checkpoints.
    """
    if use_new_attention_order:
        query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    else:
        query, key, value = qkv.unflatten(-1, (num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
    return query, key, value


class AttentionBlock(nn.Module):
    """Self-attention over all positions, added to its input.

    Args:
        num_channels: C.
        num_heads: Heads; divides C.
        use_new_attention_order: See ``split_heads``.

    Raises:
        UserError: If the heads do not divide the channels.
    """

    def __init__(self, num_channels: int, num_heads: int, use_new_attention_order: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or num_channels % num_heads:
            raise UserError(
                f"attention over {num_channels} channels can't have {num_heads} heads; change num_heads or num_head_channels"
            )
        self.num_heads = num_heads
        self.use_new_attention_order = use_new_attention_order
        self.norm = group_norm(num_channels)
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        self.out = zero_initialized(nn.Linear(num_channels, num_channels))

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        # Positions before channels: a view of channels-last memory, and what the attention kernels read.
        tokens = self.norm(sample).permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C)
        mixed = attend(*split_heads(self.qkv(tokens), self.num_heads, self.use_new_attention_order))  # (B, heads, HW, d)
        mixed = self.out(mixed.transpose(1, 2).flatten(2))  # (B, HW, C)
        return sample + mixed.unflatten(1, sample.shape[2:]).permute(0, 3, 1, 2)


class AttentionPool(nn.Module):
    """One vector of each map: attention of its mean over its positions, as CLIP pools (arXiv 2103.00020, section 2.4).

    Args:
        sample_size: Height and width of the maps.
        num_channels: C.
        num_heads: Heads; divides C.
        out_features: K.
    """

    def __init__(self, sample_size: int, num_channels: int, num_heads: int, out_features: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position_embedding = nn.Parameter(torch.randn(sample_size**2 + 1, num_channels) / num_channels**0.5)
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        self.out = nn.Linear(num_channels, out_features)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, K)."""
        tokens = sample.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.position_embedding.to(tokens.dtype)
        query, key, value = split_heads(self.qkv(tokens), self.num_heads, use_new_attention_order=True)
        pooled = F.scaled_dot_product_attention(query[:, :, :1], key, value)  # (B, heads, 1, d): what the mean asks for
        return self.out(pooled.flatten(1))


class Resample(nn.Module):
    """Change of resolution outside residual blocks.

    Args:
        num_channels: C.
        resampling: Up or down.
        with_conv: Down by a convolution of stride 2 instead of averages, up with a convolution after it.
    """

    def __init__(self, num_channels: int, resampling: Resampling, with_conv: bool) -> None:
        super().__init__()
        self.resampling = resampling
        stride = 2 if resampling == "down" else 1
        self.conv = nn.Conv2d(num_channels, num_channels, 3, stride=stride, padding=1) if with_conv else None

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to twice or half the height and width."""
        if self.conv is None:
            return resample(sample, self.resampling)
        return upsample_conv(sample, self.conv) if self.resampling == "up" else self.conv(sample)


class Stage(nn.ModuleList):
    """Blocks one after the other, those that need it under the embedding."""

    def forward(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W') under (B, D), the SiLU of the embedding."""
        for block in self:
            sample = block(sample, embedding) if isinstance(block, ResidualBlock) else block(sample)
        return sample
