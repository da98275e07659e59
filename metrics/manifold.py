"""Precision, recall, density, coverage: how much of each feature set lies in the other's k-nearest-neighbour
balls.

The radius of a sample's ball is the distance to its k-th nearest neighbour in its own set, itself excluded.
Precision and recall: Kynkaanniemi et al., arXiv:1904.06991, equations 1-2. Density and coverage: Naeem et
al., arXiv:2002.09797, equations 2-3. Distances are taken block by block in float64, so no N x M matrix is
held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metrics.metric import FeatureMetric

_DEFAULT_K = 3  # arXiv:1904.06991, the ADM suite and torch-fidelity; dgm-eval and StudioGAN take 5.
_BLOCK_ROWS = 2048
#: Squared distance over squared norms below which two float32 feature vectors are the same (their rounding is 6e-8).
_EQUAL_RELATIVE = 1e-12


@dataclass(frozen=True)
class ManifoldScores:
    """The four shares.

    Args:
        precision: Share of fakes inside some real ball, in [0, 1].
        recall: Share of reals inside some fake ball, in [0, 1].
        density: Mean number of real balls a fake lies in, over k; may exceed 1.
        coverage: Share of real balls that hold at least one fake, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, fake: Tensor, k: int = _DEFAULT_K, block_rows: int = _BLOCK_ROWS) -> ManifoldScores:
    """Precision, recall, density and coverage of fake against real features.

    Args:
        real: (N, D) features.
        fake: (M, D) features.
        k: Which nearest neighbour sets a ball's radius, 1 to min(N, M) - 1.
        block_rows: Rows per block of distances; memory is block_rows * max(N, M) numbers, the result does not
            change.

    Raises:
        ValueError: If shapes disagree or a set has too few samples for k.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}.")
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"k must lie between 1 and the smaller set minus one ({min(len(real), len(fake)) - 1}), got {k}: give more images."
        )
    # Centring changes no distance and keeps digits in |x|^2 + |y|^2 - 2 x.y.
    center = real.double().mean(0)
    real, fake = real.double() - center, fake.double() - center
    real_radius, fake_radius = _radii(real, k, block_rows), _radii(fake, k, block_rows)

    num_balls_of_fake = torch.zeros(len(fake), dtype=torch.float64)
    is_real_covered = []
    is_real_recalled = []
    for start in range(0, len(real), block_rows):
        distances = _squared_distances(real[start : start + block_rows], fake)  # (b, M)
        inside_real = distances <= real_radius[start : start + block_rows, None]
        num_balls_of_fake += inside_real.sum(0)
        is_real_covered.append(inside_real.any(1))
        is_real_recalled.append((distances <= fake_radius).any(1))
    return ManifoldScores(
        precision=float((num_balls_of_fake > 0).double().mean()),
        recall=float(torch.cat(is_real_recalled).double().mean()),
        density=float(num_balls_of_fake.mean() / k),
        coverage=float(torch.cat(is_real_covered).double().mean()),
    )


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M); pairs that are equal to float32 rounding have distance 0."""
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    distances = norms - 2.0 * (x @ y.T)
    return distances.masked_fill_(distances < _EQUAL_RELATIVE * norms, 0.0)


def _radii(x: Tensor, k: int, block_rows: int) -> Tensor:
    """Squared distance of each sample to its k-th neighbour, itself excluded by index (a duplicate counts): (N,)."""
    radii = []
    for start in range(0, len(x), block_rows):
        distances = _squared_distances(x[start : start + block_rows], x)
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


class PrecisionRecall(FeatureMetric):
    """Precision, recall, density and coverage."""

    name = "precision_recall"

    def __init__(self, feature: str | None = None, k: int = _DEFAULT_K) -> None:
        super().__init__(feature)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.k = k

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature and neighbourhood."""
        return {"feature": self.feature, "k": self.k}

    def compute(self) -> dict[str, float]:
        """Return the four shares."""
        scores = precision_recall(self.features(True), self.features(False), self.k)
        return {
            "precision": scores.precision,
            "recall": scores.recall,
            "density": scores.density,
            "coverage": scores.coverage,
        }
