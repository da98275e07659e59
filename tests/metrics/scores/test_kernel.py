from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import metrics.scores.kernel as kernel_module
from metrics.metric import SmallSampleWarning
from metrics.scores.kernel import CMMD, KernelDistance, cmmd, gaussian_mmd2, kernel_distance, polynomial_mmd2


def _features(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def test_polynomial_mmd_equals_the_sum_over_pairs() -> None:
    real, fake = _features(5, 3, 0).double(), _features(4, 3, 1, 0.5).double()

    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within_real = sum(k(real[i], real[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_fake = sum(k(fake[i], fake[j]) for i in range(4) for j in range(4) if i != j) / 12
    between = sum(k(x, y) for x in real for y in fake) / 20
    assert polynomial_mmd2(real, fake) == pytest.approx(within_real + within_fake - 2 * between, rel=1e-12)


def test_unbiased_estimate_is_zero_on_average_for_one_distribution() -> None:
    values = [polynomial_mmd2(_features(60, 8, 2 * s), _features(60, 8, 2 * s + 1)) for s in range(40)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_kernel_distance_equals_torch_fidelity() -> None:
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = _features(90, 10, 3), _features(70, 10, 4, 0.3)
    theirs = metric_kid.kid_features_to_metric(fake.double(), real.double(), kid_subsets=12, kid_subset_size=40, verbose=False)
    mean, std = kernel_distance(real, fake, subsets=12, subset_size=40)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


def test_cmmd_equals_the_published_formula() -> None:
    real, fake = _features(12, 16, 5), _features(9, 16, 6, 1.0)
    x = (real.double() / real.double().norm(dim=1, keepdim=True)).numpy()
    y = (fake.double() / fake.double().norm(dim=1, keepdim=True)).numpy()

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((u - v) ** 2).sum() / (2 * 10.0**2)) for v in b] for u in a]))

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(real, fake) == pytest.approx(expected, rel=1e-9)
    assert cmmd(real, real) == pytest.approx(0.0, abs=1e-12)
    assert cmmd(3 * real, fake) == pytest.approx(expected, rel=1e-6), "embeddings are normalised"


def test_cmmd_keeps_the_diagonals() -> None:
    # Two equal points on each side, orthogonal to the other: K_xx = K_yy = 1 with diagonals, and 1 off them too.
    real, fake = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
    assert cmmd(real, fake) == pytest.approx(2000 * (1 - np.exp(-2 / 200)), rel=1e-12)
    # The unbiased estimator of one set against itself would be negative; the biased one is never.
    assert gaussian_mmd2(_features(20, 4, 7), _features(20, 4, 8), sigma=1.0) > 0


def _published_cmmd(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """The published N x N formula in float64 numpy, with the diagonals and without."""
    x, y = (features.double().numpy() for features in (real, fake))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    k_xx, k_yy, k_xy = (np.exp(-(2 - 2 * a @ b.T) / (2 * 10.0**2)) for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    biased = 1000 * (k_xx.mean() + k_yy.mean() - 2 * k_xy.mean())
    within = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1)) + (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(biased), float(1000 * (within - 2 * k_xy.mean()))


def _embeddings(count: int, seed: int, shift: float) -> Tensor:
    """768 numbers with a strong common direction, as CLIP's: two such sets are at a CMMD of some 0.01 to 1."""
    offset = _features(1, 768, 98) + shift * _features(1, 768, 99)
    return _features(count, 768, seed) * torch.logspace(0.3, -1, 768) + offset


@pytest.mark.parametrize("shift", [0.02, 0.2, 0.5])
def test_cmmd_in_float32_products_equals_the_published_formula(shift: float) -> None:
    real, fake = _embeddings(1100, 0, 0.0), _embeddings(1000, 1, shift)
    biased, unbiased = _published_cmmd(real, fake)
    assert cmmd(real, fake) == pytest.approx(biased, rel=1e-5)
    assert cmmd(real, fake, estimator="unbiased") == pytest.approx(unbiased, abs=1e-5 * biased)
    assert cmmd(real.double(), fake.double()) == pytest.approx(biased, rel=1e-8)


def test_unbiased_cmmd_leaves_out_the_diagonals() -> None:
    real, fake = _features(12, 16, 5), _features(9, 16, 6, 1.0)
    biased, unbiased = _published_cmmd(real, fake)
    assert cmmd(real, fake, estimator="unbiased") == pytest.approx(unbiased, rel=1e-9)
    assert cmmd(real, fake) == pytest.approx(biased, rel=1e-9)
    x, y = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (real, fake))

    def mean_off_diagonal(rows: Tensor) -> float:
        kernel = torch.exp(-torch.cdist(rows, rows).square() / 200)
        return float((kernel.sum() - len(rows)) / (len(rows) * (len(rows) - 1)))

    bias = 1000 * ((1 - mean_off_diagonal(x)) / 12 + (1 - mean_off_diagonal(y)) / 9)
    assert biased - unbiased == pytest.approx(bias, rel=1e-6)
    values = [cmmd(_features(40, 8, 2 * s), _features(40, 8, 2 * s + 1), estimator="unbiased") for s in range(40)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def _pool3_like(count: int, seed: int, shift: float) -> Tensor:
    """Features as pool3's: not negative, mean 0.4, a few strong directions: KID of some 1e-3."""
    mixing = 0.3 * _features(32, 512, 97) * torch.logspace(0, -1, 32)[:, None]
    noise = 0.35 * _features(count, 512, seed) + 0.3 + shift * _features(1, 512, 96)
    return (_features(count, 32, seed + 50) @ mixing + noise).clamp_min(0.0)


@pytest.mark.parametrize("shift", [0.02, 0.1])
def test_kid_in_float32_products_equals_float64(shift: float) -> None:
    real, fake = _pool3_like(1100, 0, 0.0), _pool3_like(1000, 1, shift)
    x, y = real.double().numpy(), fake.double().numpy()
    k_xx, k_yy, k_xy = ((a @ b.T / 512 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    expected = (k_xx.sum() - np.trace(k_xx)) / (1100 * 1099) + (k_yy.sum() - np.trace(k_yy)) / (1000 * 999) - 2 * k_xy.mean()
    assert polynomial_mmd2(real, fake) == pytest.approx(expected, rel=1e-5)
    assert polynomial_mmd2(real.double(), fake.double()) == pytest.approx(expected, rel=1e-10)


def test_kid_subsets_of_the_published_size_equal_torch_fidelity() -> None:
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = _pool3_like(1500, 2, 0.0), _pool3_like(1200, 3, 0.05)
    theirs = metric_kid.kid_features_to_metric(fake.double(), real.double(), kid_subsets=3, kid_subset_size=1000, verbose=False)
    mean, std = kernel_distance(real, fake, subsets=3)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)


def test_precision_of_torch_products_has_no_effect() -> None:
    real, fake = _pool3_like(1010, 4, 0.0), _pool3_like(1000, 5, 0.02)
    expected = polynomial_mmd2(real, fake)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bfloat16 products on processors that have them
    try:
        assert polynomial_mmd2(real, fake) == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("block_rows", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_change_nothing(block_rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "_product_dtype", lambda *args: dtype)
    real, fake = _features(11, 6, 9), _features(7, 6, 10)

    def values() -> tuple[float, ...]:
        kid = polynomial_mmd2(real, fake), *kernel_distance(real, fake, 3, 5)
        return *kid, cmmd(real, fake), cmmd(real, fake, estimator="unbiased")

    expected = values()
    monkeypatch.setattr(kernel_module, "_BLOCK_ROWS", block_rows)
    assert values() == pytest.approx(expected, rel=1e-10 if dtype == torch.float64 else 2e-5)


def test_metric_takes_subsets_when_there_are_enough_images() -> None:
    for count, keys in ((30, {"kernel_distance_mean", "kernel_distance_std"}), (19, {"kernel_distance"})):
        metric = KernelDistance(feature="f", subsets=3, subset_size=20)
        metric.update({"f": _features(30, 4, 0)}, real=True)
        metric.update({"f": _features(count, 4, 1)}, real=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores = metric.compute()
            assert metric.compute() == scores, "the draw is deterministic"
        assert set(scores) == keys
        messages = [str(entry.message) for entry in caught if entry.category is SmallSampleWarning]
        assert len(messages) == (2 if count == 19 else 0)
        assert all("30 real and 19 fake images do not fill a subset of 20" in message for message in messages)


def test_cmmd_results_are_named_after_estimator_and_network(tiny_extractor) -> None:
    assert CMMD(estimator="unbiased").key == "cmmd_unbiased"
    assert CMMD().parameters["estimator"] == "biased"
    metric = CMMD(estimator="unbiased")
    metric.bind(tiny_extractor)
    real, fake = _features(4, 12, 0), _features(4, 12, 1)
    metric.update({"projection": real}, real=True)
    metric.update({"projection": fake}, real=False)
    assert metric.compute() == {"gaussian_kernel_distance_unbiased": cmmd(real, fake, estimator="unbiased")}
    assert metric.parameters["estimator"] == "unbiased"


def test_metric_cmmd_is_labelled_by_its_network(tiny_extractor) -> None:
    metric = CMMD()
    metric.bind(tiny_extractor)
    metric.update({"projection": _features(4, 12, 0)}, real=True)
    metric.update({"projection": _features(4, 12, 1)}, real=False)
    assert set(metric.compute()) == {"gaussian_kernel_distance"}


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="at least two samples"):
        polynomial_mmd2(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
        cmmd(torch.zeros(3, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="subset_size must lie between 2 and the smaller set"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(9, 3), subset_size=6)
    with pytest.raises(ValueError, match="subsets must be at least 1"):
        KernelDistance(subsets=0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        CMMD(sigma=0.0)
    with pytest.raises(ValueError, match="estimator must be one of biased, unbiased, got 'official'"):
        CMMD(estimator="official")
    with pytest.raises(ValueError, match="estimator must be one of"):
        cmmd(torch.ones(3, 2), torch.ones(4, 2), estimator="none")
    for call in (cmmd, polynomial_mmd2):
        with pytest.raises(ValueError, match="NaN or infinity"):
            call(torch.ones(3, 2), torch.full((4, 2), torch.nan))
