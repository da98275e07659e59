"""What training measures, apart by noise level: an error of little noise and one of much are different things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from generative.core.processes import total

QUARTERS = 4


class NoiseMonitor:
    """Recent means of some values by quarter of the noise level, q0 the cleanest.

    Args:
        names: Of the values.
        window_steps: Steps that "recent" means.

    Attributes:
        sums: (1 + V, 4) float32 moving averages of the images of a step and of their values' sums, in each quarter.
    """

    sums: Tensor

    def __init__(self, names: Sequence[str], window_steps: int = 100) -> None:
        self.names = tuple(names)
        self.window_steps = window_steps
        self.sums = torch.zeros(1 + len(self.names), QUARTERS)
        # Of the step under way: nothing that a checkpoint would hold.
        self._new: list[Tensor] = []

    def record(self, levels: Tensor, values: Mapping[str, Tensor]) -> None:
        """Take a micro-batch: noise levels (B,) in [0, 1], and the values (B,) of all names."""
        quarters = (levels * QUARTERS).long().clamp(0, QUARTERS - 1)
        is_in = (quarters[:, None] == torch.arange(QUARTERS, device=levels.device)).float()  # (B, 4)
        rows = torch.stack([row.detach().float() for row in (torch.ones_like(levels), *(values[name] for name in self.names))])
        # Not a product of matrices, which autocast would round to half precision: counts beyond 256 would be lost.
        self._new.append((rows[:, None] * is_in.T).sum(-1))  # (1 + V, 4)

    def fold(self) -> None:
        """End a step: sum over micro-batches and processes, and remember."""
        self.sums.lerp_(total(torch.stack(self._new).sum(0)), 1 / self.window_steps)
        self._new = []

    def means(self) -> dict[str, Tensor]:
        """Mean of each value in each quarter that had images, as ``NAME_q0`` and so on."""
        count, *sums = self.sums
        return {
            f"{name}_q{quarter}": row[quarter] / count[quarter]
            for name, row in zip(self.names, sums, strict=True)
            for quarter in range(QUARTERS)
            if count[quarter] > 0
        }
