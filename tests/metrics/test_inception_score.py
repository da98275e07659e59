from __future__ import annotations

import math

import pytest
import torch

from metrics.inception_score import InceptionScore, inception_score
from metrics.metric import SmallSampleWarning


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


def test_equals_torch_fidelity() -> None:
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * torch.randn(103, 12, generator=torch.Generator().manual_seed(0))
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
    assert inception_score(logits) == pytest.approx(tuple(theirs.values()), rel=1e-12)


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


def test_refuses_bad_splits() -> None:
    with pytest.raises(ValueError, match=r"splits must lie between 1 and the number of images \(3\), got 4"):
        inception_score(torch.zeros(3, 2), splits=4)
    with pytest.raises(ValueError, match="splits must be at least 1"):
        InceptionScore(splits=0)
