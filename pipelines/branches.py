"""Key-value caches of guidance branches, which need not all be evaluated at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from generative.layers.kv_cache import KVCache

CACHE_STEP = 32
"""Slots by which a cache grows: what attention reads in vain is less than that, and copies to a larger one stay few."""


def reserve_branches(
    memory: dict[str, Any], make_cache: Callable[[int, int], KVCache], num_branches: int, batch_size: int, num_slots: int
) -> tuple[KVCache, list[int]]:
    """Cache of at least so many branches, each a block of rows, and slots, and how many slots each branch has read.

    Args:
        memory: Of the sampling state, which keeps both as ``cache`` and ``read``.
        make_cache: Makes an empty cache of so many rows and (at most) so many slots.
        num_branches: K.
        batch_size: B, rows of a branch.
        num_slots: Slots that are needed now; a cache of as many is packed, which products in bfloat16 on a CPU ask for.
    """
    cache: KVCache | None = memory.get("cache")
    read: list[int] = memory.setdefault("read", [])
    if cache is None or cache.batch_size < num_branches * batch_size or cache.length < num_slots:
        rows = max(num_branches * batch_size, cache.batch_size if cache else 0)
        larger = make_cache(rows, -(-num_slots // CACHE_STEP) * CACHE_STEP)
        if cache is not None:
            larger.keys[:, : cache.batch_size, :, : cache.length] = cache.keys
            larger.values[:, : cache.batch_size, :, : cache.length] = cache.values
        memory["cache"] = cache = larger
        read.extend([0] * (num_branches - len(read)))
    return cache, read


def tokens_before(tokens: Tensor, start: int, stop: int) -> Tensor:
    """The token before each of the positions ``start`` to ``stop - 1``; at position 0, which reads the class, any.

    Args:
        tokens: (B, L, ...).
        start: First position.
        stop: End of the positions.

    Returns:
        (B, stop - start, ...).
    """
    if start > 0:
        return tokens[:, start - 1 : stop - 1]
    return torch.cat([tokens[:, :1], tokens[:, : stop - 1]], dim=1)
