"""What EDM's U-Nets share (Karras et al., arXiv 2206.00364, appendix F): levels of blocks, skips between them, conditions."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.skips import SkipNetwork
from generative.layers.checkpointing import run_block
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.edm_unet import UNetBlock, UNetLevel

MakeBlock = Callable[..., UNetBlock]
"""``UNetBlock`` with all options bound but its widths, its resampling and whether it attends."""


class LabelEmbedding(nn.Module):
    """One row per class, and zeros for the null condition.

    Args:
        num_classes: N.
        dim: Width D.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, dim))

    def forward(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Embed labels.

        Args:
            class_labels: (B,) int64 in [0, N], N being the null condition; (B, N) weights over classes; None, the null condition
                for all.
            batch_size: B.

        Returns:
            (B, D).
        """
        if class_labels is None:
            return self.weight.new_zeros(batch_size, self.weight.shape[1])
        if class_labels.is_floating_point():
            return class_labels.to(self.weight.dtype) @ self.weight
        return F.embedding(class_labels, F.pad(self.weight, (0, 0, 0, 1)))


class EDMUNet(SkipNetwork, ConditionedNetwork, ModelMixin, ConfigMixin, abc.ABC):
    """A U-Net whose encoder and decoder are levels of ``UNetBlock``.

    Attributes:
        channels: Width of each level, highest resolution first.
        sizes: Height and width of their maps.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UNetBlock"]
    channels: tuple[int, ...]
    sizes: tuple[int, ...]

    def check(
        self, sizes: dict[str, int], shares: dict[str, float], channel_mult: Sequence[int], class_conditional: bool
    ) -> None:
        """Refuse options that no network can have.

        Args:
            sizes: Options by name that must be at least 1.
            shares: Options by name that must be in [0, 1).
            channel_mult: Widths of the levels over the base width.
            class_conditional: Whether labels have any effect.

        Raises:
            UserError: Naming the first of them.
        """
        name = type(self).__name__
        check_arguments(name, sizes, shares, class_conditional)
        if not channel_mult or any(mult < 1 for mult in channel_mult):
            raise UserError(f"{name}: channel_mult must be positive whole numbers, one a level, got {list(channel_mult)}")
        halvings = len(channel_mult) - 1
        if sizes["sample_size"] % 2**halvings:
            raise UserError(
                f"{name}: sample_size must halve {halvings} times (channel_mult has {halvings + 1} levels), "
                f"got {sizes['sample_size']}"
            )

    def build_levels(
        self,
        in_channels: int,
        first_width: int,
        widths: Sequence[int],
        sample_size: int,
        num_blocks: int,
        attention_resolutions: Collection[int],
        make_block: MakeBlock,
        attends_last_only: bool,
    ) -> None:
        """Make ``input_conv``, ``encoder`` and ``decoder`` (lowest resolution first), and ``decoder_widths``.

        Args:
            in_channels: Of the samples.
            first_width: Of the map that the encoder starts with.
            widths: Of the levels, highest resolution first.
            sample_size: Height and width of the samples.
            num_blocks: Blocks of an encoder's level; a decoder's has one more.
            attention_resolutions: Sizes of maps whose blocks attend; the middle always does.
            make_block: Makes a block.
            attends_last_only: Whether only the last block of a decoder's level attends.
        """
        self.channels = tuple(widths)
        self.sizes = tuple(sample_size >> level for level in range(len(widths)))
        self.gradient_checkpointing = False
        self.input_conv = nn.Conv2d(in_channels, first_width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        current = first_width
        skips = [current]
        for level, width in enumerate(widths):
            entry = [make_block(current, current, resampling="down")] if level else []
            blocks = []
            skips += [current] * len(entry)
            for _ in range(num_blocks):
                blocks.append(make_block(current, width, attends=self.sizes[level] in attention_resolutions))
                current = width
                skips.append(current)
            self.encoder.append(UNetLevel(entry, blocks))
        decoder_widths = []
        for level, width in reversed(list(enumerate(widths))):
            if level == len(widths) - 1:
                entry = [make_block(current, current, attends=True), make_block(current, current)]
            else:
                entry = [make_block(current, current, resampling="up")]
            blocks = []
            for index in range(num_blocks + 1):
                attends = self.sizes[level] in attention_resolutions and (index == num_blocks or not attends_last_only)
                decoder_widths.append(current)
                blocks.append(make_block(current + skips.pop(), width, attends=attends))
                current = width
            self.decoder.append(UNetLevel(entry, blocks))
        self.decoder_widths = tuple(dict.fromkeys(decoder_widths))

    def embed_classes(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Rows (B, E) of the classes, zeros for the null condition; see the base class."""
        rows: Tensor = self.label_embedding(class_labels, batch_size)
        return rows

    def encode(self, sample: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Lowest map and all skips, the first first."""
        hidden, side = self.input_conv(sample), sample
        skips = [hidden]
        for index, level in enumerate(cast(Iterable[UNetLevel], self.encoder)):
            for block in level.entry:
                hidden, side = self.join_side(index, run_block(self, block, hidden, embedding), side)
                skips.append(hidden)
            for block in level.blocks:
                hidden = run_block(self, block, hidden, embedding)
                skips.append(hidden)
        return hidden, skips

    def join_side(self, level: int, hidden: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """What an encoder with a second path does after the block that halves the map; by default there is none.

        Args:
            level: Of the encoder, at least 1.
            hidden: (B, C, h, w) the block's output.
            side: (B, S, 2h, 2w) the second path so far; the sample itself at first.

        Returns:
            Both of them, changed.
        """
        return hidden, side

    def decode_level(self, level: nn.Module, hidden: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Blocks of one level; what they read is taken off the skips."""
        assert isinstance(level, UNetLevel)
        for block in level.entry:
            hidden = run_block(self, block, hidden, embedding)
        for block in level.blocks:
            hidden = run_block(self, block, torch.cat(self.join(hidden, skips.pop()), dim=1), embedding)
        return hidden

    @abc.abstractmethod
    def embed(
        self, timestep: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None, vector: Tensor | None
    ) -> Tensor:
        """Embed the conditions: times (B,), labels or representations, and labels of augmentation (B, A) to (B, E), activated."""

    @abc.abstractmethod
    def decode(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Predictions (B, C, H, W) of the lowest map and all skips."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for: F of EDM's preconditioning (eq. 7).

        Args:
            sample: (B, C, H, W) float, noised samples as the formulation scales them.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``; c_noise in EDM.
            class_labels: (B,) int64 in [0, num_classes], or (B, num_classes) weights; ``num_classes`` or None is the null
                condition.
            augment_labels: (B, augment_dim) how each image was augmented in training; None is zeros, not at all.
            vector: (B, D') representations, of a network that has a ``representation_dim``.

        Returns:
            Predictions (B, C, H, W).
        """
        return DenoiserOutput(self.decode(*self.encode_conditioned(sample, timestep, class_labels, augment_labels, vector)))

    def encode_conditioned(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The half of ``forward`` before the decoder, with the same arguments.

        Returns:
            The lowest map (B, D, h, w), all skips, the first first, and the conditions (B, E): what ``decode`` takes.
        """
        times = timestep.reshape(-1).expand(len(sample))
        embedding = self.embed(times, class_labels, augment_labels, vector)  # (B, E)
        return *self.encode(sample.contiguous(memory_format=torch.channels_last), embedding), embedding


def scale_weight(module: nn.Module, init: Callable[[Tensor], Any], factor: float) -> None:
    """Initialise a layer's weight, scaled, and zero its bias."""
    assert isinstance(module.weight, Tensor)
    init(module.weight)
    with torch.no_grad():
        module.weight.mul_(factor)
    if isinstance(module.bias, Tensor):
        nn.init.zeros_(module.bias)
