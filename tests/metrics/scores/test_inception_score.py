from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from metrics.metric import SmallSampleWarning
from metrics.scores.inception_score import ClassSortedWarning, InceptionScore, inception_score


def test_certain_and_balanced_classes_score_the_number_of_classes() -> None:
    logits = 100.0 * torch.eye(5).repeat(20, 1)
    mean, std = inception_score(logits, splits=1)
    assert mean == pytest.approx(5.0, rel=1e-6)
    assert std == 0.0


def test_one_class_or_no_opinion_scores_one() -> None:
    for logits in (torch.zeros(40, 7), torch.tensor([[9.0, 0.0, 0.0]]).repeat(40, 1)):
        assert inception_score(logits, splits=4)[0] == pytest.approx(1.0, abs=1e-12)


def test_two_pixels_by_hand() -> None:
    # p = (3/4, 1/4) and (1/4, 3/4), marginal (1/2, 1/2).
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert inception_score(logits, splits=1)[0] == pytest.approx(expected, rel=1e-6)


def test_shuffling_undoes_class_order() -> None:
    logits = 100.0 * torch.eye(10).repeat_interleave(100, 0)
    assert inception_score(logits, splits=10, shuffle_seed=None)[0] == pytest.approx(1.0, abs=1e-6)
    assert inception_score(logits, splits=10)[0] > 8.0


@pytest.mark.parametrize(("splits", "shuffle"), [(10, True), (7, False)])
def test_equals_torch_fidelity(splits: int, shuffle: bool) -> None:
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * torch.randn(103, 12, generator=torch.Generator().manual_seed(0))
    theirs = metric_isc.isc_features_to_metric(logits, splits=splits, shuffle=shuffle, rng_seed=2020)
    ours = inception_score(logits, splits, 2020 if shuffle else None)
    assert ours == pytest.approx(tuple(theirs.values()), rel=1e-12)


def test_split_size_cuts_consecutive_chunks_and_keeps_the_rest() -> None:
    """The ADM suite's rule, computed here the long way, in probabilities."""
    logits = 2 * torch.randn(23, 6, generator=torch.Generator().manual_seed(1))
    p = logits.double().softmax(1).numpy()
    expected = []
    for part in (p[:10], p[10:20], p[20:]):
        expected.append(np.exp(np.mean(np.sum(part * np.log(part / part.mean(0)), axis=1))))
    mean, std = inception_score(logits, splits=2, shuffle_seed=None, split_size=10)  # split_size goes first
    assert mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert std == pytest.approx(np.std(expected), rel=1e-12)
    assert inception_score(logits, shuffle_seed=None, split_size=100) == inception_score(logits, 1, None)


def test_a_set_longer_than_a_block_scores_the_same() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    assert inception_score(logits.repeat(200, 1), splits=1)[0] == pytest.approx(inception_score(logits, splits=1)[0], rel=1e-12)


def _compute(logits: torch.Tensor, **options: int | None) -> dict[str, float]:
    metric = InceptionScore(feature="logits", **options)
    metric.update({"logits": logits}, real=False)
    return metric.compute()


def test_warns_of_class_sorted_images_with_both_numbers() -> None:
    labels = torch.arange(10).repeat_interleave(40)
    logits = 8.0 * torch.eye(10)[labels] + torch.randn(400, 10, generator=torch.Generator().manual_seed(3))
    consecutive = inception_score(logits, shuffle_seed=None)[0]
    shuffled = inception_score(logits)[0]
    with pytest.warns(ClassSortedWarning, match=f"splits score {consecutive:.2f}, shuffled ones {shuffled:.2f}"):
        _compute(logits, shuffle_seed=None)
    with pytest.warns(ClassSortedWarning):
        _compute(logits, shuffle_seed=None, split_size=100)
    shuffled_files = logits[torch.randperm(400, generator=torch.Generator().manual_seed(4))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _compute(logits)  # shuffles
        _compute(shuffled_files, shuffle_seed=None)
        _compute(logits, shuffle_seed=None, splits=1)  # one split has no order


def test_metric_names_and_warns(tiny_extractor) -> None:
    metric = InceptionScore(splits=4)
    metric.bind(tiny_extractor)
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    metric.update({"logits": logits}, real=False)
    metric.update({"logits": logits}, real=True)
    with pytest.warns(SmallSampleWarning, match="12 images in 4 splits"):
        scores = metric.compute()
    assert scores["classifier_score_mean"] == pytest.approx(inception_score(logits, splits=4)[0])
    assert set(scores) == {"classifier_score_mean", "classifier_score_std"}, "only Inception-v3 gives an Inception Score"
    assert len(metric.banks["real"]) == 0


def test_warns_of_a_short_last_chunk_and_prints_the_rule() -> None:
    with pytest.warns(SmallSampleWarning, match="last split of the Inception Score has 1 images and the others 20"):
        _compute(torch.randn(41, 3, generator=torch.Generator().manual_seed(5)), split_size=20)
    assert InceptionScore(split_size=5000, shuffle_seed=None).parameters == {
        "feature": None,
        "split_size": 5000,
        "shuffle_seed": None,
    }


def test_refuses_bad_splits() -> None:
    with pytest.raises(ValueError, match=r"splits must lie between 1 and the number of images \(3\), got 4"):
        inception_score(torch.zeros(3, 2), splits=4)
    with pytest.raises(ValueError, match="splits must be at least 1"):
        InceptionScore(splits=0)
    with pytest.raises(ValueError, match="split_size must be at least 1, got 0"):
        InceptionScore(split_size=0)
