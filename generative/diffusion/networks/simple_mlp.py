"""SimpleMLP: RCG's network of representation diffusion, residual blocks of linear layers (arXiv 2312.03701, appendix A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.layers.checkpointing import run_block
from generative.layers.embeddings import timestep_embedding

BLOCK_NORM_EPS, OUTPUT_NORM_EPS = 1e-5, 1e-6  # the official implementation's


class SimpleMLPBlock(nn.Module):
    """Norm, SiLU, linear; the time and the class are added; norm, SiLU, linear; and the sum with the input.

    Args:
        width: D of the features.
        bottleneck: Width between the linear layers.
        time_width: Of the embedded time.
        class_width: Of the embedded class; None where the class has no effect.
        dropout: Share dropped before the last layer.
    """

    def __init__(self, width: int, bottleneck: int, time_width: int, class_width: int | None, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.linear_1 = nn.Linear(width, bottleneck)
        self.time = nn.Linear(time_width, bottleneck)
        self.label = None if class_width is None else nn.Linear(class_width, bottleneck)
        self.norm_2 = nn.LayerNorm(bottleneck, eps=BLOCK_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.linear_2 = nn.Linear(bottleneck, width)

    def forward(self, features: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Transform features (B, D) at embedded times and under embedded labels."""
        hidden = self.linear_1(F.silu(self.norm_1(features))) + self.time(F.silu(time))  # (B, bottleneck)
        if self.label is not None:
            hidden = hidden + self.label(F.silu(label))
        return features + self.linear_2(self.dropout(F.silu(self.norm_2(hidden))))


class SimpleMLP(ModelMixin, ConfigMixin):
    """Denoiser of vectors, held as samples (B, C, 1, 1). The published one has width 1,536 and 12 blocks for 256 numbers.

    Args:
        in_channels: C, numbers of a representation.
        hidden_size: Width D of the features.
        bottleneck_size: Width between the two layers of a block.
        depth: Number of blocks.
        time_embedding_size: Width of the embedded time.
        class_embedding_size: Width of the embedded class.
        num_classes: Number of classes.
        class_conditional: Whether the class has an effect; else labels are ignored, and the table, which the official
            checkpoints hold all the same, is not trained.
        class_dropout_prob: Share of the labels that training replaces by the null condition, label ``num_classes``, for
            guidance; the objective does it. At 0 there is none (official implementation).
        dropout: Share of features dropped in every block.

    Raises:
        UserError: If a size is below 1 or a share out of range.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SimpleMLPBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 256,
        hidden_size: int = 1536,
        bottleneck_size: int = 1536,
        depth: int = 12,
        time_embedding_size: int = 256,
        class_embedding_size: int = 512,
        num_classes: int = 1,
        class_conditional: bool = False,
        class_dropout_prob: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {
            "in_channels": in_channels,
            "hidden_size": hidden_size,
            "bottleneck_size": bottleneck_size,
            "depth": depth,
            "time_embedding_size": time_embedding_size,
            "class_embedding_size": class_embedding_size,
            "num_classes": num_classes,
        }
        check_arguments("SimpleMLP", sizes, {"dropout": dropout, "class_dropout_prob": class_dropout_prob}, class_conditional)
        self.register_to_config(sample_size=1)  # a vector is an image of one pixel
        self.gradient_checkpointing = False
        self.time_1 = nn.Linear(hidden_size, time_embedding_size)
        self.time_2 = nn.Linear(time_embedding_size, time_embedding_size)
        self.label_embedding = nn.Embedding(num_classes + (class_dropout_prob > 0), class_embedding_size)
        self.label_embedding.requires_grad_(class_conditional)
        self.input = nn.Linear(in_channels, hidden_size)
        class_width = class_embedding_size if class_conditional else None
        blocks = [SimpleMLPBlock(hidden_size, bottleneck_size, time_embedding_size, class_width, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.output_norm = nn.LayerNorm(hidden_size, eps=OUTPUT_NORM_EPS)
        self.output = nn.Linear(hidden_size, in_channels)
        for layer in (self.output, *(block.linear_2 for block in blocks)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def null_label(self) -> int | None:
        """Label of the null condition, or None if the network has none."""
        return self.config.num_classes if self.config.class_dropout_prob > 0 else None

    def embed_labels(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Embed labels (B,) as (B, class_embedding_size); None is the null condition, or label 0 where labels are ignored.

        Raises:
            UserError: If the null condition is asked of a network that has none.
        """
        if not self.config.class_conditional or class_labels is None:
            if self.config.class_conditional and self.null_label is None:
                raise UserError("this SimpleMLP has no null condition (class_dropout_prob is 0); give class_labels")
            class_labels = torch.full((batch_size,), self.null_label or 0, device=self.label_embedding.weight.device)
        return self.label_embedding(class_labels)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> DenoiserOutput:
        """Predict what the formulation of training asks for; RCG's is the data.

        Args:
            sample: (B, C, 1, 1) float, noised representations.
            timestep: (B,) or scalar, int or float.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition. Ignored where the class
                has no effect.

        Returns:
            Predictions (B, C, 1, 1).

        Raises:
            UserError: If the representations are of another width.
        """
        if sample.shape[1:] != (self.config.in_channels, 1, 1):
            raise UserError(
                f"SimpleMLP takes representations (B, {self.config.in_channels}, 1, 1), got {tuple(sample.shape)}; set "
                "in_channels to the encoder's width"
            )
        batch_size = len(sample)
        features = self.input(sample.flatten(1))  # (B, D)
        frequencies = timestep_embedding(timestep.reshape(-1).expand(batch_size), self.config.hidden_size)
        time = self.time_2(F.silu(self.time_1(frequencies.to(features.dtype))))  # (B, time_embedding_size)
        label = self.embed_labels(class_labels, batch_size)
        for block in self.blocks:
            features = run_block(self, block, features, time, label)
        return DenoiserOutput(self.output(F.silu(self.output_norm(features)))[..., None, None])
