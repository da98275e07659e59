"""Scores extrapolated to infinitely many samples (Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where
to find them", arXiv:1911.07023).

The bias of a score of n samples is a / n to first order, so the scores at several n lie on a line over 1 / n whose
intercept is the score without bias. The sizes are those of dgm-eval: 15, evenly spaced from min(5000, N / 10) to N, each a
draw of the N fakes without replacement. The paper's Sobol latents need the generator itself and are not used here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import FeatureMetric, SmallSampleWarning
from metrics.scores.frechet import gaussian_distance
from metrics.scores.inception_score import inception_score
from metrics.scores.moments import Gaussian, MomentAccumulator

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor
    from metrics.files.statistics import FeatureEntry

_DEFAULT_POINTS = 15  # arXiv:1911.07023, section 5; dgm-eval.
_SMALLEST_SIZE = 5000  # Ibid.
_SMALLEST_SHARE = 10  # dgm-eval starts at N / 10 where that is fewer.
_DEFAULT_SEED = 0
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Extrapolation:
    """A line fitted to scores over 1 / n.

    Args:
        intercept: The score at n = infinity.
        slope: Its change per 1 / n.
        stderr: Standard error of the intercept from the residuals, as if the points were independent; draws from one
            pool are not quite.
        sizes: Sample counts n of the points.
        values: Score at each of them.
    """

    intercept: float
    slope: float
    stderr: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def frechet_infinity(
    fake: Tensor, reference: Gaussian, num_points: int = _DEFAULT_POINTS, seed: int = _DEFAULT_SEED
) -> Extrapolation:
    """Frechet distance extrapolated to infinitely many fakes; the reference is fixed.

    Args:
        fake: (N, D) features.
        reference: The Gaussian of the real features, of dimension D.
        num_points: Sample counts to fit, at least 3.
        seed: Of the draws.

    Returns:
        The fit. Its intercept, unlike a distance, can be slightly negative.

    Raises:
        ValueError: If there are fewer than 2 * num_points fakes, num_points is below 3, or dimensions differ.
    """
    # The factor is the same in every distance: take it once.
    reference = Gaussian(mu=reference.mu, factor=reference.square_root_factor(), num_samples=reference.num_samples)

    def score(indices: Tensor) -> float:
        accumulator = MomentAccumulator()
        for block in indices.split(_BLOCK_ROWS):
            accumulator.append(fake[block])
        return gaussian_distance(reference, accumulator.gaussian())

    return _extrapolate(score, len(fake), num_points, seed)


def inception_score_infinity(logits: Tensor, num_points: int = _DEFAULT_POINTS, seed: int = _DEFAULT_SEED) -> Extrapolation:
    """Inception Score, in one split, extrapolated to infinitely many images.

    Args:
        logits: (N, K) class logits.
        num_points: Sample counts to fit, at least 3.
        seed: Of the draws.

    Returns:
        The fit.

    Raises:
        ValueError: If there are fewer than 2 * num_points images or num_points is below 3.
    """
    return _extrapolate(
        lambda indices: inception_score(logits[indices], splits=1, shuffle_seed=None)[0], len(logits), num_points, seed
    )


def _extrapolate(score: Callable[[Tensor], float], num_samples: int, num_points: int, seed: int) -> Extrapolation:
    """Score draws of growing size and fit the line."""
    if num_points < 3:
        raise ValueError(f"num_points must be at least 3 for a line and its error, got {num_points}.")
    if num_samples < 2 * num_points:
        raise ValueError(f"an extrapolation over {num_points} sizes needs at least {2 * num_points} images, got {num_samples}.")
    smallest = min(_SMALLEST_SIZE, max(num_samples // _SMALLEST_SHARE, 2))
    sizes = np.linspace(smallest, num_samples, num_points).astype(int)
    generator = torch.Generator().manual_seed(seed)
    values = [score(torch.randperm(num_samples, generator=generator)[: int(size)]) for size in sizes]
    return _fit(sizes, np.array(values))


def _fit(sizes: np.ndarray, values: np.ndarray) -> Extrapolation:
    """Least squares of values = intercept + slope / sizes."""
    x = 1.0 / sizes
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (values - values.mean())).sum()) / spread
    intercept = float(values.mean() - slope * x.mean())
    variance = float(((values - intercept - slope * x) ** 2).sum()) / (len(x) - 2)
    return Extrapolation(
        intercept=intercept,
        slope=slope,
        stderr=float(np.sqrt(variance * (1.0 / len(x) + x.mean() ** 2 / spread))),
        sizes=tuple(int(size) for size in sizes),
        values=tuple(float(value) for value in values),
    )


class FrechetInfinity(FeatureMetric):
    """Frechet distance extrapolated to infinitely many fakes, and the standard error of the fit.

    Called ``fid_infinity`` on Inception-v3's pool3 and ``frechet_distance_infinity`` elsewhere.

    Args:
        feature: Feature to read; None takes the extractor's own.
        num_points: Sample counts to fit.
        seed: Of the draws.
    """

    name = "frechet_infinity"

    def __init__(self, feature: str | None = None, num_points: int = _DEFAULT_POINTS, seed: int = _DEFAULT_SEED) -> None:
        super().__init__(feature)
        if num_points < 3:
            raise ValueError(f"num_points must be at least 3 for a line and its error, got {num_points}.")
        self.num_points = num_points
        self.seed = seed
        self.key = "frechet_distance_infinity"
        self.moments = MomentAccumulator()  # Of the real side, whose features are not needed one by one.
        self.reference: Gaussian | None = None

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the feature, and the name that its distance has in the literature."""
        super().bind(extractor)
        self.key = f"{extractor.frechet_names.get(str(self.feature), 'frechet_distance')}_infinity"

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature, number of sizes and seed."""
        return {"feature": self.feature, "num_points": self.num_points, "seed": self.seed}

    def least_images(self, real: bool) -> int:
        """Return what the fit needs of the fakes, and a covariance of the reals."""
        return 2 if real else 2 * self.num_points

    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Accumulate the real features of one batch, keep the fake ones."""
        if real:
            self.moments.append(self.select(features))
        else:
            super().update(features, real)

    def load_statistics(self, entry: FeatureEntry, real: bool) -> bool:
        """Take the reference from stored moments or features, the fakes from stored features."""
        if not real:
            return super().load_statistics(entry, real)
        if entry.mu is None or entry.sigma is None:
            if entry.features is None:
                return False
            self.reset(True)
            self.moments.append(entry.features)
            return True
        self.reset(True)
        self.reference = Gaussian(mu=entry.mu, sigma=entry.sigma)
        return True

    def reset(self, real: bool) -> None:
        """Forget one side."""
        super().reset(real)
        if real:
            self.moments, self.reference = MomentAccumulator(), None

    def state(self, real: bool) -> Any:
        """Return the real moments or the fake chunks."""
        return self.moments.state() if real else super().state(real)

    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Sum several processes' moments or concatenate their chunks."""
        if real:
            self.moments.load(states)
        else:
            super().load_states(real, states, order)

    def extrapolation(self) -> Extrapolation:
        """Return the fit with its points, for a plot."""
        if self.reference is None and len(self.moments) < 2:
            raise ValueError(f"metric {self.name} needs at least 2 real images and got {len(self.moments)}.")
        reference = self.reference or self.moments.gaussian()
        return frechet_infinity(self.features(False), reference, self.num_points, self.seed)

    def compute(self) -> dict[str, float]:
        """Return the intercept and its standard error."""
        fit = self.extrapolation()
        dimension = self.features(False).shape[1]
        if fit.sizes[0] < dimension:
            warnings.warn(
                f"the extrapolation starts at {fit.sizes[0]} images, fewer than the {dimension} feature dimensions, where the "
                f"bias is not yet linear in 1 / n: give at least {min(_SMALLEST_SHARE * dimension, 50_000)} images.",
                SmallSampleWarning,
                stacklevel=2,
            )
        return {self.key: fit.intercept, f"{self.key}_stderr": fit.stderr}
