from __future__ import annotations

import warnings

import pytest
import torch

from metrics.metric import SmallSampleWarning
from metrics.scores.class_frechet import ClassFrechetDistance
from metrics.scores.frechet import frechet_distance_from_features

_DIMENSION = 4
_PER_CLASS = 20


def _classes(seed: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(3).repeat(_PER_CLASS)
    noise = torch.randn(len(labels), _DIMENSION, generator=torch.Generator().manual_seed(seed))
    return noise + 3.0 * labels[:, None] + offset, labels


def _update(metric: ClassFrechetDistance, features: torch.Tensor, labels: torch.Tensor, real: bool) -> None:
    for start in range(0, len(labels), 7):
        metric.update({"f": features[start : start + 7], "class_labels": labels[start : start + 7]}, real)


def test_is_the_mean_of_the_distances_within_classes() -> None:
    (real, real_labels), (fake, fake_labels) = _classes(0), _classes(1, offset=0.5)
    metric = ClassFrechetDistance(feature="f")
    _update(metric, real, real_labels, True)
    _update(metric, fake, fake_labels, False)
    expected = {
        label: frechet_distance_from_features(real[real_labels == label], fake[fake_labels == label]) for label in range(3)
    }
    assert metric.per_class() == pytest.approx(expected, rel=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute() == {"class_frechet_distance": pytest.approx(sum(expected.values()) / 3, rel=1e-12)}


def test_sees_swapped_labels_where_the_distance_of_all_does_not() -> None:
    real, labels = _classes(0)
    metric = ClassFrechetDistance(feature="f")
    _update(metric, real, labels, True)
    _update(metric, real, (labels + 1) % 3, False)
    assert frechet_distance_from_features(real, real) == pytest.approx(0.0, abs=1e-9)
    assert metric.compute()["class_frechet_distance"] > 50


def test_merges_processes_that_saw_different_classes() -> None:
    (real, real_labels), (fake, fake_labels) = _classes(0), _classes(1)
    whole = ClassFrechetDistance(feature="f")
    _update(whole, real, real_labels, True)
    _update(whole, fake, fake_labels, False)
    parts = [ClassFrechetDistance(feature="f") for _ in range(2)]
    _update(parts[0], fake[fake_labels == 0], fake_labels[fake_labels == 0], False)
    _update(parts[1], fake[fake_labels > 0], fake_labels[fake_labels > 0], False)
    _update(parts[0], real[:13], real_labels[:13], True)
    _update(parts[1], real[13:], real_labels[13:], True)
    merged = ClassFrechetDistance(feature="f")
    for real_side in (True, False):
        merged.load_states(real_side, [part.state(real_side) for part in parts], None)
    assert merged.per_class() == pytest.approx(whole.per_class(), rel=1e-9)


def test_name_on_inception(tiny_extractor, monkeypatch) -> None:
    monkeypatch.setattr(type(tiny_extractor), "frechet_names", {"projection": "fid"})
    metric = ClassFrechetDistance()
    metric.bind(tiny_extractor)
    assert metric.key == "class_fid"
    assert metric.needs_labels


def test_warns_of_small_classes_and_refuses_missing_ones() -> None:
    real, labels = _classes(0)
    metric = ClassFrechetDistance(feature="f")
    _update(metric, real, labels, True)
    _update(metric, real[:9], labels[:9], False)
    with pytest.warns(SmallSampleWarning, match="smallest class has 3 images, fewer than the 4 feature dimensions"):
        metric.compute()
    metric.reset(False)
    with pytest.raises(ValueError, match="at least 2 fake images of every class, and these classes have fewer: 0, 1, 2"):
        metric.compute()
    _update(metric, real, labels + 1, False)
    with pytest.raises(ValueError, match="at least 2 real images of every class, and these classes have fewer: 3"):
        metric.compute()
    with pytest.raises(ValueError, match="needs class labels, and the fake images have none"):
        metric.update({"f": real}, False)
    with pytest.raises(ValueError, match="at least 2 real images of every class, and these classes have fewer: all"):
        ClassFrechetDistance(feature="f").compute()
