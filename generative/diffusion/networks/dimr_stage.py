"""One resolution of DiMR (arXiv 2406.09416, section 3.2): patches, blocks, predictions, and what the next resolution reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.dimr_blocks import ConvNeXtBlock, PositionType, TransformerBlock
from generative.layers.axial_rope import axial_positions
from generative.layers.checkpointing import run_block
from generative.layers.time_dependent import NormType, TimeDependentLayerNorm
from generative.layers.vector_embedding import VectorEmbedding

BlockType = Literal["transformer", "convnext"]
MakeEmbeddings = Callable[[int], tuple[nn.Embedding | None, VectorEmbedding | None]]
"""Of a width: ``ConditionedNetwork.make_embeddings``."""
INIT_STD = 0.02  # of linear maps and tables, official implementation


@dataclass(frozen=True)
class StageOptions:
    """What a stage is built of; the arguments of ``DiMR`` by the same names in the plural.

    Attributes:
        block_type: Kind of its blocks.
        hidden_size: Width D.
        mlp_size: Width between the layers of the MLPs.
        num_blocks: Half of them before the middle one, half after; the odd one of an odd number is left out.
        num_heads: Attention heads of transformers.
        kernel_size: Odd size of the convolutions of ConvNeXt.
        downsampling: The sample is brought down by so much first, by averaging.
        patch_size: Height and width of a patch of that.
        final_kernel_size: Odd size of the last convolution.
        dropout: Share of what is added in a block dropped in training.

    Raises:
        UserError: If a value is out of range.
    """

    block_type: BlockType
    hidden_size: int
    mlp_size: int
    num_blocks: int
    num_heads: int
    kernel_size: int
    downsampling: int
    patch_size: int
    final_kernel_size: int
    dropout: float

    def __post_init__(self) -> None:
        whole = {name: value for name, value in vars(self).items() if name not in ("block_type", "dropout")}
        check_arguments("DiMR", {f"{name} of a branch": value for name, value in whole.items()}, {"dropout": self.dropout})
        if self.block_type not in get_args(BlockType):
            raise UserError(f"DiMR: block_types must be transformer or convnext, got {self.block_type!r}")
        for name in ("kernel_size", "final_kernel_size"):
            if whole[name] % 2 == 0:
                raise UserError(f"DiMR: {name} of a branch must be odd, got {whole[name]}")
        if self.block_type == "transformer" and self.hidden_size % self.num_heads:
            raise UserError(f"DiMR: num_heads must divide the hidden_size {self.hidden_size} of its branch, got {self.num_heads}")


class PatchUpsample(nn.Module):
    """What all blocks of a lower resolution put out, brought to the next: norm, linear map, patches unfolded, norm.

    Args:
        in_dim: Width of all of them side by side.
        dim: Width D at the higher resolution.
        ratio: Height and width there over those here.
    """

    def __init__(self, in_dim: int, dim: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.norm_in = TimeDependentLayerNorm(in_dim)
        self.linear = nn.Linear(in_dim, dim * ratio**2)
        self.norm_out = TimeDependentLayerNorm(dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, h, w, in_dim) at times (B,) -> (B, h * ratio, w * ratio, D)."""
        batch, height, width, _ = x.shape
        x = self.linear(self.norm_in(x, time)).reshape(batch, height, width, self.ratio, self.ratio, -1)
        x = x.transpose(2, 3).reshape(batch, height * self.ratio, width * self.ratio, -1)
        return self.norm_out(x, time)


class Positions(nn.Module):
    """A learned vector for each place of a grid.

    Args:
        size: Height and width of the grid.
        dim: Width D.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, size, dim))
        nn.init.trunc_normal_(self.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Add to a map (B, h, w, D), no larger than the grid."""
        return x + self.weight[: x.shape[1], : x.shape[2]]


class Stage(nn.Module):
    """One branch, with long skip connections between its blocks as U-ViT's.

    Args:
        options: What it is built of.
        in_channels: Channels C of the samples.
        size: Height and width of its grid.
        norm: Kind of norm in the blocks.
        positions: Where places come in.
        make_embeddings: Makes the embedding of labels or representations that transformers have.
        lower: Width and size of what the branch below puts out; None for the lowest.
    """

    def __init__(
        self,
        options: StageOptions,
        in_channels: int,
        size: int,
        norm: NormType,
        positions: PositionType,
        make_embeddings: MakeEmbeddings,
        lower: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        dim, patch_size = options.hidden_size, options.patch_size
        self.downsampling, self.is_sequence = options.downsampling, options.block_type == "transformer"
        self.is_rotary = self.is_sequence and positions == "axial_rope"
        self.patch_embedding = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.position_embedding = None if self.is_rotary else Positions(size, dim)
        self.label_embedding, self.vector_embedding = make_embeddings(dim) if self.is_sequence else (None, None)
        self.upsample = None if lower is None else PatchUpsample(lower[0], dim, size // lower[1])

        def make_block() -> nn.Module:
            if self.is_sequence:
                return TransformerBlock(dim, options.mlp_size, options.num_heads, options.dropout, norm, positions)
            return ConvNeXtBlock(dim, options.mlp_size, options.kernel_size, options.dropout, norm)

        half = options.num_blocks // 2
        self.blocks = nn.ModuleList([make_block() for _ in range(2 * half + 1)])
        self.skip_linears = nn.ModuleList([nn.Linear(2 * dim, dim) for _ in range(half)])
        self.norm_out = TimeDependentLayerNorm(dim)
        final = options.final_kernel_size
        self.conv_out = nn.Conv2d(dim, in_channels, final, padding=final // 2)
        self.width = dim * (len(self.blocks) + 1)  # of what the next branch reads

    def forward(
        self, sample: Tensor, time: Tensor, labels: Tensor | None, vector: Tensor | None, lower: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Predictions (B, C, h, w); and what the blocks read first and put out, each (B, h, w, D), which the next branch reads.

        Args:
            sample: (B, C, H, W).
            time: (B,).
            labels: (B,) int64; read where there is a label table, or where vectors may be null.
            vector: (B, D') representations, read where they have an embedding.
            lower: (B, h', w', ``width``) what the branch below put out; None for the lowest.
        """
        if self.downsampling > 1:
            sample = F.avg_pool2d(sample, self.downsampling)
        x = self.patch_embedding(sample).permute(0, 2, 3, 1)  # (B, h, w, D)
        if self.position_embedding is not None:
            x = self.position_embedding(x)
        if self.upsample is not None:
            x = x + self.upsample(lower, time)
        _, height, width, _ = x.shape
        if self.is_sequence:
            x = x.flatten(1, 2)
        token = self.embed(labels, vector, len(sample))
        if token is not None:
            x = torch.cat([token[:, None].to(x.dtype), x], dim=1)
        states = self.run_blocks(x, (time, axial_positions(height, width, x.device)) if self.is_rotary else (time,))
        if token is not None:
            states = [state[:, 1:] for state in states]
        if self.is_sequence:
            states = [state.unflatten(1, (height, width)) for state in states]
        return self.conv_out(self.norm_out(states[-1], time).permute(0, 3, 1, 2)), states

    def embed(self, labels: Tensor | None, vector: Tensor | None, batch_size: int) -> Tensor | None:
        """The token (B, D) of the class, or of the representation in its place; None where neither has one."""
        if self.vector_embedding is not None:
            return self.vector_embedding(vector, labels, batch_size)
        return None if self.label_embedding is None else self.label_embedding(labels)

    def run_blocks(self, x: Tensor, conditions: tuple[Tensor, ...]) -> list[Tensor]:
        """The input and what each block puts out; those after the middle read the ones opposite them."""
        half = len(self.skip_linears)
        states = [x]
        for index, block in enumerate(self.blocks):
            if index > half:
                opposite = states[2 * half + 1 - index]
                x = self.skip_linears[index - half - 1](torch.cat([x, opposite], dim=-1))
            x = run_block(self, block, x, *conditions)
            states.append(x)
        return states
