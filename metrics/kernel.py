"""Maximum mean discrepancy of feature sets: KID (polynomial kernel) and CMMD (Gaussian kernel on CLIP embeddings).

Kernel matrices are summed block by block in float64, so no N x M matrix is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import FeatureMetric

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor

_BLOCK_ROWS = 2048
_KID_SUBSETS = 100  # Binkowski et al., arXiv:1801.01401, and every tool since.
_KID_SUBSET_SIZE = 1000
_KID_SEED = 2020  # torch-fidelity's.
_CMMD_SIGMA = 10.0  # Jayasumana et al., arXiv:2401.09603, section 4.
_CMMD_SCALE = 1000.0
_OFFICIAL_CMMD_EXTRACTOR = "clip-vit-l-14-336"

Kernel = Callable[[Tensor, Tensor], Tensor]


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel (x . y / D + 1)^3: (N, D), (M, D) -> (N, M)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def gaussian_kernel_minus_one(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2)) - 1: (N, D), (M, D) -> (N, M).

    The one is taken off because it cancels in the MMD: between unit vectors at sigma 10 every kernel value
    lies in [0.980, 1], and what is left keeps its digits.
    """
    squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2.0 * (x @ y.T)).clamp_min(0.0)
    return torch.expm1(squared / (-2.0 * sigma**2))


def polynomial_mmd2(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD with KID's kernel, over all pairs (arXiv:1801.01401, equation 4).

    Args:
        real: (N, D) features, N >= 2.
        fake: (M, D) features, M >= 2.

    Returns:
        The estimate; it may be negative where the distributions agree.
    """
    real, fake = _pair(real, fake)
    n, m = len(real), len(fake)
    within_real = (_kernel_sum(polynomial_kernel, real, real) - _poly_diagonal(real)) / (n * (n - 1))
    within_fake = (_kernel_sum(polynomial_kernel, fake, fake) - _poly_diagonal(fake)) / (m * (m - 1))
    return within_real + within_fake - 2.0 * _kernel_sum(polynomial_kernel, real, fake) / (n * m)


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    subsets: int = _KID_SUBSETS,
    subset_size: int = _KID_SUBSET_SIZE,
    seed: int = _KID_SEED,
) -> tuple[float, float]:
    """KID: mean and standard deviation of the unbiased squared MMD over random subsets.

    Subsets are drawn without replacement by numpy's legacy `RandomState(seed)`, whose stream never changes:
    first the fake one, then the real one, as torch-fidelity does, so both give the same number.

    Args:
        real: (N, D) features.
        fake: (M, D) features.
        subsets: Number of subsets.
        subset_size: Samples per subset, at most min(N, M).
        seed: Seed of the draw.

    Returns:
        Mean and standard deviation over subsets.

    Raises:
        ValueError: If a subset is larger than a set.
    """
    real, fake = _pair(real, fake)
    if not 2 <= subset_size <= min(len(real), len(fake)):
        raise ValueError(f"subset_size must lie between 2 and the smaller set ({min(len(real), len(fake))}), got {subset_size}.")
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        fake_rows = torch.from_numpy(rng.choice(len(fake), subset_size, replace=False))
        real_rows = torch.from_numpy(rng.choice(len(real), subset_size, replace=False))
        values.append(polynomial_mmd2(real[real_rows], fake[fake_rows]))
    return float(np.mean(values)), float(np.std(values))


def gaussian_mmd2(real: Tensor, fake: Tensor, sigma: float) -> float:
    """Biased (minimum-variance) squared MMD with a Gaussian kernel: the diagonals are included.

    Args:
        real: (N, D) features.
        fake: (M, D) features.
        sigma: Bandwidth: k(x, y) = exp(-|x - y|^2 / (2 sigma^2)).

    Returns:
        mean K_xx + mean K_yy - 2 mean K_xy, >= 0.
    """
    real, fake = _pair(real, fake)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return gaussian_kernel_minus_one(x, y, sigma)

    n, m = len(real), len(fake)
    within = _kernel_sum(kernel, real, real) / n**2 + _kernel_sum(kernel, fake, fake) / m**2
    return within - 2.0 * _kernel_sum(kernel, real, fake) / (n * m)


def cmmd(real: Tensor, fake: Tensor, sigma: float = _CMMD_SIGMA, scale: float = _CMMD_SCALE) -> float:
    """CMMD as the published code computes it (arXiv:2401.09603): embeddings are L2-normalised, the estimator
    is biased.

    The paper calls the estimator unbiased; the code of its authors, and so every published figure, includes
    the diagonals.

    Args:
        real: (N, D) CLIP image embeddings, of any length.
        fake: (M, D) CLIP image embeddings.
        sigma: Bandwidth of the Gaussian kernel.
        scale: Factor that makes the numbers readable.
    """
    real, fake = _pair(real, fake)
    real = torch.nn.functional.normalize(real, dim=1)
    fake = torch.nn.functional.normalize(fake, dim=1)
    return scale * gaussian_mmd2(real, fake, sigma)


def _pair(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}.")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"each set needs at least two samples, got {len(real)} and {len(fake)}.")
    return real.double(), fake.double()


def _kernel_sum(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    """Sum the kernel over all pairs, block by block."""
    total = 0.0
    for rows in x.split(_BLOCK_ROWS):
        for columns in y.split(_BLOCK_ROWS):
            total += float(kernel(rows, columns).sum())
    return total


def _poly_diagonal(x: Tensor) -> float:
    return float(((x.square().sum(1) / x.shape[1] + 1.0) ** 3).sum())


class KernelDistance(FeatureMetric):
    """KID's estimator on any feature.

    With at least `subset_size` images on each side: `kernel_distance_mean` and `kernel_distance_std` over
    subsets (KID as published). With fewer: `kernel_distance`, the unbiased squared MMD over all pairs.
    """

    name = "kid"

    def __init__(
        self,
        feature: str | None = None,
        subsets: int = _KID_SUBSETS,
        subset_size: int = _KID_SUBSET_SIZE,
        seed: int = _KID_SEED,
    ) -> None:
        super().__init__(feature)
        if subsets < 1 or subset_size < 2:
            raise ValueError(f"subsets must be at least 1 and subset_size at least 2, got {subsets} and {subset_size}.")
        self.subsets = subsets
        self.subset_size = subset_size
        self.seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature and the rule of the subsets."""
        return {
            "feature": self.feature,
            "subsets": self.subsets,
            "subset_size": self.subset_size,
            "seed": self.seed,
        }

    def compute(self) -> dict[str, float]:
        """Return KID over subsets, or the one unbiased value for small sets."""
        real, fake = self.features(True), self.features(False)
        if min(len(real), len(fake)) < self.subset_size:
            return {"kernel_distance": polynomial_mmd2(real, fake)}
        mean, std = kernel_distance(real, fake, self.subsets, self.subset_size, self.seed)
        return {"kernel_distance_mean": mean, "kernel_distance_std": std}


class CMMD(FeatureMetric):
    """CMMD; called so only on CLIP ViT-L/14@336, the published network, `gaussian_kernel_distance` on any other."""

    name = "cmmd"

    def __init__(self, feature: str | None = None, sigma: float = _CMMD_SIGMA, scale: float = _CMMD_SCALE) -> None:
        super().__init__(feature)
        if sigma <= 0.0:
            raise ValueError(f"sigma must be positive, got {sigma}.")
        self.sigma = sigma
        self.scale = scale
        self.key = "cmmd"

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the embedding and the name of the result."""
        super().bind(extractor)
        self.key = "cmmd" if extractor.name == _OFFICIAL_CMMD_EXTRACTOR else "gaussian_kernel_distance"

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature, bandwidth, scale and estimator."""
        return {"feature": self.feature, "sigma": self.sigma, "scale": self.scale, "estimator": "biased"}

    def compute(self) -> dict[str, float]:
        """Return the scaled squared MMD."""
        return {self.key: cmmd(self.features(True), self.features(False), self.sigma, self.scale)}
