"""How the blocks of ADM's U-Nets are put together: the encoder and the middle, which its classifiers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from generative.core.errors import UserError
from generative.layers.resampling import Resampling
from generative.layers.unet_blocks import AttentionBlock, Resample, ResidualBlock, Stage


@dataclass(frozen=True)
class UNetBlocks:
    """What the blocks of a network have in common, and how wide they are.

    Attributes:
        sample_size: Height and width of the network's samples.
        model_channels: Width that the multipliers multiply.
        channel_mult: Multiplier of each resolution, highest first; each resolution has half the height of the one before.
        num_res_blocks: Residual blocks of each resolution.
        attention_resolutions: Heights, in pixels, at which attention follows each residual block.
        dropout: Of the residual blocks.
        num_heads: Heads of attention.
        num_head_channels: Channels of a head; it decides on the heads where it is not None.
        use_scale_shift_norm: See ``ResidualBlock``.
        resblock_updown: Change the resolution within residual blocks; else by ``Resample``.
        conv_resample: ``Resample`` with convolutions.
        use_new_attention_order: See ``split_heads``.

    Raises:
        UserError: If numbers are out of range or do not fit one another.
    """

    sample_size: int
    model_channels: int
    channel_mult: Sequence[float]
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    dropout: float = 0.0
    num_heads: int = 4
    num_head_channels: int | None = None
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    use_new_attention_order: bool = False

    def __post_init__(self) -> None:
        sizes = {"sample_size": self.sample_size, "model_channels": self.model_channels, "num_res_blocks": self.num_res_blocks}
        sizes |= {"num_heads": self.num_heads}
        if self.num_head_channels is not None:
            sizes["num_head_channels"] = self.num_head_channels
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")
        if not self.channel_mult:
            raise UserError("channel_mult is empty; give a multiplier of each resolution")
        halvings = len(self.channel_mult) - 1
        if self.sample_size % 2**halvings:
            raise UserError(
                f"sample_size {self.sample_size} can't be halved {halvings} times, as the {halvings + 1} resolutions of "
                "channel_mult need"
            )
        wrong = [size for size in self.attention_resolutions if size not in self.resolutions]
        if wrong:
            there = ", ".join(map(str, self.resolutions))
            raise UserError(f"attention_resolutions names {wrong[0]}, but the network's resolutions are {there}")

    @property
    def resolutions(self) -> list[int]:
        """Heights of the maps, highest first."""
        return [self.sample_size >> level for level in range(len(self.channel_mult))]

    @property
    def widths(self) -> list[int]:
        """Channels at each resolution, highest first."""
        return [int(multiplier * self.model_channels) for multiplier in self.channel_mult]

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding of time and class."""
        return 4 * self.model_channels

    def residual(self, in_channels: int, out_channels: int, resampling: Resampling | None = None) -> ResidualBlock:
        """A residual block."""
        return ResidualBlock(
            in_channels, out_channels, self.embedding_dim, self.dropout, self.use_scale_shift_norm, resampling=resampling
        )

    def attention(self, num_channels: int, num_heads: int | None = None) -> AttentionBlock:
        """Attention; ``num_heads`` stands for another number of heads, where no width of a head decides on it."""
        return AttentionBlock(num_channels, self.heads(num_channels, num_heads), self.use_new_attention_order)

    def heads(self, num_channels: int, num_heads: int | None = None) -> int:
        """Heads of attention over some channels.

        Raises:
            UserError: If the channels of a head do not divide them.
        """
        if self.num_head_channels is None:
            return self.num_heads if num_heads is None else num_heads
        if num_channels % self.num_head_channels:
            raise UserError(f"num_head_channels must divide the width {num_channels} of attention, got {self.num_head_channels}")
        return num_channels // self.num_head_channels

    def change(self, num_channels: int, resampling: Resampling) -> nn.Module:
        """A change of resolution."""
        if self.resblock_updown:
            return self.residual(num_channels, num_channels, resampling)
        return Resample(num_channels, resampling, self.conv_resample)

    def encoder(self) -> tuple[nn.ModuleList, list[int]]:
        """Stages after the first convolution, whose width is the first of ``widths``.

        Returns:
            The stages, and the widths of what the first convolution and each of them puts out: the skips of a decoder.
        """
        stages, outputs = nn.ModuleList(), [self.widths[0]]
        for level, (size, width) in enumerate(zip(self.resolutions, self.widths, strict=True)):
            for _ in range(self.num_res_blocks):
                blocks: list[nn.Module] = [self.residual(outputs[-1], width)]
                blocks += [self.attention(width)] if size in self.attention_resolutions else []
                stages.append(Stage(blocks))
                outputs.append(width)
            if level < len(self.widths) - 1:
                stages.append(Stage([self.change(width, "down")]))
                outputs.append(width)
        return stages, outputs

    def middle(self) -> Stage:
        """Blocks at the lowest resolution."""
        width = self.widths[-1]
        return Stage([self.residual(width, width), self.attention(width), self.residual(width, width)])

    def decoder(self, skips: Sequence[int], num_heads: int | None = None) -> nn.ModuleList:
        """Stages that read, each along with what comes from below, the skips from the last to the first.

        Args:
            skips: Widths of the skips, from ``encoder``.
            num_heads: Heads of the decoder's attention where they are others.
        """
        stages, remaining, hidden = nn.ModuleList(), list(skips), self.widths[-1]
        for level in reversed(range(len(self.widths))):
            width = self.widths[level]
            for index in range(self.num_res_blocks + 1):
                blocks: list[nn.Module] = [self.residual(hidden + remaining.pop(), width)]
                blocks += [self.attention(width, num_heads)] if self.resolutions[level] in self.attention_resolutions else []
                blocks += [self.change(width, "up")] if level and index == self.num_res_blocks else []
                stages.append(Stage(blocks))
                hidden = width
        return stages
