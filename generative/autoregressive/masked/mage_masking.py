"""MAGE's masks (arXiv 2211.09117, section 3.1): some tokens are masked, and some of these the encoder does not see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.autoregressive.masking import truncated_normal_quantile
from generative.core.errors import UserError


@dataclass(frozen=True)
class NestedMasks:
    """Masks of a batch.

    Attributes:
        masked: (B, L) bool, the tokens to predict.
        kept: (B, S) int64 ascending places that the encoder sees: all that are not masked, and some that are.
    """

    masked: Tensor
    kept: Tensor


def nested_masks(uniform: Tensor, num_dropped: int, num_masked: int | Tensor) -> NestedMasks:
    """Drop the tokens of the smallest numbers of each image, and mask those and the next smallest ones.

    Args:
        uniform: (B, L), no two alike in a row.
        num_dropped: How many the encoder does not see.
        num_masked: How many are masked, at least as many; one number, which may lie on the device.
    """
    order = uniform.argsort(dim=1)  # (B, L)
    return NestedMasks(order.argsort(dim=1) < num_masked, order[:, num_dropped:].sort(dim=1).values)


class MAGEMasking:
    """Masks a share of a batch's tokens from a normal distribution cut at both ends; the smallest share is always dropped.

    Args:
        min_ratio: Smallest share of masked tokens, and the share that is dropped.
        max_ratio: Largest share.
        mean: Of the normal distribution: 0.55 in MAGE, 0.75 where RCG's representation is the condition.
        std: Likewise.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, min_ratio: float = 0.5, max_ratio: float = 1.0, mean: float = 0.55, std: float = 0.25) -> None:
        if not 0 <= min_ratio < max_ratio <= 1:
            raise UserError(f"shares must satisfy 0 <= min_ratio < max_ratio <= 1, got {min_ratio} and {max_ratio}")
        if not 0 < std < math.inf:
            raise UserError(f"std of the share of masked tokens must be positive, got {std}")
        if not math.isfinite(mean):
            raise UserError(f"mean of the share of masked tokens must be a finite number, got {mean}")
        self.min_ratio, self.max_ratio, self.mean, self.std = min_ratio, max_ratio, mean, std

    def ratio(self, uniform: Tensor) -> Tensor:
        """Shares of masked tokens, float64, of uniform numbers in [0, 1)."""
        return truncated_normal_quantile(uniform, self.min_ratio, self.max_ratio, self.mean, self.std)

    def num_dropped(self, num_tokens: int) -> int:
        """How many of L tokens the encoder does not see."""
        return math.ceil(num_tokens * self.min_ratio)

    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> NestedMasks:
        """Draw masks (batch_size, num_tokens) on the generator's device, of one count for all of the batch."""
        ratio = self.ratio(torch.rand((), generator=generator, device=generator.device))
        count = (num_tokens * ratio).ceil().clamp(min=1)  # stays on the device
        uniform = torch.rand(batch_size, num_tokens, generator=generator, device=generator.device)
        return nested_masks(uniform, self.num_dropped(num_tokens), count)
