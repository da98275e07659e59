from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import metrics.kernel as kernel_module
from metrics.kernel import CMMD, KernelDistance, cmmd, gaussian_mmd2, kernel_distance, polynomial_mmd2


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


@pytest.mark.parametrize("block_rows", [1, 3, 100])
def test_blocks_change_nothing(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = _features(11, 6, 9), _features(7, 6, 10)
    expected = polynomial_mmd2(real, fake), cmmd(real, fake)
    monkeypatch.setattr(kernel_module, "_BLOCK_ROWS", block_rows)
    assert (polynomial_mmd2(real, fake), cmmd(real, fake)) == pytest.approx(expected, rel=1e-10)


def test_metric_takes_subsets_when_there_are_enough_images() -> None:
    for count, keys in ((30, {"kernel_distance_mean", "kernel_distance_std"}), (19, {"kernel_distance"})):
        metric = KernelDistance(feature="f", subsets=3, subset_size=20)
        metric.update({"f": _features(30, 4, 0)}, real=True)
        metric.update({"f": _features(count, 4, 1)}, real=False)
        scores = metric.compute()
        assert set(scores) == keys
        assert metric.compute() == scores, "the draw is deterministic"


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
