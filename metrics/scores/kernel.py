"""Maximum mean discrepancy of feature sets: KID (polynomial kernel) and CMMD (Gaussian kernel on CLIP embeddings).

Kernel matrices are summed tile by tile, so no N x M matrix and no second copy of the features is held. An
MMD is a small difference of large means; to keep its digits, features are centred and the part of the kernel
that cancels exactly between the three means is left out. Then float32 products suffice: against float64 the
result is off by less than 1e-5 of a KID of 4e-4 and 1e-5 of a CMMD of 0.003 (1,000 samples a side; less for
more samples and for larger values). Tiles are summed in float64. Sets under a million pairs, and features
that come in float64, are multiplied in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import FeatureMetric, SmallSampleWarning

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor

_BLOCK_ROWS = 2048  # A float32 tile of 2048 x 2048 is 16 MiB: it stays in the last cache between its few passes.
_FLOAT64_PAIRS = 1_000_000  # Below this many pairs float64 products take under a tenth of a second.
_KID_SUBSETS = 100  # Binkowski et al., arXiv:1801.01401, and every tool since.
_KID_SUBSET_SIZE = 1000
_KID_SEED = 2020  # torch-fidelity's.
_CMMD_SIGMA = 10.0  # Jayasumana et al., arXiv:2401.09603, section 4.
_CMMD_SCALE = 1000.0
_OFFICIAL_CMMD_EXTRACTOR = "clip-vit-l-14-336"
ESTIMATORS = ("biased", "unbiased")

#: A tile of inner products (b, c), slice of its rows, slice of its columns -> its kernel values, in place where it can.
TileKernel = Callable[[np.ndarray, slice, slice], np.ndarray]

# Products and what follows are numpy's: torch.set_float32_matmul_precision("medium") lets torch multiply float32 in
# bfloat16 on some processors, and two thread pools in turn slow each other down.


class _Points:
    """The rows of a feature set, centred (and scaled) block by block.

    Args:
        features: (N, D) floating point.
        center: (D,) float64, subtracted from each row; None if the rows are centred.
        dtype: Of the products, float32 or float64.
        scale: (N,) float64 factor of each row before centring, or None.
    """

    def __init__(self, features: Tensor, center: np.ndarray | None, dtype: torch.dtype, scale: np.ndarray | None = None) -> None:
        self.features = features
        self.dtype = dtype
        self.numpy_dtype = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        self.center = np.zeros((), self.numpy_dtype) if center is None else center.astype(self.numpy_dtype)
        self.is_centred = center is None
        self.scale = None if scale is None else scale.astype(self.numpy_dtype)

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> list[slice]:
        """Return the slices of the blocks."""
        return [slice(start, min(start + _BLOCK_ROWS, len(self))) for start in range(0, len(self), _BLOCK_ROWS)]

    def rows(self, block: slice) -> np.ndarray:
        """Return one block (b, D) of ``dtype``."""
        rows = self.features[block].to(self.dtype).numpy()
        if self.is_centred:
            return rows
        return (rows if self.scale is None else rows * self.scale[block, None]) - self.center

    def moments(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows' squared lengths and inner products with ``direction`` (D,): two (N,) float64."""
        squares, products = [], []
        for block in self.blocks():
            rows = self.rows(block).astype(np.float64)
            products.append(rows @ direction)
            squares.append(np.square(rows, out=rows).sum(1))
        return np.concatenate(squares), np.concatenate(products)

    def total(self) -> np.ndarray:
        """Return the sum of the rows (D,) float64."""
        total = np.zeros(self.features.shape[1])
        for block in self.blocks():
            total += self.rows(block).sum(0)
        return total


def _sum_of_kernel(x: _Points, y: _Points, kernel: TileKernel) -> float:
    """Sum the kernel over all pairs (i, j), without the pairs i = j where ``y`` is ``x`` (then each pair is computed once)."""
    same = x is y
    side = min(_BLOCK_ROWS, max(len(x), len(y)))
    # One buffer for all tiles: a fresh allocation of this size costs as much in page faults as the arithmetic.
    buffer = np.empty(side * side, dtype=x.numpy_dtype)
    total = 0.0
    for index, row_block in enumerate(x.blocks()):
        rows = x.rows(row_block)
        for column_block in y.blocks()[index if same else 0 :]:
            on_diagonal = same and column_block == row_block
            columns = rows if on_diagonal else y.rows(column_block)
            tile = buffer[: len(rows) * len(columns)].reshape(len(rows), len(columns))
            np.matmul(rows, columns.T, out=tile)
            tile = kernel(tile, row_block, column_block)
            if on_diagonal:
                np.fill_diagonal(tile, 0.0)
            weight = 2.0 if same and not on_diagonal else 1.0
            total += weight * float(tile.sum(1).sum(dtype=np.float64))
    return total


class _PolynomialSet:
    """A feature set prepared for KID's kernel about a common centre.

    With t = (x - c) . (y - c) / D, b = (x - c) . c / D and kappa = 1 + c . c / D the kernel is (kappa + e)^3, where
    e = t + b_x + b_y. In the MMD, kappa^3 and every term of x alone or of y alone cancel, so that
    3 kappa^2 t + 3 kappa e^2 + e^3 is left; the first is a product of sums.
    """

    def __init__(self, points: _Points, center: np.ndarray, squares: np.ndarray, offsets: np.ndarray) -> None:
        self.points = points
        self.center = center  # (D,) float64 c, exact in the points' dtype
        self.squares = squares  # (N,) float64 |x - c|^2
        self.offsets = offsets  # (N,) float64 b

    @classmethod
    def create(cls, features: Tensor, center: np.ndarray, dtype: torch.dtype) -> _PolynomialSet:
        """Prepare a set (N, D)."""
        points = _Points(features, center, dtype)
        squares, products = points.moments(center)
        return cls(points, center, squares, products / features.shape[1])

    def take(self, rows: np.ndarray) -> _PolynomialSet:
        """Return the subset with these row numbers, centred once and for all."""
        points = self.points
        subset = points.features[torch.from_numpy(rows)].to(points.dtype)
        subset -= torch.from_numpy(points.center)
        return _PolynomialSet(_Points(subset, None, points.dtype), self.center, self.squares[rows], self.offsets[rows])


def _polynomial_mmd2(real: _PolynomialSet, fake: _PolynomialSet) -> float:
    n, m, dim = len(real.points), len(fake.points), real.points.features.shape[1]
    kappa = 1.0 + float(real.center @ real.center) / dim

    def curved_sum(first: _PolynomialSet, second: _PolynomialSet) -> float:
        first_offsets, second_offsets = (x.offsets.astype(x.points.numpy_dtype) for x in (first, second))

        def kernel(tile: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
            tile /= dim
            tile += first_offsets[rows, None]
            tile += second_offsets[columns]
            value = tile + 3.0 * kappa
            value *= tile
            value *= tile
            return value

        return _sum_of_kernel(first.points, second.points, kernel)

    curved = curved_sum(real, real) / (n * (n - 1)) + curved_sum(fake, fake) / (m * (m - 1))
    curved -= 2.0 * curved_sum(real, fake) / (n * m)
    real_total, fake_total = real.points.total(), fake.points.total()
    linear = float(real_total @ real_total - real.squares.sum()) / (n * (n - 1))
    linear += float(fake_total @ fake_total - fake.squares.sum()) / (m * (m - 1))
    linear -= 2.0 * float(real_total @ fake_total) / (n * m)
    return curved + 3.0 * kappa**2 * linear / dim


def polynomial_mmd2(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD with KID's kernel (x . y / D + 1)^3, over all pairs (arXiv:1801.01401, equation 4).

    Args:
        real: (N, D) features, N >= 2.
        fake: (M, D) features, M >= 2.

    Returns:
        The estimate; it may be negative where the distributions agree.

    Raises:
        ValueError: If shapes disagree or a set has fewer than two samples.
    """
    return _polynomial_mmd2(*_polynomial_sets(real, fake, None))


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    subsets: int = _KID_SUBSETS,
    subset_size: int = _KID_SUBSET_SIZE,
    seed: int = _KID_SEED,
) -> tuple[float, float]:
    """KID: mean and standard deviation of the unbiased squared MMD over random subsets.

    Subsets are drawn without replacement by numpy's legacy ``RandomState(seed)``, whose stream never changes:
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
        ValueError: If a subset is larger than a set, or shapes disagree.
    """
    real_set, fake_set = _polynomial_sets(real, fake, subset_size)
    if not 2 <= subset_size <= min(len(real), len(fake)):
        raise ValueError(f"subset_size must lie between 2 and the smaller set ({min(len(real), len(fake))}), got {subset_size}.")
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        fake_rows = rng.choice(len(fake), subset_size, replace=False)
        real_rows = rng.choice(len(real), subset_size, replace=False)
        values.append(_polynomial_mmd2(real_set.take(real_rows), fake_set.take(fake_rows)))
    return float(np.mean(values)), float(np.std(values))


def gaussian_mmd2(real: Tensor, fake: Tensor, sigma: float, estimator: str = "biased") -> float:
    """Squared MMD with a Gaussian kernel.

    Args:
        real: (N, D) features.
        fake: (M, D) features.
        sigma: Bandwidth: k(x, y) = exp(-|x - y|^2 / (2 sigma^2)).
        estimator: "biased" includes the diagonals of K_xx and K_yy (minimum variance), "unbiased" leaves them out.

    Returns:
        mean K_xx + mean K_yy - 2 mean K_xy; >= 0 if biased, while the unbiased one may be negative.

    Raises:
        ValueError: If shapes disagree, a set has fewer than two samples, or the estimator is not known.
    """
    real, fake = _pair(real, fake)
    return _gaussian_mmd2(real, fake, sigma, estimator, None, None)


def cmmd(real: Tensor, fake: Tensor, sigma: float = _CMMD_SIGMA, scale: float = _CMMD_SCALE, estimator: str = "biased") -> float:
    """CMMD (arXiv:2401.09603): embeddings are L2-normalised first.

    The paper calls its estimator unbiased; the code of its authors, and so every published figure, includes
    the diagonals ("biased"). The two differ by scale * ((1 - k_xx) / N + (1 - k_yy) / M), k the mean kernel off
    the diagonal.

    Args:
        real: (N, D) CLIP image embeddings, of any length.
        fake: (M, D) CLIP image embeddings.
        sigma: Bandwidth of the Gaussian kernel.
        scale: Factor that makes the numbers readable.
        estimator: "biased" (as published) or "unbiased".

    Returns:
        scale times the squared MMD.

    Raises:
        ValueError: As ``gaussian_mmd2``.
    """
    real, fake = _pair(real, fake)
    return scale * _gaussian_mmd2(real, fake, sigma, estimator, _inverse_norms(real), _inverse_norms(fake))


def _gaussian_mmd2(
    real: Tensor, fake: Tensor, sigma: float, estimator: str, real_scale: np.ndarray | None, fake_scale: np.ndarray | None
) -> float:
    _check_estimator(estimator)
    n, m = len(real), len(fake)
    dtype = _product_dtype(real, fake, max(n, m) ** 2)
    # Centring changes no distance and keeps digits in |x|^2 + |y|^2 - 2 x.y.
    center = _Points(real, np.zeros(real.shape[1]), dtype, real_scale).total() / n
    x, y = _Points(real, center, dtype, real_scale), _Points(fake, center, dtype, fake_scale)
    x_squares, y_squares = (points.moments(center)[0].astype(points.numpy_dtype) for points in (x, y))

    def kernel_sum(first: _Points, first_squares: np.ndarray, second: _Points, second_squares: np.ndarray) -> float:
        def kernel(tile: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
            # k - 1: the one cancels in the MMD. Between unit vectors at sigma 10 every k lies in [0.980, 1].
            tile *= -2.0
            tile += first_squares[rows, None]
            tile += second_squares[columns]
            np.maximum(tile, 0.0, out=tile)
            tile *= -0.5 / sigma**2
            return np.expm1(tile, out=tile)

        return _sum_of_kernel(first, second, kernel)

    removed = 0 if estimator == "biased" else 1  # On the diagonal k - 1 is 0, so only the count differs.
    within = kernel_sum(x, x_squares, x, x_squares) / (n * (n - removed))
    within += kernel_sum(y, y_squares, y, y_squares) / (m * (m - removed))
    value = within - 2.0 * kernel_sum(x, x_squares, y, y_squares) / (n * m)
    return max(value, 0.0) if estimator == "biased" else value


def _inverse_norms(features: Tensor) -> np.ndarray:
    """1 / |x| of each row, (N,) float64; 0 for a row of zeros."""
    norms = torch.cat([block.double().norm(dim=1) for block in features.split(_BLOCK_ROWS)])
    return torch.where(norms > 0.0, 1.0 / norms, 0.0).numpy()


def _check_estimator(estimator: str) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}.")


def _product_dtype(real: Tensor, fake: Tensor, num_pairs: int) -> torch.dtype:
    is_double = torch.float64 in (real.dtype, fake.dtype)
    return torch.float64 if is_double or num_pairs < _FLOAT64_PAIRS else torch.float32


def _polynomial_sets(real: Tensor, fake: Tensor, subset_size: int | None) -> tuple[_PolynomialSet, _PolynomialSet]:
    real, fake = _pair(real, fake)
    dtype = _product_dtype(real, fake, (subset_size or max(len(real), len(fake))) ** 2)
    uncentred = _Points(real, np.zeros(real.shape[1]), dtype)
    # The centre is rounded to the dtype in which it is subtracted, so that the identity above holds exactly.
    center = (uncentred.total() / len(real)).astype(uncentred.numpy_dtype).astype(np.float64)
    return _PolynomialSet.create(real, center, dtype), _PolynomialSet.create(fake, center, dtype)


def _pair(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}.")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"each set needs at least two samples, got {len(real)} and {len(fake)}.")
    for features in (real, fake):
        if not all(bool(torch.isfinite(block).all()) for block in features.split(_BLOCK_ROWS)):
            raise ValueError("features hold NaN or infinity: kernel distances need finite features; extract them again.")
    return real.detach().cpu(), fake.detach().cpu()


class KernelDistance(FeatureMetric):
    """KID's estimator on any feature.

    With at least ``subset_size`` images on each side: ``kernel_distance_mean`` and ``kernel_distance_std`` over
    subsets (KID as published). With fewer: ``kernel_distance``, the unbiased squared MMD over all pairs, and a
    ``SmallSampleWarning``.
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

    @property
    def score_names(self) -> tuple[str, ...]:
        """The mean over subsets, or the one value of small sets."""
        return ("kernel_distance_mean", "kernel_distance")

    def compute(self) -> dict[str, float]:
        """Return KID over subsets, or the one unbiased value for small sets."""
        real, fake = self.features(True), self.features(False)
        if min(len(real), len(fake)) < self.subset_size:
            warnings.warn(
                f"{len(real)} real and {len(fake)} fake images do not fill a subset of {self.subset_size}: the number is "
                "one unbiased estimate over all pairs (kernel_distance), not KID's mean over subsets.",
                SmallSampleWarning,
                stacklevel=2,
            )
            return {"kernel_distance": polynomial_mmd2(real, fake)}
        mean, std = kernel_distance(real, fake, self.subsets, self.subset_size, self.seed)
        return {"kernel_distance_mean": mean, "kernel_distance_std": std}


class CMMD(FeatureMetric):
    """CMMD; called so only on CLIP ViT-L/14@336, the published network, ``gaussian_kernel_distance`` on any other.

    The published estimator is "biased"; the result of "unbiased" has ``_unbiased`` after its name.
    """

    name = "cmmd"

    def __init__(
        self,
        feature: str | None = None,
        sigma: float = _CMMD_SIGMA,
        scale: float = _CMMD_SCALE,
        estimator: str = "biased",
    ) -> None:
        super().__init__(feature)
        if sigma <= 0.0:
            raise ValueError(f"sigma must be positive, got {sigma}.")
        _check_estimator(estimator)
        self.sigma = sigma
        self.scale = scale
        self.estimator = estimator
        self.key = self._key("cmmd")

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the embedding and the name of the result."""
        super().bind(extractor)
        self.key = self._key("cmmd" if extractor.name == _OFFICIAL_CMMD_EXTRACTOR else "gaussian_kernel_distance")

    def _key(self, distance: str) -> str:
        return distance if self.estimator == "biased" else f"{distance}_unbiased"

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature, bandwidth, scale and estimator."""
        return {"feature": self.feature, "sigma": self.sigma, "scale": self.scale, "estimator": self.estimator}

    def compute(self) -> dict[str, float]:
        """Return the scaled squared MMD."""
        real, fake = self.features(True), self.features(False)
        return {self.key: cmmd(real, fake, self.sigma, self.scale, self.estimator)}
