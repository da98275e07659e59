from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metrics.manifold import PrecisionRecall, precision_recall


def _normal(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_counts_by_hand() -> None:
    # Real 0, 1, 3 (k=1): radii 1, 1, 2. Fake 0.5, 10, 11: radii 9.5, 1, 1.
    scores = precision_recall(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [10.0], [11.0]]), k=1)
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.recall == pytest.approx(1.0)  # the ball of 0.5 reaches to 10 and back to -9
    assert scores.density == pytest.approx(2 / 3)  # 0.5 lies in the balls of 0 and 1 only (3 - 0.5 > 2)
    assert scores.coverage == pytest.approx(2 / 3)


def test_collapsed_generator_is_precise_and_recalls_little() -> None:
    real = _normal(300, 4, 0)
    collapsed = real[:1] + 0.01 * _normal(300, 4, 1)
    scores = precision_recall(real, collapsed)
    assert scores.precision > 0.95
    assert scores.recall < 0.05
    assert scores.coverage < 0.1


def test_scattered_generator_recalls_and_is_not_precise() -> None:
    scores = precision_recall(0.1 * _normal(300, 4, 2), 5.0 * _normal(300, 4, 3))
    assert scores.recall > 0.95
    assert scores.precision < 0.05


def test_identical_sets_and_distant_sets() -> None:
    real = _normal(50, 8, 4)
    same = precision_recall(real, real.clone())
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert same.density == pytest.approx((50 * 4) / (3 * 50), rel=0.3)  # itself and its k-neighbourhood
    far = precision_recall(real, real + 100.0)
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)


def test_duplicates_are_found_although_their_balls_have_no_radius() -> None:
    duplicates = _normal(3, 64, 5).repeat(6, 1) + 300.0
    scores = precision_recall(duplicates, duplicates.clone())
    assert (scores.precision, scores.recall, scores.coverage) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_blocks_and_order_change_nothing(block_rows: int) -> None:
    real, fake = _normal(40, 5, 6), 1.3 * _normal(30, 5, 7)
    expected = precision_recall(real, fake)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert precision_recall(real.flip(0), fake[order], block_rows=block_rows) == expected


def test_equals_torch_fidelity() -> None:
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = _normal(80, 6, 8).double(), 1.2 * _normal(70, 6, 9).double()
    precision, recall = metric_prc.calculate_precision_recall_full(fake, real, neighborhood=3)
    scores = precision_recall(real, fake, k=3)
    assert scores.precision == pytest.approx(precision, abs=1e-6)
    assert scores.recall == pytest.approx(recall, abs=1e-6)


def test_metric_and_bad_input() -> None:
    metric = PrecisionRecall(feature="f", k=2)
    metric.update({"f": _normal(10, 3, 0)}, real=True)
    metric.update({"f": _normal(10, 3, 1)}, real=False)
    assert set(metric.compute()) == {"precision", "recall", "density", "coverage"}
    assert metric.parameters == {"feature": "f", "k": 2}
    with pytest.raises(ValueError, match="k must lie between 1 and the smaller set minus one"):
        precision_recall(torch.zeros(3, 2), torch.zeros(5, 2), k=3)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
        precision_recall(torch.zeros(5, 2), torch.zeros(5, 3))
