from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

import metrics.scores.frechet as frechet_module
from metrics.metric import SmallSampleWarning
from metrics.scores.frechet import FrechetDistance, frechet_distance, frechet_distance_from_features, gaussian_distance
from metrics.scores.moments import Gaussian, MomentAccumulator, centred_factor, pivoted_cholesky


def _features(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    return torch.randn(count, dim, generator=generator) @ mixing + shift


def _fit(features: Tensor) -> Gaussian:
    accumulator = MomentAccumulator()
    accumulator.append(features)
    return accumulator.gaussian()


def test_equal_covariances_leave_the_mean_distance() -> None:
    sigma = np.cov(_features(200, 6, 0).numpy(), rowvar=False)
    shift = np.arange(6.0)
    assert frechet_distance(shift, sigma, np.zeros(6), sigma) == pytest.approx(55.0, rel=1e-12)


def test_diagonal_gaussians_have_the_closed_form() -> None:
    # d^2 = sum (m1 - m2)^2 + sum (s1 - s2)^2 with s the standard deviations.
    std1, std2 = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 0.1, 0.5, 2.0])
    mu1, mu2 = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0, 3.0])
    expected = ((mu1 - mu2) ** 2).sum() + ((std1 - std2) ** 2).sum()
    assert frechet_distance(mu1, np.diag(std1**2), mu2, np.diag(std2**2)) == pytest.approx(expected, rel=1e-12)


def test_matches_the_matrix_square_root_at_full_rank() -> None:
    a, b = _features(400, 48, 1).double(), _features(300, 48, 2, shift=0.2).double()
    s1, s2 = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    gap = (a.mean(0) - b.mean(0)).square().sum().item()
    expected = gap + np.trace(s1) + np.trace(s2) - 2 * np.trace(linalg.sqrtm(s1 @ s2).real)
    assert frechet_distance(a.mean(0), s1, b.mean(0), s2) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_from_features(a.float(), b.float()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(20, 15), (20, 300), (300, 20), (64, 64), (65, 65), (2, 2)])
def test_low_rank_factors_equal_the_full_formula(n: int, m: int) -> None:
    a, b = _features(n, 64, 3).double(), _features(m, 64, 4, shift=0.1).double()
    full = frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert frechet_distance_from_features(a, b) == pytest.approx(full, rel=1e-7)
    # The nuclear norm of the raw centred rows is the same trace by another road.
    rows_a, rows_b = (a - a.mean(0)) / (n - 1) ** 0.5, (b - b.mean(0)) / (m - 1) ** 0.5
    overlap = torch.linalg.matrix_norm(rows_a @ rows_b.T, "nuc").item()
    expected = (a.mean(0) - b.mean(0)).square().sum() + rows_a.square().sum() + rows_b.square().sum() - 2 * overlap
    assert frechet_distance_from_features(a, b) == pytest.approx(expected.item(), rel=1e-10)


def _exact_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The formula in 50-digit arithmetic, on two feature sets."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):

        def fit(features: np.ndarray) -> tuple[object, object]:
            rows = mpmath.matrix(features.tolist())
            mean = mpmath.matrix([mpmath.fsum(rows[:, j]) / rows.rows for j in range(rows.cols)])
            centred = mpmath.matrix(rows.rows, rows.cols)
            for i in range(rows.rows):
                for j in range(rows.cols):
                    centred[i, j] = rows[i, j] - mean[j]
            return mean, centred.T * centred / (rows.rows - 1)

        (mean1, s1), (mean2, s2) = fit(first), fit(second)
        eigenvalues = mpmath.eig(s1 * s2, left=False, right=False)
        overlap = mpmath.fsum(mpmath.sqrt(max(mpmath.re(value), mpmath.mpf(0))) for value in eigenvalues)
        gap = mean1 - mean2
        traces = mpmath.fsum(s1[j, j] + s2[j, j] for j in range(s1.rows))
        return float((gap.T * gap)[0] + traces - 2 * overlap)


_MIXING = np.random.RandomState(1).randn(8, 8)


@pytest.mark.parametrize(
    ("first", "second", "tolerance"),
    [
        pytest.param((60, np.ones(8), None), (50, np.ones(8), None), 1e-13, id="well conditioned"),
        pytest.param((30, 10.0 ** -np.arange(8), None), (30, 10.0 ** -np.arange(7, -1, -1), None), 1e-13, id="opposite"),
        pytest.param((60, 10.0 ** -np.arange(8), None), (50, 10.0 ** -np.arange(8), None), 1e-12, id="ill conditioned"),
        pytest.param((60, 10.0 ** -np.arange(8), _MIXING), (50, 10.0 ** -np.arange(8), _MIXING.T), 1e-12, id="ill, mixed"),
        pytest.param((5, np.ones(8), None), (50, np.ones(8), None), 1e-12, id="one without full rank"),
        pytest.param((4, np.ones(8), None), (6, 10.0 ** -np.arange(8), _MIXING), 1e-12, id="both without full rank"),
    ],
)
def test_agrees_with_50_digit_arithmetic(first: tuple, second: tuple, tolerance: float) -> None:
    sets = []
    for seed, (count, scale, mixing) in enumerate((first, second)):
        features = np.random.RandomState(seed).randn(count, 8) * scale
        sets.append(features @ mixing if mixing is not None else features)
    distance = frechet_distance_from_features(*map(torch.from_numpy, sets))
    assert distance == pytest.approx(_exact_distance(*sets), rel=tolerance)


def test_rank_deficient_covariances_without_their_features() -> None:
    # Whole numbers and 2^k + 1 rows: the covariance is exact in float64, so its rank is what it seems.
    sets = [np.random.RandomState(seed).randint(-8, 9, (5, 8)).astype(float) for seed in (0, 1)]
    sets = [np.concatenate([rows, -rows.sum(0, keepdims=True), 0 * rows[:3]]) for rows in sets]  # 9 rows of mean zero
    fits = [(rows.mean(0), rows.T @ rows / 8) for rows in sets]
    assert np.linalg.matrix_rank(fits[0][1]) == 5
    assert frechet_distance(*fits[0], *fits[1]) == pytest.approx(_exact_distance(*sets), rel=1e-7)


def _never(*args: object) -> float:
    raise AssertionError("the other route was to be taken")


def test_full_rank_takes_eigenvalues_and_ill_condition_takes_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _features(400, 48, 1).double(), _features(300, 48, 2, shift=0.2).double()
    exact = frechet_module._overlap_from_singular_values(*map(_fit, (a, b)))
    separate = _fit(a).trace() + _fit(b).trace()
    assert frechet_module._overlap_from_eigenvalues(_fit(a), _fit(b), separate) == pytest.approx(exact, rel=1e-13)
    monkeypatch.setattr(frechet_module, "_overlap_from_singular_values", _never)
    for first, second in ((a, b), (a[:20], b), (a[:30], b[:25])):
        frechet_distance_from_features(first, second)
    # Rows in a thin sheet: eigenvalues of the product below the rounding of the largest one.
    thin = a * torch.logspace(0, -9, 48, dtype=torch.float64)
    thin = thin @ torch.linalg.qr(_features(48, 48, 3).double()).Q
    with pytest.raises(AssertionError, match="other route"):
        frechet_distance_from_features(thin, thin.flip(1))


def test_eigenvalues_are_refused_where_they_would_be_wrong() -> None:
    # S1 S2 has eigenvalues 1e-12 to 1e-14 only, while |S1| |S2| = 1: all digits of the roots are lost at 1e-16.
    rotation = torch.linalg.qr(_features(6, 6, 4).double()).Q
    big, small = torch.eye(6, dtype=torch.float64)[:3], torch.eye(6, dtype=torch.float64)[3:]
    first = rotation.T @ (big.T @ big + 1e-12 * small.T @ small) @ rotation
    second = rotation.T @ (1e-14 * big.T @ big + small.T @ small) @ rotation
    zero = torch.zeros(6, dtype=torch.float64)
    pair = Gaussian(mu=zero, sigma=(first + first.T) / 2), Gaussian(mu=zero, sigma=(second + second.T) / 2)
    assert frechet_module._overlap_from_eigenvalues(*pair, separate=1e-6) is None
    # Beside a distance of 60 the same error does not show: the overlap is 3 (1e-7 + 1e-6).
    assert frechet_module._overlap_from_eigenvalues(*pair, separate=60.0) == pytest.approx(3.3e-6, abs=1e-7)
    assert gaussian_distance(*pair) == pytest.approx(6.0 - 6.6e-6, abs=1e-7)


def test_symmetric_product_of_the_accumulator_is_symmetric() -> None:
    accumulator = MomentAccumulator()
    accumulator.append(_features(700, 33, 12))
    covariance = accumulator.gaussian().covariance()
    assert torch.equal(covariance, covariance.T)


def test_identical_sets_are_at_zero_distance() -> None:
    for count in (10, 200):
        features = _features(count, 32, 5)
        assert frechet_distance_from_features(features, features) < 1e-10
    assert frechet_distance(np.zeros(3), np.zeros((3, 3)), np.zeros(3), np.zeros((3, 3))) == 0.0


def test_is_symmetric_and_scales_quadratically() -> None:
    a, b = _features(100, 16, 6), _features(80, 16, 7, shift=1.0)
    distance = frechet_distance_from_features(a, b)
    assert frechet_distance_from_features(b, a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance_from_features(4 * a, 4 * b) == pytest.approx(16 * distance, rel=1e-12)


def test_centred_factor_and_pivoted_cholesky_reproduce_the_covariance() -> None:
    features = _features(9, 20, 8).double()
    covariance = torch.cov(features.T)
    factor = centred_factor(features)
    assert factor.shape == (20, 8)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-12, atol=1e-13)
    rooted = pivoted_cholesky(covariance)
    assert rooted.shape == (20, 8)
    torch.testing.assert_close(rooted @ rooted.T, covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [30, 700, 1500])
def test_moments_do_not_depend_on_batches_order_or_processes(count: int) -> None:
    features = _features(count, 40, 9, shift=100.0)
    whole = MomentAccumulator()
    whole.append(features)
    pieces = MomentAccumulator()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    for chunk in features[order].split(7):
        pieces.append(chunk)
    parts = [MomentAccumulator() for _ in range(3)]
    for index, chunk in enumerate(features.split(13)):
        parts[index % 2].append(chunk)  # The third process has no image at all.
    merged = MomentAccumulator()
    merged.load([part.state() for part in parts])
    for other in (pieces, merged):
        assert len(other) == count
        torch.testing.assert_close(other.gaussian().mu, features.double().mean(0), rtol=1e-13, atol=0)
        torch.testing.assert_close(other.gaussian().covariance(), torch.cov(features.double().T), rtol=1e-10, atol=1e-12)
        assert gaussian_distance(whole.gaussian(), other.gaussian()) < 1e-9


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    accumulator = MomentAccumulator()
    for seed in range(40):
        accumulator.append(_features(100, 16, seed))
    assert accumulator.num_pending <= 612
    assert len(accumulator) == 4000


def test_large_mean_does_not_drown_the_covariance() -> None:
    # One-pass sums of squares would lose 10 digits here.
    features = _features(2000, 4, 10).double() + 1e5
    accumulator = MomentAccumulator()
    for chunk in features.split(64):
        accumulator.append(chunk)
    torch.testing.assert_close(accumulator.gaussian().covariance(), torch.cov(features.T), rtol=1e-8, atol=1e-10)


def test_metric_names_warns_and_counts() -> None:
    metric = FrechetDistance(feature="f")
    metric.update({"f": _features(20, 32, 0)}, real=True)
    metric.update({"f": _features(40, 32, 1)}, real=False)
    with pytest.warns(SmallSampleWarning, match="20 real images are fewer than the 32"):
        assert set(metric.compute()) == {"frechet_distance"}
    metric.update({"f": _features(20, 32, 2)}, real=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.compute()
    metric.reset(real=False)
    with pytest.raises(ValueError, match="at least 2 fake images and got 0"):
        metric.compute()


def test_refuses_what_is_no_gaussian() -> None:
    eye = np.eye(3)
    with pytest.raises(ValueError, match="NaN or infinity"):
        frechet_distance([0, np.nan, 0], eye, np.zeros(3), eye)
    with pytest.raises(ValueError, match="must have shape"):
        frechet_distance(np.zeros(3), eye[:2], np.zeros(3), eye)
    with pytest.raises(ValueError, match="dimensions differ: 3 and 2"):
        frechet_distance(np.zeros(3), eye, np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="negative variance"):
        frechet_distance(np.zeros(3), -eye, np.zeros(3), eye)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        frechet_distance(np.zeros(2), np.array([[1.0, 5.0], [5.0, 1.0]]), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance_from_features(torch.full((3, 2), torch.nan), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        gaussian_distance(_fit(torch.full((3, 2), torch.nan)), _fit(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="at least two samples"):
        frechet_distance_from_features(torch.zeros(1, 2), torch.zeros(3, 2))


def test_covariances_stored_in_float32_are_taken() -> None:
    a = _features(20, 64, 11)
    sigma = torch.cov(a.T)
    exact = frechet_distance(a.double().mean(0), torch.cov(a.double().T), np.zeros(64), np.eye(64))
    assert frechet_distance(a.mean(0), sigma, np.zeros(64), np.eye(64)) == pytest.approx(exact, rel=1e-3)
    assert Gaussian(mu=a.mean(0).double(), sigma=sigma.double()).trace() == pytest.approx(sigma.trace().item())
