"""Precision, recall, density, coverage: how much of each feature set lies in the other's k-nearest-neighbour
balls.

The radius of a sample's ball is the distance to its k-th nearest neighbour in its own set, itself excluded.
Precision and recall: Kynkaanniemi et al., arXiv:1904.06991, equations 1-2. Density and coverage: Naeem et
al., arXiv:2002.09797, equations 2-3. ``metrics.scores.neighbours`` takes the distances tile by tile, so no N x M matrix
is held, and its answers are those of float64 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metrics.metric import FeatureMetric
from metrics.scores.neighbours import BLOCK_ROWS, Balls, ball_radii, clouds, count_in_balls

_DEFAULT_K = 3  # arXiv:1904.06991, the ADM suite and torch-fidelity; dgm-eval and StudioGAN take 5.


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


def precision_recall(real: Tensor, fake: Tensor, k: int = _DEFAULT_K, block_rows: int = BLOCK_ROWS) -> ManifoldScores:
    """Precision, recall, density and coverage of fake against real features.

    The counts are those of distances in float64. Two features whose squared distance is below 1e-12 of the sum
    of their squared lengths (about the mean of the reals) count as one: that is the rounding of one image
    scored twice.

    Args:
        real: (N, D) features, finite.
        fake: (M, D) features, finite.
        k: Which nearest neighbour sets a ball's radius, 1 to min(N, M) - 1.
        block_rows: Side of a tile of distances: memory is some ten times its square, plus its product with D;
            the result does not change.

    Returns:
        The four shares.

    Raises:
        ValueError: If shapes disagree, a value is not finite, or a set has too few samples for k.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}.")
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"k must lie between 1 and the smaller set minus one ({min(len(real), len(fake)) - 1}), got {k}: give more images."
        )
    if block_rows < 1:
        raise ValueError(f"block_rows must be at least 1, got {block_rows}.")
    real_cloud, fake_cloud = clouds(real, fake, block_rows)
    real_balls = Balls(real_cloud, ball_radii(real_cloud, k))
    fake_balls = Balls(fake_cloud, ball_radii(fake_cloud, k))
    counts = count_in_balls(real_balls, fake_balls)
    return ManifoldScores(
        precision=float((counts.num_real_balls > 0).mean()),
        recall=float(counts.is_real_recalled.mean()),
        density=float(counts.num_real_balls.mean() / k),
        coverage=float(counts.is_real_covered.mean()),
    )


class PrecisionRecall(FeatureMetric):
    """Precision, recall, density and coverage."""

    name = "precision_recall"
    higher_is_better = True

    def __init__(self, feature: str | None = None, k: int = _DEFAULT_K) -> None:
        super().__init__(feature)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.k = k

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature and neighbourhood."""
        return {"feature": self.feature, "k": self.k}

    @property
    def score_names(self) -> tuple[str, ...]:
        """The four shares."""
        return ("precision", "recall", "density", "coverage")

    def least_images(self, real: bool) -> int:
        """Return one more than k: every image needs a k-th neighbour in its own set."""
        return self.k + 1

    def compute(self) -> dict[str, float]:
        """Return the four shares."""
        scores = precision_recall(self.features(True), self.features(False), self.k)
        return {
            "precision": scores.precision,
            "recall": scores.recall,
            "density": scores.density,
            "coverage": scores.coverage,
        }
