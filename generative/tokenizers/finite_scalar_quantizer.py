"""Finite scalar quantisation (arXiv 2309.15505): each channel is bounded and rounded to one of a few levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.base import CodeUse
from generative.tokenizers.convolutional import straight_through
from generative.tokenizers.vector_quantizer import Quantized

BOUND_EPS = 1e-3
"""Share by which bounded values stay within the outermost levels: appendix A.1, so that none rounds to a level beyond."""
SMALLEST_LEVELS = 2


class FiniteScalarQuantizer(nn.Module):
    """Channel i takes one of ``levels[i]`` evenly spaced values; an id is their number, the first channel being the lowest digit.

    Computed in float32, also under autocast: a bfloat16 near the middle between two levels falls to the wrong one.

    Args:
        levels: L_i of each channel; there are as many codes as their product.
    """

    num_levels: Tensor
    place_values: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < SMALLEST_LEVELS:
            raise UserError(f"levels must name at least {SMALLEST_LEVELS} levels for each channel, got {list(levels)}")
        self.num_codes = math.prod(levels)
        # Integers, which stay exact when the tokenizer is brought to half precision; the levels are in the config.
        self.register_buffer("num_levels", torch.tensor(list(levels)), persistent=False)  # (D,)
        places = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("place_values", torch.tensor(places), persistent=False)  # (D,)

    @property
    def half_width(self) -> Tensor:
        """(D,) int64: the level that stands for 0."""
        return self.num_levels // 2

    def bound(self, vectors: Tensor) -> Tensor:
        """Bring (..., D) into (-L/2, L/2), off by half a level where L is even, so that rounding gives L integers.

        Appendix A.1: tanh(z + tan(offset / half)) * half - offset, half = (L - 1) (1 - eps) / 2.
        """
        half = (self.num_levels - 1) * ((1 - BOUND_EPS) / 2)  # (D,) float32
        offset = (self.num_levels % 2 == 0) * 0.5
        return torch.tanh(vectors + (offset / half).tan()) * half - offset

    def to_digits(self, vectors: Tensor) -> Tensor:
        """(..., D) float32 -> (..., D) int64 in [0, L_i)."""
        return self.bound(vectors).round().long() + self.half_width

    def to_ids(self, vectors: Tensor) -> Tensor:
        """(..., D) float32 -> (...) int64 in [0, num_codes)."""
        return (self.to_digits(vectors) * self.place_values).sum(-1)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., D) float32 in [-1, 1]."""
        digits = ids[..., None] // self.place_values % self.num_levels
        return (digits - self.half_width).float() / self.half_width

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise a grid.

        Args:
            latents: (B, D, h, w).

        Returns:
            Codes in [-1, 1], without losses: none is needed (section 3).
        """
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self.bound(latents.float().movedim(1, -1))  # (B, h, w, D)
            digits = bounded.detach().round().long() + self.half_width
            use = CodeUse((digits * self.place_values).sum(-1).flatten(), self.num_codes)
            codes = straight_through(bounded, bounded.round()) / self.half_width  # (B, h, w, D)
            return Quantized(codes.movedim(-1, 1), {}, use)
