"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leave out a residual branch for some samples of a batch in training, and scale it up for the others (arXiv 1603.09382).

    Args:
        rate: Probability of leaving it out, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if self.rate == 0 or not self.training:
            return x
        kept = torch.empty(len(x), *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of the blocks of a network: evenly spaced from 0 in the first to ``rate`` in the last."""
    return [rate * block / max(depth - 1, 1) for block in range(depth)]
