"""What a finished cache tells of itself: use of codes or spread of latents, and which images it keeps."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from generative.core.seeding import keyed_generator
from generative.data.base import ImageDataset
from generative.data.cache_files import ShardReader, shard_name
from generative.data.token_cache import check_ids

GRID_CLASSES, GRID_IMAGES_PER_CLASS = 10, 16
"""Previews for the rows of real images in sample grids (``RunObserver``: 10 classes, 10 columns unless the trainer says more)."""

RANDOM_PREVIEW_BYTES = 32 * 1024**2
"""Of the random images that are kept for scores of real images: 10,000 of 32 x 32 pixels, 170 of 256 x 256."""


def cache_statistics(shards: ShardReader) -> dict[str, float]:
    """What to know of a cache.

    Args:
        shards: All of them.

    Returns:
        For tokens: ``codes_used``; ``bits_per_image``, L log2 V; ``entropy_per_token``, of the codes' frequencies, in bits. For
        latents: ``mean`` and ``std`` of the drawn latents over all entries, which training expects near 0 and 1.

    Raises:
        UserError: If an id is out of range.
    """
    spec = shards.spec
    if spec.num_codes is not None:
        counts = np.zeros(spec.num_codes, dtype=np.int64)
        for shard, tensors in enumerate(shards):
            check_ids(tensors["tokens"], spec.num_codes, shard_name(shard))
            counts += np.bincount(tensors["tokens"].ravel(), minlength=spec.num_codes)
        return {**code_statistics(counts), "bits_per_image": spec.shape[0] * math.log2(spec.num_codes)}
    total, squares, count = 0.0, 0.0, 0
    for tensors in shards:
        mean = tensors["mean"].astype(np.float64)
        total += mean.sum()
        squares += np.square(mean).sum() + (np.square(tensors["std"].astype(np.float64)).sum() if spec.has_std else 0.0)
        count += mean.size
    return {"mean": float(total / count), "std": float(math.sqrt(max(0.0, squares / count - (total / count) ** 2)))}


def code_statistics(counts: np.ndarray) -> dict[str, float]:
    """Use of codes.

    Args:
        counts: (V,) how often each code was used; not all 0.

    Returns:
        ``codes_used``, and ``entropy_per_token`` of their frequencies in bits.
    """
    shares = counts[counts > 0] / counts.sum()
    return {"codes_used": int((counts > 0).sum()), "entropy_per_token": float(abs((shares * np.log2(shares)).sum()))}


def preview_indices(images: ImageDataset) -> Tensor:
    """Which images a cache keeps, (P,) int64 ascending: the first of each of the first classes, and a random subset.

    The grids of real images, a diagnosis (``RunObserver``) and scores of real images (``Evaluator.score_real``) are made of them.
    """
    first = [(images.labels == label).nonzero().flatten()[:GRID_IMAGES_PER_CLASS] for label in range(GRID_CLASSES)]
    # A diagnosis takes classes that have several images, wherever those are.
    labels, counts = images.labels.unique(return_counts=True)
    several = labels[counts > 1][:GRID_CLASSES]
    first += [(images.labels == label).nonzero().flatten()[:GRID_IMAGES_PER_CLASS] for label in several]
    num_random = RANDOM_PREVIEW_BYTES // (3 * images.image_size**2)
    chosen = torch.randperm(len(images), generator=keyed_generator("cache previews", images.fingerprint))[:num_random]
    return torch.cat([*first, torch.arange(min(len(images), GRID_IMAGES_PER_CLASS)), chosen]).unique()
