"""Cross-entropy over large codebooks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_VALUES = 2**18
"""Logits worked on at a time: 1 MiB in float32, the second-level cache of a core."""


class InPlaceCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy whose gradient is written over the logits, a few rows at a time while they are in the cache.

    Loss, gradient and accuracy take one pass through memory; torch's own functions take about eight and three more tensors as
    large as the logits, which for a codebook of 16,384 are larger than all activations of a small transformer.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V), overwritten, and targets (N,) int64 -> mean loss in nats and accuracy, float32 scalars."""
        count = len(logits)
        losses, correct = torch.empty(count), torch.empty(count, dtype=torch.bool)
        rows = max(1, CHUNK_VALUES // logits.shape[1])
        for start in range(0, count, rows):
            part, target = logits[start : start + rows], targets[start : start + rows, None]  # (R, V), (R, 1)
            values = part.float()  # itself if it is float32
            top, best = values.max(dim=1, keepdim=True)  # (R, 1)
            chosen = values.gather(1, target)  # (R, 1)
            values.sub_(top).exp_()
            total = values.sum(dim=1, keepdim=True)  # (R, 1)
            losses[start : start + rows] = (total.log() + top - chosen)[:, 0]
            correct[start : start + rows] = (best == target)[:, 0]
            values.mul_(1 / (count * total)).scatter_add_(1, target, torch.full_like(total, -1 / count))
            if values is not part:
                part.copy_(values)
        ctx.save_for_backward(logits)
        accuracy = correct.float().mean()
        ctx.mark_non_differentiable(accuracy)
        return losses.mean(), accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """What ``forward`` wrote, times the loss's own gradient."""
        (of_logits,) = ctx.saved_tensors
        return (of_logits if gradient == 1 else of_logits * gradient.to(of_logits.dtype)), None


def token_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy, and the share of targets that are the most probable token.

    Args:
        logits: (..., V), any float dtype; where they are differentiated on a CPU they are overwritten, so they must not be used
            again.
        targets: (...) int64 in [0, V).
        label_smoothing: Share of each target spread evenly over all codes.

    Returns:
        Loss in nats, float32, differentiable once; accuracy in [0, 1].
    """
    logits, targets = logits.flatten(0, -2), targets.flatten()  # (N, V), (N,)
    in_place = logits.requires_grad and torch.is_grad_enabled() and logits.device.type == "cpu" and logits.is_contiguous()
    if in_place and label_smoothing == 0 and not torch.compiler.is_compiling():
        loss, accuracy = InPlaceCrossEntropy.apply(logits, targets)
        return loss, accuracy
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    with torch.no_grad():
        accuracy = (logits.argmax(dim=-1) == targets).float().mean()
    return loss, accuracy
