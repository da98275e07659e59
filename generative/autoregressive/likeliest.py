"""Top-k and top-p in one sort of values: what ``keep_top_k`` and ``keep_top_p`` keep, for many rows at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sort_values(values: Tensor) -> Tensor:
    """Values (N, V) float32 in ascending order along the rows, without gradients.

    On a CPU by numpy, whose vectorised sort takes 3 ms for 2,048 rows of 1,024 where torch's takes 120 and its topk of 900 takes
    89 (one core of an AMD EPYC with AVX-512).
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return values.sort(dim=-1).values


def keep_likeliest(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Rule out all but the ``top_k`` most probable tokens, then all but the nucleus of those (arXiv 1805.04833, 1904.09751).

    Tokens that are as probable as the last one kept stay.

    Args:
        logits: (..., V) float32.
        top_k: At least 1; None, or V and more, for all.
        top_p: In (0, 1]; the fewest most probable tokens that sum to at least this are kept, one at least.

    Returns:
        (..., V), -inf where ruled out.
    """
    num_codes = logits.shape[-1]
    first = max(num_codes - top_k, 0) if top_k is not None else 0  # of those kept, in ascending order
    if first == 0 and top_p >= 1:
        return logits
    kept = sort_values(logits.flatten(0, -2))[:, first:]  # (N, K)
    place = torch.zeros(len(kept), 1, dtype=torch.int64, device=kept.device)
    if top_p < 1:
        up_to = kept.softmax(dim=-1).cumsum(dim=-1)  # (N, K) probability of a token and all less probable ones
        # A rounded sum may lie below 1 at the end too: the last, most probable one always stays.
        place = (up_to[:, :-1] <= 1 - top_p).sum(dim=-1, keepdim=True)  # (N, 1)
    least = kept.gather(1, place).view(*logits.shape[:-1], 1)
    return logits.masked_fill(logits < least, -torch.inf)
