"""Frechet distance between Gaussians fitted to features: FID on Inception-v3's pool3, FD on any other
feature.

    d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Heusel et al., arXiv:1706.08500, equation 6). No matrix square root is taken: for any factors S1 = A A^T, S2
= B B^T the last trace is the sum of the singular values of A^T B. This holds at any rank, stays real, and
singular values lose no digits to squaring, so fewer samples than dimensions (N < D) are exact too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import SIDES, Metric, SmallSampleWarning, side_name
from metrics.moments import Gaussian, MomentAccumulator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from metrics.extractors.base import FeatureExtractor
    from metrics.statistics import FeatureStatistics


def frechet_distance(
    mu1: ArrayLike | Tensor, sigma1: ArrayLike | Tensor, mu2: ArrayLike | Tensor, sigma2: ArrayLike | Tensor
) -> float:
    """Squared Frechet distance between two Gaussians, in float64.

    Args:
        mu1: (D,) mean.
        sigma1: (D, D) covariance, of any rank.
        mu2: (D,) mean.
        sigma2: (D, D) covariance, of any rank.

    Returns:
        The distance, >= 0, in squared feature units.

    Raises:
        ValueError: If shapes disagree, a value is not finite, or a sigma is not a covariance.
    """
    return gaussian_distance(_gaussian(mu1, sigma1, "1"), _gaussian(mu2, sigma2, "2"))


def frechet_distance_from_features(features1: Tensor, features2: Tensor) -> float:
    """Squared Frechet distance between the Gaussians fitted to two feature sets.

    Args:
        features1: (N, D) features, N >= 2.
        features2: (M, D) features, M >= 2.

    Returns:
        The distance, >= 0. With N or M below D the rows themselves serve as the factor: exact and many times
        faster.
    """
    gaussians = []
    for features in (features1, features2):
        if features.ndim != 2 or not bool(torch.isfinite(features).all()):
            raise ValueError(f"features must be finite and of shape (N, D), got shape {tuple(features.shape)}.")
        accumulator = MomentAccumulator()
        accumulator.append(features.cpu())
        gaussians.append(accumulator.gaussian())
    return gaussian_distance(*gaussians)


def gaussian_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Frechet distance between two fitted Gaussians."""
    if first.mu.shape != second.mu.shape:
        raise ValueError(f"feature dimensions differ: {len(first.mu)} and {len(second.mu)}; use one extractor and feature.")
    coupling = first.square_root_factor().T @ second.square_root_factor()  # (r1, r2)
    overlap = float(torch.linalg.svdvals(coupling).sum()) if coupling.numel() else 0.0
    distance = float((first.mu - second.mu).square().sum()) + first.trace() + second.trace() - 2.0 * overlap
    return max(distance, 0.0)  # Equal Gaussians may round to -1e-12.


def _gaussian(mu: ArrayLike | Tensor, sigma: ArrayLike | Tensor, which: str) -> Gaussian:
    mean = torch.atleast_1d(_float64(mu))
    covariance = torch.atleast_2d(_float64(sigma))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"mu{which} must have shape (D,) and sigma{which} (D, D), got {tuple(mean.shape)} and {tuple(covariance.shape)}."
        )
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise ValueError(f"mu{which} or sigma{which} holds NaN or infinity: compute the statistics again.")
    return Gaussian(mu=mean, sigma=covariance)


def _float64(value: ArrayLike | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    return torch.from_numpy(np.array(value, dtype=np.float64))


class FrechetDistance(Metric):
    """Frechet distance of fake to real features.

    The result is called `fid` only for Inception-v3's pool3; on any other extractor or feature it is
    `frechet_distance` (`sfid` for Inception-v3's spatial feature).
    """

    name = "frechet"

    def __init__(self, feature: str | None = None) -> None:
        super().__init__(feature)
        self.key = "frechet_distance"
        self.accumulators = {side: MomentAccumulator() for side in SIDES}
        self.reference: Gaussian | None = None

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the feature, and the name that its distance has in the literature."""
        super().bind(extractor)
        self.key = extractor.frechet_names.get(str(self.feature), "frechet_distance")

    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Accumulate the features of one batch."""
        self.accumulators[side_name(real)].append(self.select(features))

    def load_reference(self, statistics: FeatureStatistics) -> None:
        """Take the real side from stored statistics."""
        self.reference = statistics.gaussian()

    def gaussian(self, real: bool) -> Gaussian:
        """Return the Gaussian fitted to one side.

        Raises:
            ValueError: If that side has fewer than two samples.
        """
        if real and self.reference is not None:
            return self.reference
        accumulator = self.accumulators[side_name(real)]
        if len(accumulator) < 2:
            raise ValueError(
                f"metric {self.name} needs at least 2 {side_name(real)} images and got {len(accumulator)}: "
                "a covariance of one image is undefined."
            )
        return accumulator.gaussian()

    def compute(self) -> dict[str, float]:
        """Return the distance under its key."""
        real, fake = self.gaussian(True), self.gaussian(False)
        for side, fit in (("real", real), ("fake", fake)):
            if fit.num_samples is not None and fit.num_samples < len(fit.mu):
                warnings.warn(
                    f"{fit.num_samples} {side} images are fewer than the {len(fit.mu)} feature dimensions: "
                    "the distance is "
                    "exact for these samples but biased upwards as an estimate; compare only at equal sample "
                    "counts.",
                    SmallSampleWarning,
                    stacklevel=2,
                )
        return {self.key: gaussian_distance(real, fake)}

    def reset(self, real: bool) -> None:
        """Forget one side."""
        self.accumulators[side_name(real)] = MomentAccumulator()
        if real:
            self.reference = None

    def state(self, real: bool) -> dict[str, Any]:
        """Return one side's moments."""
        return self.accumulators[side_name(real)].state()

    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Sum several processes' moments (the order of samples has no effect)."""
        self.accumulators[side_name(real)].load(states)
