"""The compact U-Net of SnapGen (Hu et al., "Taming High-Resolution Text-to-Image Models for Mobile Devices", arXiv 2412.09619).

There is no official code. Known of it, from the abstract and from summaries of the paper: the U-Net of SDXL made thinner and
shorter (widths 256, 512, 896; up to 4 transformer layers a block), self-attention at the lowest resolution only, separable
convolutions of expansion 2 for all others, feed-forward networks of ratio 3, one key and value for all heads of attention, the
condition read from the first resolution on by cross-attention, queries and keys normalised, and a flow objective; the
class-conditional ImageNet model of 256 pixels has 372 M parameters. Not told there, and ours: how a class becomes tokens (an
embedding through a linear map) and how many, that the time scales and shifts norms, as many blocks as SDXL has, GEGLU, no
embedding of positions besides what the convolutions' borders tell, and the initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.compact_blocks import (
    CompactStage,
    CompactTransformer,
    SeparableConv,
    SeparableResidualBlock,
)
from generative.diffusion.networks.skips import SkipNetwork
from generative.layers.checkpointing import run_block
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.embeddings import TimestepEmbedder
from generative.layers.group_norm import group_norm
from generative.layers.unet_blocks import activate, zero_initialized

EMBEDDING_RATIO = 4  # width of the time's embedding over the first resolution's
CLASS_INIT_STD = 0.02


class CompactUNet(ModelMixin, ConfigMixin, SkipNetwork, ConditionedNetwork):
    """U-Net of separable convolutions whose lowest resolution alone attends to itself; the class is a few keys and values.

    Args:
        sample_size: Height and width of the samples; halved between resolutions.
        in_channels: Channels C of the samples.
        widths: Of each resolution, highest first; multiples of 32 and of ``num_head_channels`` where there are transformers.
        num_res_blocks: Residual blocks of each resolution of the encoder; the decoder has one more.
        transformer_depth: Transformer layers behind each residual block, by resolution; 0 for none.
        self_attention: Whether positions attend to one another there, by resolution.
        expansion: Of the separable convolutions.
        mlp_ratio: Of the transformers' gated MLPs.
        num_head_channels: Channels of each head of attention.
        num_class_tokens: Keys and values that a class gives.
        context_dim: Width of the class's tokens.
        dropout: Of the residual blocks.
        num_classes: Number of classes; the label ``num_classes`` is the null condition.
        class_dropout_prob: Share of the labels that training replaces by the null condition; 0 is a network without one. The
            network itself drops nothing: the training objective does.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation stands, which is the label ``num_classes``.

    Raises:
        UserError: If numbers are out of range or do not fit one another.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CompactStage"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 4,
        widths: Sequence[int] = (256, 512, 896),
        num_res_blocks: int = 2,
        transformer_depth: Sequence[int] = (1, 2, 4),
        self_attention: Sequence[bool] = (False, False, True),
        expansion: int = 2,
        mlp_ratio: int = 3,
        num_head_channels: int = 64,
        num_class_tokens: int = 4,
        context_dim: int = 512,
        dropout: float = 0.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        self._check()
        self.gradient_checkpointing = False
        self.embedding_dim = EMBEDDING_RATIO * widths[0]
        self.decoder_widths = tuple(dict.fromkeys(reversed(widths)))
        self.timestep_embedder = TimestepEmbedder(self.embedding_dim, widths[0])
        # A representation becomes its tokens by one map, a class by two.
        wide = context_dim if representation_dim is None else num_class_tokens * context_dim
        self.label_embedding, self.vector_embedding = self.make_embeddings(wide)
        self.class_tokens: nn.Module = nn.Identity()
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.weight, std=CLASS_INIT_STD)
            self.class_tokens = nn.Linear(context_dim, num_class_tokens * context_dim)
        self.token_norm = nn.LayerNorm(context_dim)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.encoder, skips = self._encoder()
        last = len(widths) - 1
        self.middle = nn.ModuleList([self._stage(last, widths[-1]), self._stage(last, widths[-1], has_transformer=False)])
        self.decoder = self._decoder(skips)
        self.norm_out = group_norm(widths[0])
        self.conv_out = zero_initialized(nn.Conv2d(widths[0], in_channels, 3, padding=1))

    def _check(self) -> None:
        """Refuse what no such network can be."""
        config = self.config
        names = ("sample_size", "in_channels", "num_res_blocks", "expansion", "mlp_ratio", "num_head_channels")
        sizes = {name: config[name] for name in (*names, "num_class_tokens", "context_dim", "num_classes")}
        check_arguments("CompactUNet", sizes, {name: config[name] for name in ("dropout", "class_dropout_prob")})
        count = len(config.widths)
        if not count or len(config.transformer_depth) != count or len(config.self_attention) != count:
            raise UserError(
                f"CompactUNet: transformer_depth and self_attention must have as many entries as widths ({count}), got "
                f"{len(config.transformer_depth)} and {len(config.self_attention)}"
            )
        if min(config.transformer_depth) < 0:
            raise UserError(f"CompactUNet: transformer_depth must be 0 or more, got {list(config.transformer_depth)}")
        halvings = 2 ** (count - 1)
        if config.sample_size % halvings:
            raise UserError(
                f"CompactUNet: sample_size must be a multiple of {halvings} for {count} resolutions, got {config.sample_size}"
            )
        for width, depth in zip(config.widths, config.transformer_depth, strict=True):
            if width < 1 or (depth and width % config.num_head_channels):
                heads = config.num_head_channels
                raise UserError(f"CompactUNet: widths must be positive and multiples of num_head_channels {heads}, got {width}")

    def _stage(self, level: int, in_channels: int, has_transformer: bool = True) -> CompactStage:
        """A residual block of a resolution, and its transformer."""
        config = self.config
        width, depth = config.widths[level], config.transformer_depth[level]
        block = SeparableResidualBlock(in_channels, width, self.embedding_dim, config.expansion, config.dropout)
        if not (has_transformer and depth):
            return CompactStage(block, None)
        heads, attends = width // config.num_head_channels, bool(config.self_attention[level])
        return CompactStage(block, CompactTransformer(width, config.context_dim, heads, config.mlp_ratio, depth, attends))

    def _encoder(self) -> tuple[nn.ModuleList, list[int]]:
        """Stages, and between resolutions convolutions of stride 2; widths of the skips, in order."""
        config = self.config
        stages: list[nn.Module] = []
        width, skips = config.widths[0], [config.widths[0]]
        for level, wanted in enumerate(config.widths):
            for _ in range(config.num_res_blocks):
                stages.append(self._stage(level, width))
                width = wanted
                skips.append(width)
            if level + 1 < len(config.widths):
                stages.append(SeparableConv(width, width, config.expansion, stride=2))
                skips.append(width)
        return nn.ModuleList(stages), skips

    def _decoder(self, skips: list[int]) -> nn.ModuleList:
        """Stages, each with a skip beside its input, and between resolutions convolutions behind a doubling."""
        config, left = self.config, list(skips)
        stages: list[nn.Module] = []
        width = config.widths[-1]
        for level in reversed(range(len(config.widths))):
            for _ in range(config.num_res_blocks + 1):
                stages.append(self._stage(level, width + left.pop()))
                width = config.widths[level]
            if level:
                stages.append(SeparableConv(width, width, config.expansion))
        return nn.ModuleList(stages)

    def embed_labels(self, class_labels: Tensor | None, batch_size: int, vector: Tensor | None = None) -> Tensor:
        """Tokens (B, K, context_dim) of labels (B,), or of representations (B, D') in their place; see the base class."""
        embedded = super().embed_labels(class_labels, batch_size, vector)
        assert embedded is not None
        return self.token_norm(self.class_tokens(embedded).unflatten(-1, (self.config.num_class_tokens, -1)))

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, vector: Tensor | None = None
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for.

        Args:
            sample: (B, C, H, W) float, noised samples.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.
            vector: (B, D') representations, of a network that has a ``representation_dim``.

        Returns:
            Predictions (B, C, H, W).
        """
        embedding = F.silu(self.timestep_embedder(timestep.reshape(-1).expand(len(sample))))  # (B, E)
        context = self.embed_labels(class_labels, len(sample), vector)  # (B, K, context_dim)
        hidden = self.conv_in(sample)
        skips = [hidden]
        for stage in self.encoder:
            hidden = self._run(stage, hidden, embedding, context)
            skips.append(hidden)
        for stage in self.middle:
            hidden = self._run(stage, hidden, embedding, context)
        for stage in self.decoder:
            if isinstance(stage, CompactStage):
                hidden = torch.cat(self.join(hidden, skips.pop()), dim=1)
            else:
                hidden = F.interpolate(hidden, scale_factor=2)
            hidden = self._run(stage, hidden, embedding, context)
        return DenoiserOutput(self.conv_out(activate(self.norm_out(hidden))))

    def _run(self, stage: nn.Module, hidden: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """A stage, or a convolution between resolutions."""
        return run_block(self, stage, hidden, *((embedding, context) if isinstance(stage, CompactStage) else ()))
