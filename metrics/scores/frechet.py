"""Frechet distance between Gaussians fitted to features: FID on Inception-v3's pool3, FD on any other
feature.

    d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Heusel et al., arXiv:1706.08500, equation 6). No matrix square root is taken: for any factors S1 = A A^T, S2
= B B^T the last trace is the sum of the singular values of A^T B. This holds at any rank, stays real, and
singular values lose no digits to squaring, so fewer samples than dimensions (N < D) are exact too.

The same trace is the sum of the roots of the eigenvalues of A^T S2 A, which are found twice as fast. Small
eigenvalues lose digits, though, so that sum stands only if a bound on its error is below 1e-8 of the
distance; in practice it agrees with the singular values to 1e-12.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import SIDES, Metric, SmallSampleWarning, side_name
from metrics.scores.moments import Gaussian, MomentAccumulator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from metrics.extractors.base import FeatureExtractor
    from metrics.files.statistics import FeatureEntry

#: Largest estimated error of the distance, relative to it, up to which eigenvalues are taken for singular values. On spectra
#: that fall like k^-1 to k^-2 (D = 2048) the true error was 1e-13 to 1e-10 where the estimate was 4e-10 to 6e-5.
_TOLERANCE = 1e-6
#: Error of an eigenvalue of S1 S2 over |S1| |S2|: the Guide's p(n) eps with p(n) = 4; the worst seen was 0.2 eps.
_EIGENVALUE_ERROR = 4.0 * float(np.finfo(np.float64).eps)
_POWER_STEPS = 4
_BLOCK_COLUMNS = 32  # LAPACK's block of columns in dsytrd, for its workspace.


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
    separate = float((first.mu - second.mu).square().sum()) + first.trace() + second.trace()
    if not np.isfinite(separate):
        raise ValueError("the mean or covariance holds NaN or infinity: the features it was fitted to are not finite.")
    overlap = _overlap_from_eigenvalues(first, second, separate)
    if overlap is None:
        overlap = _overlap_from_singular_values(first, second)
    return max(separate - 2.0 * overlap, 0.0)  # Equal Gaussians may round to -1e-12.


def _overlap_from_singular_values(first: Gaussian, second: Gaussian) -> float:
    """tr (S1 S2)^(1/2), at any rank and condition."""
    coupling = first.square_root_factor().numpy().T @ second.square_root_factor().numpy()  # (r1, r2)
    return float(np.linalg.svd(coupling, compute_uv=False).sum()) if coupling.size else 0.0


def _overlap_from_eigenvalues(first: Gaussian, second: Gaussian, separate: float) -> float | None:
    """tr (S1 S2)^(1/2), or None where the eigenvalues do not give the distance to ``_TOLERANCE``.

    Computed eigenvalues are off by some eps |S1| |S2| (LAPACK Users' Guide, 3rd edition, sections 4.7.1 and
    4.10.1). Of an eigenvalue l that is off by delta, the root is off by min(delta / (2 sqrt l), sqrt delta). The errors
    are roundings, each of its own sign, so that their squares add up.
    """
    eigenvalues = _coupling_eigenvalues(first, second)
    if eigenvalues is None or not np.isfinite(eigenvalues).all():
        return None
    delta = _EIGENVALUE_ERROR * _largest_variance(first) * _largest_variance(second)
    if not eigenvalues.size or float(eigenvalues.min()) < -delta:
        return None
    roots = np.sqrt(np.maximum(eigenvalues, 0.0))
    overlap = float(roots.sum())
    error = float(np.linalg.norm(delta / np.maximum(2.0 * roots, np.sqrt(delta)))) if delta > 0.0 else 0.0
    return overlap if 2.0 * error <= _TOLERANCE * (separate - 2.0 * overlap) else None


def _coupling_eigenvalues(first: Gaussian, second: Gaussian) -> np.ndarray | None:
    """Eigenvalues of S1 S2 other than those that are 0 for lack of rank; None if no covariance is positive definite."""
    if first.factor is not None and second.factor is not None:
        coupling = first.factor.numpy().T @ second.factor.numpy()
        if coupling.shape[0] > coupling.shape[1]:
            coupling = coupling.T
        return np.linalg.eigvalsh(coupling @ coupling.T)
    if first.factor is not None or second.factor is not None:
        narrow, wide = (first, second) if first.factor is not None else (second, first)
        factor = narrow.square_root_factor().numpy()
        return np.linalg.eigvalsh(factor.T @ (wide.covariance().numpy() @ factor))
    from scipy.linalg import lapack  # A tenth of a second to import, which fewer samples than dimensions never need.

    for positive, other in ((first, second), (second, first)):
        # LAPACK reads columns: the transposes of the symmetric matrices spare copies.
        triangle, failed = lapack.dpotrf(positive.covariance().numpy().T, lower=1, clean=0)
        if not failed:
            product, _ = lapack.dsygst(other.covariance().numpy().T, triangle, itype=2, lower=1)  # L^T S2 L
            # Half a symmetric eigenproblem: tridiagonal form, then its eigenvalues by Pal-Walker-Kahan's QR.
            size = len(product)
            _, diagonal, off_diagonal, _, _ = lapack.dsytrd(product, lower=1, lwork=_BLOCK_COLUMNS * size, overwrite_a=1)
            eigenvalues, failed = lapack.dsterf(diagonal, off_diagonal)
            return None if failed else eigenvalues
    return None


def _largest_variance(gaussian: Gaussian) -> float:
    """The covariance's largest eigenvalue to a factor of 2 or so, from above (power iteration)."""
    vector = np.random.default_rng(0).standard_normal(len(gaussian.mu))
    growth = 0.0
    for _ in range(_POWER_STEPS):
        vector /= np.linalg.norm(vector)
        if gaussian.factor is not None:
            factor = gaussian.factor.numpy()
            vector = factor @ (vector @ factor)
        else:
            vector = gaussian.covariance().numpy() @ vector
        growth = float(np.linalg.norm(vector))
        if growth == 0.0:
            return 0.0
    return 2.0 * growth


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

    The result is called ``fid`` only for Inception-v3's pool3; on any other extractor or feature it is
    ``frechet_distance`` (``sfid`` for Inception-v3's spatial feature).
    """

    name = "frechet"

    def __init__(self, feature: str | None = None) -> None:
        super().__init__(feature)
        self.key = "frechet_distance"
        self.accumulators = {side: MomentAccumulator() for side in SIDES}
        self.stored: dict[str, Gaussian] = {}

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the feature, and the name that its distance has in the literature."""
        super().bind(extractor)
        self.key = extractor.frechet_names.get(str(self.feature), "frechet_distance")

    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Accumulate the features of one batch."""
        self.accumulators[side_name(real)].append(self.select(features))

    def load_statistics(self, entry: FeatureEntry, real: bool) -> bool:
        """Take one side from stored moments, or from stored features."""
        self.stored[side_name(real)] = entry.gaussian()
        return True

    def gaussian(self, real: bool) -> Gaussian:
        """Return the Gaussian fitted to one side.

        Raises:
            ValueError: If that side has fewer than two samples.
        """
        if side_name(real) in self.stored:
            return self.stored[side_name(real)]
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
                    "the distance is exact for these samples but biased upwards as an estimate; "
                    "compare only at equal sample counts.",
                    SmallSampleWarning,
                    stacklevel=2,
                )
        return {self.key: gaussian_distance(real, fake)}

    def reset(self, real: bool) -> None:
        """Forget one side."""
        self.accumulators[side_name(real)] = MomentAccumulator()
        self.stored.pop(side_name(real), None)

    def state(self, real: bool) -> dict[str, Any]:
        """Return one side's moments."""
        return self.accumulators[side_name(real)].state()

    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Sum several processes' moments (the order of samples has no effect)."""
        self.accumulators[side_name(real)].load(states)
