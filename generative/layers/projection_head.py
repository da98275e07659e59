"""The last layers of projection discriminators (arXiv 1802.05637), in full precision whatever the rest runs in.

The features are sums over all positions: a bfloat16 logit (three digits) would round away what tells real from fake.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sum_pool(sample: Tensor) -> Tensor:
    """Sum over positions.

    Args:
        sample: (B, C, H, W).

    Returns:
        (B, C), float32 where the sample is of half precision.
    """
    return sample.sum((2, 3), dtype=torch.float32 if sample.dtype in (torch.float16, torch.bfloat16) else None)


def projection_logits(features: Tensor, class_labels: Tensor, linear: nn.Module, class_embedding: nn.Module | None) -> Tensor:
    """Linear outputs plus the features' product with the class's vector (arXiv 1802.05637, eq. 3).

    Args:
        features: (B, D).
        class_labels: (B,) int64.
        linear: (B, D) to (B, outputs).
        class_embedding: (B,) to (B, D); None for an unconditional discriminator.

    Returns:
        (B, outputs), in the features' precision.
    """
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = linear(features)
        if class_embedding is not None:
            logits = logits + (class_embedding(class_labels) * features).sum(1, keepdim=True)
    return logits
