"""Discriminators of Projected GAN (arXiv 2111.01007): a small head on each of several feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.batch_norm import AffineBatchNorm2d
from generative.layers.checkpointing import run_block
from generative.layers.class_embedding import ClassEmbedding
from generative.layers.stored_spectral_norm import StoredSpectralConv2d

# Width of a head's map by nominal size, from the official code, in its order: the first of two equally near sizes is taken.
HEAD_WIDTHS: dict[int, int] = {4: 512, 8: 512, 16: 256, 32: 128, 64: 64, 128: 64, 256: 32, 512: 16, 1024: 8}
FINAL_KERNEL_SIZE = 4
STEM_SIZE = 256  # a stem convolution makes as many channels as the table has for this size
PATCH_START_SIZE = 16  # patch heads start here whatever the map's size: one halving
LEAKY_RELU_SLOPE = 0.2


def head_widths(in_channels: int, nominal_size: int, width: int | None, end_size: int, stem: bool) -> list[int]:
    """Channels of a head's maps: into its first halving, and out of each.

    Args:
        in_channels: Channels of the feature map.
        nominal_size: Size that stands for the map in the table; the number of halvings follows from it.
        width: Channels everywhere inside the head; None takes the table's.
        end_size: Nominal size at which halving stops.
        stem: Whether a convolution comes first.

    Raises:
        UserError: If the parts do not fit together.
    """
    start = min(HEAD_WIDTHS, key=lambda size: abs(size - nominal_size))
    table = {size: official if width is None else width for size, official in HEAD_WIDTHS.items()}
    entering = table[STEM_SIZE] if stem else in_channels
    if not stem:
        table[start] = in_channels
    if end_size not in table:
        raise UserError(f"end_size of a head must be one of {', '.join(map(str, table))}, got {end_size}")
    widths = [table[size] for size in sorted(table, reverse=True) if end_size <= size <= start] or [table[end_size]]
    if widths[0] != entering:
        raise UserError(
            f"a head of nominal size {nominal_size} that ends at {end_size} takes {widths[0]} channels, but {entering} enter; "
            "change nominal_sizes, end_size or width"
        )
    return widths


class HalvingBlock(nn.Module):
    """Conv 4x4 stride 2, batch norm, leaky relu; or separable conv 3x3, batch norm, leaky relu, average pool.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        separable: Depthwise and pointwise convolution in place of one.
        patch: Follow with 1x1 conv, batch norm, leaky relu.
        cross_replica: Batch statistics over all processes.
    """

    def __init__(
        self, in_channels: int, out_channels: int, separable: bool = False, patch: bool = False, cross_replica: bool = False
    ) -> None:
        super().__init__()
        self.separable = separable
        if separable:
            convs = [
                StoredSpectralConv2d(in_channels, in_channels, padding=1, groups=in_channels),
                StoredSpectralConv2d(in_channels, out_channels, kernel_size=1),
            ]
        else:
            convs = [StoredSpectralConv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=True)]
        self.convs = nn.ModuleList(convs)
        self.norm = AffineBatchNorm2d(out_channels, cross_replica=cross_replica)
        self.patch_conv = StoredSpectralConv2d(out_channels, out_channels, kernel_size=1) if patch else None
        self.patch_norm = AffineBatchNorm2d(out_channels, cross_replica=cross_replica) if patch else None

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/2, W/2)."""
        hidden = sample
        for conv in self.convs:
            hidden = conv(hidden)  # (B, C', H/2, W/2), separable ones (B, C', H, W)
        hidden = F.leaky_relu(self.norm(hidden), LEAKY_RELU_SLOPE)
        if self.separable:
            hidden = F.avg_pool2d(hidden, 2)  # (B, C', H/2, W/2)
        if self.patch_conv is not None and self.patch_norm is not None:
            hidden = F.leaky_relu(self.patch_norm(self.patch_conv(hidden)), LEAKY_RELU_SLOPE)
        return hidden


class ProjectedHead(nn.Module):
    """Halvings, then a 4x4 convolution to logits; with classes, to a map that is projected on the class's vector.

    Args:
        widths: From ``head_widths``.
        stem_channels: Channels of the map before a 3x3 stem convolution; None for no stem.
        num_classes: Number of classes, None for an unconditional head.
        map_channels: D, channels of the map that meets the class.
        embedding_dim: Width of the class embedding, which a linear layer takes to D.
        separable: See ``HalvingBlock``.
        patch: See ``HalvingBlock``.
        cross_replica: See ``HalvingBlock``.
    """

    def __init__(
        self,
        widths: Sequence[int],
        stem_channels: int | None,
        num_classes: int | None,
        map_channels: int,
        embedding_dim: int,
        separable: bool,
        patch: bool,
        cross_replica: bool,
    ) -> None:
        super().__init__()
        self.stem = None if stem_channels is None else StoredSpectralConv2d(stem_channels, widths[0], padding=1)
        self.blocks = nn.ModuleList(
            HalvingBlock(width_in, width_out, separable, patch, cross_replica)
            for width_in, width_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.map_channels = map_channels
        out_channels = 1 if num_classes is None else map_channels
        self.conv_out = StoredSpectralConv2d(widths[-1], out_channels, kernel_size=FINAL_KERNEL_SIZE)
        self.class_embedding = None if num_classes is None else ClassEmbedding(num_classes, embedding_dim)
        self.class_projection = None if num_classes is None else nn.Linear(embedding_dim, map_channels)
        self.gradient_checkpointing = False

    def forward(self, feature: Tensor, class_labels: Tensor) -> Tensor:
        """Compute the realness logits of a feature map.

        Args:
            feature: (B, C, H, W).
            class_labels: (B,) int64; an unconditional head ignores them.

        Returns:
            (B, N) logits, one for each place of the last map.
        """
        hidden = feature
        if self.stem is not None:
            hidden = F.leaky_relu(self.stem(hidden), LEAKY_RELU_SLOPE)  # (B, C', H, W)
        for block in self.blocks:
            hidden = run_block(self, block, hidden)  # (B, C', H/2, W/2)
        hidden = self.conv_out(hidden)  # (B, 1 or D, h, w)
        if self.class_embedding is not None and self.class_projection is not None:
            condition = F.leaky_relu(self.class_projection(self.class_embedding(class_labels)), LEAKY_RELU_SLOPE)  # (B, D)
            hidden = (hidden * condition[:, :, None, None]).sum(1) / math.sqrt(self.map_channels)  # (B, h, w)
        return hidden.flatten(1)  # (B, N)


class MultiScaleHeads(ModelMixin, ConfigMixin):
    """Heads on the first maps of a pyramid, their logits side by side.

    Args:
        channels: Channels of the maps, largest map first.
        nominal_sizes: Size that stands for each map in ``HEAD_WIDTHS``; the map itself may be smaller or larger.
        num_classes: Number of classes of the data.
        conditional: Project the class; otherwise labels are accepted and ignored.
        num_heads: How many of the maps get a head, 1 to 4 ("num_discs").
        width: Channels everywhere inside a head ("ndf"); None takes ``HEAD_WIDTHS``.
        end_size: Nominal size at which halving stops ("end_sz").
        stem: Start each head with a 3x3 convolution ("head").
        separable: See ``HalvingBlock``.
        patch: Patch heads: one halving each and a 1x1 convolution behind it, whatever the nominal size.
        map_channels: Channels of the map that meets the class ("cmap_dim").
        embedding_dim: Width of the class embedding.
        cross_replica: Batch statistics over all processes.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, ...],
        nominal_sizes: tuple[int, ...],
        num_classes: int = 1000,
        conditional: bool = True,
        num_heads: int = 4,
        width: int | None = None,
        end_size: int = 8,
        stem: bool = False,
        separable: bool = False,
        patch: bool = False,
        map_channels: int = 64,
        embedding_dim: int = 128,
        cross_replica: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("map_channels", map_channels), ("embedding_dim", embedding_dim)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if width is not None and width < 1:
            raise UserError(f"width of the heads must be at least 1, or None for the official table, got {width}")
        most = min(len(channels), len(nominal_sizes))
        if not 1 <= num_heads <= most:
            raise UserError(f"num_heads must be from 1 to {most}, the number of feature maps, got {num_heads}")
        self.num_classes = num_classes
        heads = []
        for in_channels, nominal_size in zip(channels[:num_heads], nominal_sizes[:num_heads], strict=True):
            widths = head_widths(in_channels, PATCH_START_SIZE if patch else nominal_size, width, end_size, stem)
            heads.append(
                ProjectedHead(
                    widths,
                    in_channels if stem else None,
                    num_classes if conditional else None,
                    map_channels,
                    embedding_dim,
                    separable,
                    patch,
                    cross_replica,
                )
            )
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Sequence[Tensor], class_labels: Tensor) -> Tensor:
        """Compute the realness logits of feature maps.

        Args:
            features: Maps (B, C_i, H_i, W_i), largest first, at least as many as heads.
            class_labels: (B,) int64 in [0, num_classes).

        Returns:
            (B, N) logits of all heads, higher is more real.
        """
        logits = [head(features[index], class_labels) for index, head in enumerate(self.heads)]
        return torch.cat(logits, dim=1)  # (B, N)
