"""Monge Inception distance (MIND): the sliced Wasserstein distance between two feature sets.

    MIND = 3 D / (R n) * sum_i sum_j (sort(X u_i)_j - sort(Y u_i)_j)^2

over R random unit directions u_i in D dimensions and n samples a side (Berthet et al., "MIND: Monge Inception
Distance for Generative Models Evaluation", arXiv:2605.06797). Unlike the Frechet distance it sees more than
mean and covariance, and needs fewer samples. Of a pure shift it is 3 |mu1 - mu2|^2 in the mean over directions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import FeatureMetric

_NUM_DIRECTIONS = 1000  # arXiv:2605.06797 and torch-fidelity.
_SEED = 2020  # torch-fidelity's, so that both give the same number.
_SCALE_PER_DIM = 3.0  # alpha = 3 D in arXiv:2605.06797.
_PROJECTED_ELEMENTS = 2**23  # Projections per chunk of directions and side: 32 MiB in float32.
_BLOCK_ROWS = 2048


def monge_inception_distance(real: Tensor, fake: Tensor, num_directions: int = _NUM_DIRECTIONS, seed: int = _SEED) -> float:
    """MIND of two feature sets.

    All randomness is one stream, ``torch.Generator("cpu").manual_seed(seed)``, in torch-fidelity's order. Where N
    and M differ, the larger set is cut to the first n = min(N, M) rows of a random permutation
    (``torch.randperm``). Then the directions are normal vectors (``torch.randn``, float32) divided by their lengths.
    The value depends on the order of rows only through that cut: on which rows have which number, not on
    batches or processes; with equal counts it does not depend on order at all.

    Args:
        real: (N, D) features, N >= 2.
        fake: (M, D) features, M >= 2.
        num_directions: Number of random directions.
        seed: Seed of the stream.

    Returns:
        The distance, >= 0, in squared feature units.

    Raises:
        ValueError: If shapes disagree, a set has fewer than two samples, a value is not finite, or
            num_directions is below 1.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}.")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"each set needs at least two samples, got {len(real)} and {len(fake)}.")
    if num_directions < 1:
        raise ValueError(f"num_directions must be at least 1, got {num_directions}.")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    count, dim = min(len(real), len(fake)), real.shape[1]
    fake, real = (_cut(features.detach().cpu(), count, generator) for features in (fake, real))
    directions = torch.randn(num_directions, dim, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    # A common shift moves both projections alike; without it float32 keeps the digits of their gaps.
    center = sum(block.double().sum(0) for block in real.split(_BLOCK_ROWS)) / count

    total = 0.0
    for chunk in directions.split(max(1, _PROJECTED_ELEMENTS // count)):
        gaps = _sorted_projections(fake, center, chunk)
        gaps -= _sorted_projections(real, center, chunk)
        total += float(np.square(gaps, out=gaps).sum(1).sum(dtype=np.float64))
    if not math.isfinite(total):
        raise ValueError("features hold NaN or infinity: MIND needs finite features; extract them again.")
    return _SCALE_PER_DIM * dim * total / (num_directions * count)


def _cut(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(features) == count:
        return features
    return features[torch.randperm(len(features), generator=generator)[:count]]


def _sorted_projections(features: Tensor, center: Tensor, directions: Tensor) -> np.ndarray:
    """Project centred (n, D) on (r, D) and sort: (r, n), float64 if the features are, else float32."""
    dtype = features.dtype if features.dtype == torch.float64 else torch.float32
    axes, center = directions.to(dtype).numpy(), center.to(dtype)
    projections = np.empty((len(axes), len(features)), dtype=axes.dtype)
    for start in range(0, len(features), _BLOCK_ROWS):
        rows = features[start : start + _BLOCK_ROWS].to(dtype) - center
        # numpy's product: torch may take bfloat16 for float32 (torch.set_float32_matmul_precision).
        projections[:, start : start + _BLOCK_ROWS] = axes @ rows.numpy().T
    projections.sort(axis=1)
    return projections


class MongeInceptionDistance(FeatureMetric):
    """MIND on any feature; published on Inception-v3's pool3 with 1,000 directions and 5,000 samples.

    Args:
        feature: Name of the extractor's feature; None takes the extractor's own.
        num_directions: Number of random directions.
        seed: Seed of the directions, and of the cut to equal counts where they differ.
    """

    name = "mind"

    def __init__(self, feature: str | None = None, num_directions: int = _NUM_DIRECTIONS, seed: int = _SEED) -> None:
        super().__init__(feature)
        if num_directions < 1:
            raise ValueError(f"num_directions must be at least 1, got {num_directions}.")
        self.num_directions = num_directions
        self.seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature, directions and seed."""
        return {"feature": self.feature, "num_directions": self.num_directions, "seed": self.seed}

    def compute(self) -> dict[str, float]:
        """Return the distance as ``mind``."""
        return {"mind": monge_inception_distance(self.features(True), self.features(False), self.num_directions, self.seed)}
