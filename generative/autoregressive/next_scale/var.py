"""VAR: the transformer of next-scale prediction (arXiv 2404.02905)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.autoregressive.next_scale.block_causal import query_slices, scale_offsets
from generative.autoregressive.next_scale.var_blocks import CachedScales, VARBlock, affine, modulated_norm
from generative.core.errors import UserError
from generative.layers.drop_path import drop_path_rates
from generative.layers.kv_cache import KVCache


@dataclass(frozen=True)
class Modulations:
    """What a class does to the network: shifts, scales and gains of every block and of the head.

    Attributes:
        blocks: For each block (B, 6, D): gains of attention and MLP, their scales, their shifts.
        head: (B, 2, D): scale and shift before the head.
    """

    blocks: list[Tensor]
    head: Tensor

    def rows(self, rows: slice) -> Modulations:
        """Those of some of the images."""
        return Modulations([block[rows] for block in self.blocks], self.head[rows])


class VAR(ModelMixin, ConfigMixin):
    """Class-conditional transformer that predicts all tokens of a scale at once, given all smaller scales (arXiv 2404.02905).

    The first scale reads the class embedding, each later one the map that its tokenizer has accumulated so far, resized to its
    own size: token i of scale k is predicted at the place that reads position i of the map of scales 0 to k - 1.

    Args:
        num_codes: V, number of token ids.
        num_classes: Number of classes; label ``num_classes`` is the null condition.
        latent_channels: C of the tokenizer's maps.
        patch_nums: Tokens along a side, of each scale; L is the sum of their squares.
        hidden_size: Width D of the residual stream (paper: 64 times the depth).
        depth: Number of blocks.
        num_heads: Attention heads (paper: as many as blocks).
        mlp_ratio: Inner width of the MLPs over D.
        shared_adaln: Share one projection of the class among all blocks (paper: at 512 pixels).
        qk_l2_norm: Normalise queries and keys, see ``BlockCausalSelfAttention``.
        norm_eps: Epsilon of the layer norms.
        dropout: Share of each layer's output features dropped in training.
        attention_dropout: Share of attention weights dropped in training.
        drop_path: Share of images that skip a layer of the last block in training; it grows linearly from 0 at the first block
            (paper: 0.1 depth / 24).
        head_init: Initial weights of the head over those of the other layers.
        adaln_init: The same of what makes scales and shifts.
        adaln_gain_init: The same of what makes gains (``alng`` of the official script).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VARBlock"]

    @register_to_config
    def __init__(
        self,
        num_codes: int,
        num_classes: int,
        latent_channels: int = 32,
        patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        hidden_size: int = 1024,
        depth: int = 16,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        shared_adaln: bool = False,
        qk_l2_norm: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        head_init: float = 0.02,
        adaln_init: float = 0.5,
        adaln_gain_init: float = 1e-5,
    ) -> None:
        super().__init__()
        patch_nums = tuple(patch_nums)
        _check_sizes(num_codes, num_classes, latent_channels, patch_nums, hidden_size, depth, num_heads)
        for name, share in (("dropout", dropout), ("attention_dropout", attention_dropout), ("drop_path", drop_path)):
            if not 0 <= share < 1:
                raise UserError(f"{name} must be in [0, 1), got {share}")
        self.null_label = num_classes
        self.offsets = scale_offsets(patch_nums)
        self.gradient_checkpointing = False
        self.input_projection = nn.Linear(latent_channels, hidden_size)
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.start_embedding = nn.Parameter(torch.empty(1, self.offsets[1], hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(1, self.offsets[-1], hidden_size))
        self.level_embedding = nn.Embedding(len(patch_nums), hidden_size)
        levels = [level for level, side in enumerate(patch_nums) for _ in range(side * side)]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # (L,) int64
        self.shared_modulation = nn.Linear(hidden_size, 6 * hidden_size) if shared_adaln else None
        with torch.device("cpu"):  # read as numbers, whichever device the network is built on
            rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(
            VARBlock(hidden_size, num_heads, mlp_ratio, shared_adaln, qk_l2_norm, norm_eps, dropout, attention_dropout, rate)
            for rate in rates
        )
        self.head_modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.head = nn.Linear(hidden_size, num_codes)
        self.initialize_weights()

    levels: Tensor

    def initialize_weights(self) -> None:
        """Normal weights of std sqrt(1 / 3D), smaller at the ends of blocks and where the constructor says so; zero biases."""
        config, depth = self.config, len(self.blocks)
        std = math.sqrt(1 / (3 * config.hidden_size))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.start_embedding, std=std)
        nn.init.trunc_normal_(self.position_embedding, std=std)
        with torch.no_grad():
            self.head.weight.mul_(config.head_init)
            self.head_modulation.weight.mul_(config.adaln_init)
            for block in self._blocks:
                block.attention.out.weight.div_(math.sqrt(2 * depth))
                block.mlp.fc2.weight.div_(math.sqrt(2 * depth))
                rows = block.modulation_rows
                rows[:2].mul_(config.adaln_gain_init)
                rows[2:].mul_(config.adaln_init)

    @property
    def _blocks(self) -> list[VARBlock]:
        """The blocks, as what they are."""
        return cast(list[VARBlock], list(self.blocks))

    @property
    def num_scales(self) -> int:
        """Number of token maps in the pyramid."""
        return len(self.offsets) - 1

    def forward(self, inputs: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict every token from the class and the smaller scales (teacher forcing).

        Args:
            inputs: (B, L - n_0, C) float, what scales 1 to S - 1 read: ``MultiScaleVQTokenizer.teacher_inputs``.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.

        Returns:
            (B, L, V) logits.
        """
        labels = self._labels(class_labels, len(inputs), inputs.device)
        modulations = self.modulations(labels)
        x = self._embed(inputs, labels, 0, self.num_scales)  # (B, L, D)
        slices = query_slices(self.config.patch_nums)
        for block, modulation in zip(self.blocks, modulations.blocks, strict=True):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, modulation, slices, self.levels)  # (B, L, D)
            else:
                x = block(x, modulation, slices, self.levels)  # (B, L, D)
        return self._logits(x, modulations)  # (B, L, V)

    def modulations(self, class_labels: Tensor) -> Modulations:
        """What the classes (B,) do to every layer: the same for all tokens and scales, so computed once per image."""
        condition = F.silu(self.class_embedding(class_labels))  # (B, D)
        shared = condition if self.shared_modulation is None else self.shared_modulation(condition).unflatten(-1, (6, -1))
        head = self.head_modulation(condition).unflatten(-1, (2, -1))  # (B, 2, D)
        return Modulations([block.modulate(shared) for block in self._blocks], head)

    def make_cache(self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """Allocate an empty cache.

        Args:
            batch_size: Number of sequences, guidance branches counted.
            device: Where; None for the network's device.
            dtype: Of keys and values; None for the network's dtype.
        """
        num_heads = self.config.num_heads
        shape = (len(self.blocks), batch_size, num_heads, self.offsets[-1], self.config.hidden_size // num_heads)
        # Not filled: a slot is never read before it is written.
        keys = torch.empty(shape, device=device or self.device, dtype=dtype or self.dtype)
        return KVCache(keys, torch.empty_like(keys))

    def extend(
        self,
        inputs: Tensor | None,
        first: int,
        last: int,
        cache: KVCache,
        class_labels: Tensor,
        modulations: Modulations | None = None,
    ) -> Tensor:
        """Predict the tokens of scales ``first`` to ``last - 1`` and add these scales to the cache.

        Args:
            inputs: (B, tokens of these scales without scale 0, C); None where that is none.
            first: First scale; all smaller ones are in the cache.
            last: One behind the last scale.
            cache: Cache of B sequences, written in place.
            class_labels: (B,) int64 in [0, num_classes].
            modulations: Those of ``class_labels``, where they are known already.

        Returns:
            (B, tokens of these scales, V) logits, equal to those of ``forward``.
        """
        modulations = self.modulations(class_labels) if modulations is None else modulations
        x = self._embed(inputs, class_labels, first, last)  # (B, S, D)
        slices = query_slices(self.config.patch_nums, first, last)
        start, stop = self.offsets[first], self.offsets[last]
        for index, (block, modulation) in enumerate(zip(self.blocks, modulations.blocks, strict=True)):
            x = block(x, modulation, slices, self.levels, CachedScales(*cache.layer(index), start, stop))  # (B, S, D)
        return self._logits(x, modulations)  # (B, S, V)

    def _embed(self, inputs: Tensor | None, class_labels: Tensor, first: int, last: int) -> Tensor:
        """Embed what scales ``first`` to ``last - 1`` read, (B, S, D)."""
        places = slice(self.offsets[first], self.offsets[last])
        parts = []
        if first == 0:
            parts.append(self.class_embedding(class_labels)[:, None] + self.start_embedding)  # (B, n_0, D)
        if inputs is not None:
            # In the weights' precision, as officially: a tiny layer, but everything is read through it.
            with torch.autocast(inputs.device.type, enabled=False):
                parts.append(self.input_projection(inputs.to(self.input_projection.weight.dtype)))  # (B, S - n_0 or S, D)
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # (B, S, D)
        return x + (self.level_embedding(self.levels[places]) + self.position_embedding[:, places])

    def _logits(self, x: Tensor, modulations: Modulations) -> Tensor:
        scale, shift = modulations.head[:, :, None].unbind(1)  # each (B, 1, D)
        return affine(modulated_norm(x, scale, shift, self.config.norm_eps), self.head.weight, self.head.bias)

    def _labels(self, class_labels: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        if class_labels is None:
            return torch.full((batch_size,), self.null_label, device=device)
        return class_labels


def _check_sizes(
    num_codes: int,
    num_classes: int,
    latent_channels: int,
    patch_nums: tuple[int, ...],
    hidden_size: int,
    depth: int,
    num_heads: int,
) -> None:
    """Refuse sizes that cannot be built, naming the argument."""
    for name, value in (
        ("num_codes", num_codes),
        ("num_classes", num_classes),
        ("latent_channels", latent_channels),
        ("hidden_size", hidden_size),
        ("depth", depth),
        ("num_heads", num_heads),
    ):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if not patch_nums or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in patch_nums):
        raise UserError(f"patch_nums must be positive integers, one for each scale, got {patch_nums}")
    if hidden_size % num_heads:
        raise UserError(f"hidden_size {hidden_size} must be a multiple of num_heads, got {num_heads}; change one")
