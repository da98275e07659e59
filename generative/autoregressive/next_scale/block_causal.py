"""Block-causal attention: the tokens of a scale see all tokens of their own and of earlier scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.layers.short_attention import attend

# Scales of at least so many tokens attend in a call of their own, without a mask: half of the work of the masked square is saved,
# and flash kernels, which take no mask, may run. Smaller ones share a masked call: it costs less than its launches would.
OWN_CALL_TOKENS = 128


@dataclass(frozen=True)
class QuerySlice:
    """Queries ``start`` to ``stop`` of a sequence, which see no key behind ``stop``.

    Attributes:
        start: First query.
        stop: One behind the last query.
        is_masked: Whether the queries are of several scales, so that the earlier ones must not see all keys before ``stop``.
    """

    start: int
    stop: int
    is_masked: bool


def scale_offsets(patch_nums: Sequence[int]) -> list[int]:
    """Where each scale starts in the sequence, and as the last entry where it ends: [0, 1, 5, 14] of (1, 2, 3)."""
    offsets = [0]
    for side in patch_nums:
        offsets.append(offsets[-1] + side * side)
    return offsets


def query_slices(patch_nums: Sequence[int], first: int = 0, last: int | None = None) -> list[QuerySlice]:
    """Divide the queries of scales ``first`` to ``last - 1`` (None: to the end) into as few cheap attention calls as possible.

    Args:
        patch_nums: Tokens along a side, of each scale.
        first: First scale.
        last: One behind the last scale.
    """
    offsets = scale_offsets(patch_nums)
    last = len(patch_nums) if last is None else last
    groups: list[list[int]] = []
    joins = False
    for scale in range(first, last):
        is_small = patch_nums[scale] ** 2 < OWN_CALL_TOKENS
        if is_small and joins:
            groups[-1].append(scale)
        else:
            groups.append([scale])
        joins = is_small
    return [QuerySlice(offsets[group[0]], offsets[group[-1] + 1], len(group) > 1) for group in groups]


def block_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, slices: Sequence[QuerySlice], levels: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """Attend slice by slice.

    Args:
        q: (B, heads, S, d) queries of the slices, one behind the other.
        k: (B, heads, at least the last ``stop``, d) keys from the first token on.
        v: Values, likewise.
        slices: From ``query_slices``.
        levels: (L,) int64 scale of each token.
        scale: Factor on the products of queries and keys.
        dropout: Share of attention weights dropped.

    Returns:
        (B, heads, S, d).
    """
    start = slices[0].start
    outputs = []
    for part in slices:
        mask = None
        if part.is_masked:
            mask = levels[part.start : part.stop, None] >= levels[: part.stop]  # (queries, keys) bool
        queries = q[:, :, part.start - start : part.stop - start]
        outputs.append(attend(queries, k[:, :, : part.stop], v[:, :, : part.stop], mask, dropout, scale))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)  # (B, heads, S, d)
