"""Class labels and the null condition in training."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_labels(class_labels: Tensor, null_label: int, rate: float, generator: torch.Generator) -> Tensor:
    """Replace some labels by the null condition, for classifier-free guidance (arXiv 2207.12598, algorithm 1).

    Args:
        class_labels: (B,) int64.
        null_label: Label of the null condition, ``num_classes`` in this project's networks.
        rate: Probability of replacing a label, in [0, 1).
        generator: Source of the draw.

    Returns:
        (B,) int64.
    """
    if rate == 0:
        return class_labels
    dropped = torch.rand(class_labels.shape, generator=generator, device=generator.device) < rate
    return torch.where(dropped.to(class_labels.device), null_label, class_labels)
