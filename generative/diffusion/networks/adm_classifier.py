"""ADM's classifier of noised images (arXiv 2105.05233, section 4): the encoder of its U-Net, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.networks.arguments import check_arguments
from generative.layers.checkpointing import run_block
from generative.layers.embeddings import TimestepEmbedder
from generative.layers.group_norm import NORM_EPS, NORM_GROUPS, group_norm
from generative.layers.unet_blocks import AttentionPool, activate, zero_initialized
from generative.layers.unet_encoder import UNetBlocks

Pool = Literal["adaptive", "attention", "spatial", "spatial_v2"]
POOLS: tuple[Pool, ...] = ("adaptive", "attention", "spatial", "spatial_v2")
SPATIAL_WIDTH = 2048
"""Width of the hidden layer of the spatial pools."""


class ADMClassifier(ModelMixin, ConfigMixin):
    """Class of a noised image, whatever its noise level: for classifier guidance.

    Args:
        sample_size: Height and width of the samples.
        in_channels: Channels C of the samples.
        num_classes: Number of classes K.
        model_channels: Width that ``channel_mult`` multiplies; every width is a multiple of 32.
        channel_mult: Multiplier of each resolution, highest first.
        num_res_blocks: Residual blocks of each resolution ("depth").
        attention_resolutions: Heights, in pixels, at which attention follows each residual block.
        dropout: Of the residual blocks.
        pool: ``attention`` of the mean over the last map; ``adaptive``, the last map's mean; ``spatial`` and ``spatial_v2``, the
            means of all maps through a hidden layer, plain or with a norm.
        num_heads: Heads of attention, where ``num_head_channels`` is None.
        num_head_channels: Channels of each head; ``attention`` pooling needs it.
        use_scale_shift_norm: See ``ADMUNet``.
        resblock_updown: See ``ADMUNet``.
        conv_resample: See ``ADMUNet``.
        use_new_attention_order: See ``ADMUNet``; the pool always has the new one.

    Raises:
        UserError: If numbers are out of range or do not fit one another.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        num_classes: int = 1000,
        model_channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_res_blocks: int = 4,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.0,
        pool: Pool = "attention",
        num_heads: int = 4,
        num_head_channels: int | None = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        conv_resample: bool = True,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        check_arguments("ADMClassifier", {"in_channels": in_channels, "num_classes": num_classes}, {})
        if pool not in POOLS:
            raise UserError(f"ADMClassifier: pool must be one of {', '.join(POOLS)}, got {pool!r}")
        if pool == "attention" and num_head_channels is None:
            raise UserError("ADMClassifier: pool attention needs num_head_channels, got None; set it or take another pool")
        blocks = UNetBlocks(
            sample_size=sample_size,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            conv_resample=conv_resample,
            use_new_attention_order=use_new_attention_order,
        )
        self.gradient_checkpointing = False
        self.timestep_embedder = TimestepEmbedder(blocks.embedding_dim, model_channels)
        self.conv_in = nn.Conv2d(in_channels, blocks.widths[0], 3, padding=1)
        self.encoder, outputs = blocks.encoder()
        self.middle = blocks.middle()
        width = blocks.widths[-1]
        if pool in ("adaptive", "attention"):
            self.norm_out = group_norm(width)
        self.head: nn.Module
        if pool == "adaptive":
            self.head = zero_initialized(nn.Linear(width, num_classes))
        elif pool == "attention":
            self.head = AttentionPool(blocks.resolutions[-1], width, blocks.heads(width), num_classes)
        else:
            norms = [nn.ReLU()] if pool == "spatial" else [nn.GroupNorm(NORM_GROUPS, SPATIAL_WIDTH, eps=NORM_EPS), nn.SiLU()]
            num_features = sum(outputs) + width
            self.head = nn.Sequential(nn.Linear(num_features, SPATIAL_WIDTH), *norms, nn.Linear(SPATIAL_WIDTH, num_classes))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Classify noised samples.

        Args:
            sample: (B, C, H, W) float.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``.

        Returns:
            Logits (B, K).
        """
        embedding = F.silu(self.timestep_embedder(timestep.reshape(-1).expand(len(sample))))  # (B, D)
        hidden = self.conv_in(sample)
        maps = [hidden]
        for stage in self.encoder:
            hidden = run_block(self, stage, hidden, embedding)
            maps.append(hidden)
        hidden = run_block(self, self.middle, hidden, embedding)
        if self.config.pool in ("spatial", "spatial_v2"):
            return self.head(torch.cat([values.mean((2, 3)) for values in [*maps, hidden]], dim=1))
        hidden = activate(self.norm_out(hidden))
        return self.head(hidden.mean((2, 3)) if self.config.pool == "adaptive" else hidden)
