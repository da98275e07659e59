from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metrics.metric import SmallSampleWarning
from metrics.scores.frechet import frechet_distance_from_features
from metrics.scores.frechet_infinity import FrechetInfinity, frechet_infinity, inception_score_infinity
from metrics.scores.inception_score import inception_score
from metrics.scores.moments import Gaussian

_DIMENSION = 8


def _normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, _DIMENSION, generator=torch.Generator().manual_seed(seed))


def test_removes_the_bias_of_fewer_samples() -> None:
    """The fakes are the reference's own Gaussian, so the true distance is 0 and all of FID is bias."""
    truth = Gaussian(mu=torch.zeros(_DIMENSION).double(), sigma=torch.eye(_DIMENSION).double())
    fits = [frechet_infinity(_normal(2000, seed), truth) for seed in range(8)]
    plain = np.mean([fit.values[-1] for fit in fits])
    intercepts = np.array([fit.intercept for fit in fits])
    assert plain > 0.005
    assert abs(intercepts.mean()) < plain / 5
    assert all(fit.slope > 0 for fit in fits)


def test_points_are_the_stated_sizes_and_the_line_is_least_squares() -> None:
    fake, real = _normal(1000, 0) + 0.3, _normal(1500, 1)
    accumulator = Gaussian(mu=real.double().mean(0), sigma=real.double().T.cov())
    fit = frechet_infinity(fake, accumulator, num_points=5, seed=3)
    assert fit.sizes == (100, 325, 550, 775, 1000)
    assert fit.values[-1] == pytest.approx(frechet_distance_from_features(real, fake), rel=1e-9), "the last point is all of N"
    coefficients, covariance = np.polyfit(1 / np.array(fit.sizes), fit.values, 1, cov=True)
    assert (fit.slope, fit.intercept) == pytest.approx(tuple(coefficients), rel=1e-9)
    assert fit.stderr == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-9)
    assert fit == frechet_infinity(fake, accumulator, num_points=5, seed=3)
    assert fit.intercept != frechet_infinity(fake, accumulator, num_points=5, seed=4).intercept


def test_inception_score_infinity_lies_above_the_score() -> None:
    logits = 2.0 * torch.randn(1000, 30, generator=torch.Generator().manual_seed(2))
    fit = inception_score_infinity(logits)
    assert fit.values[-1] == pytest.approx(inception_score(logits, splits=1)[0], rel=1e-9)
    assert fit.intercept > fit.values[-1] > fit.values[0], "the Inception Score is biased downwards"


def test_metric_takes_images_or_statistics_and_merges(tiny_extractor) -> None:
    real, fake = _normal(300, 4), _normal(200, 5)
    one = FrechetInfinity(feature="projection", seed=1)
    one.update({"projection": real}, real=True)
    one.update({"projection": fake}, real=False)
    scores = one.compute()
    assert set(scores) == {"frechet_distance_infinity", "frechet_distance_infinity_stderr"}

    two = FrechetInfinity(feature="projection", seed=1)
    mu, sigma = real.double().mean(0), real.double().T.cov()
    assert two.load_statistics(SimpleNamespace(mu=mu, sigma=sigma, features=None), real=True)
    assert not two.load_statistics(SimpleNamespace(mu=mu, sigma=sigma, features=None), real=False), "moments can't be drawn from"
    parts = [FrechetInfinity(feature="projection") for _ in range(2)]
    parts[0].update({"projection": fake[::2]}, real=False)
    parts[1].update({"projection": fake[1::2]}, real=False)
    order = torch.cat([torch.arange(0, 200, 2), torch.arange(1, 200, 2)]).argsort()
    two.load_states(False, [part.state(False) for part in parts], order)
    assert two.compute() == pytest.approx(scores, rel=1e-9)

    three = FrechetInfinity(feature="projection", seed=1)
    for side in (real[:100], real[100:]):
        part = FrechetInfinity(feature="projection")
        part.update({"projection": side}, real=True)
        parts.append(part)
    three.load_states(True, [part.state(True) for part in parts[2:]], None)
    three.update({"projection": fake}, real=False)
    assert three.compute() == pytest.approx(scores, rel=1e-9)
    stored = FrechetInfinity(feature="projection", seed=1)
    for features, side_is_real in ((real, True), (fake, False)):
        assert stored.load_statistics(SimpleNamespace(mu=None, sigma=None, features=features), side_is_real)
    assert stored.compute() == pytest.approx(scores, rel=1e-9)
    three.reset(True)
    with pytest.raises(ValueError, match="needs at least 2 real images and got 0"):
        three.compute()


def test_name_on_inception(tiny_extractor, monkeypatch) -> None:
    monkeypatch.setattr(type(tiny_extractor), "frechet_names", {"projection": "fid"})
    metric = FrechetInfinity()
    metric.bind(tiny_extractor)
    assert metric.key == "fid_infinity"
    assert metric.parameters == {"feature": "projection", "num_points": 15, "seed": 0}


def test_warns_below_the_dimension_and_refuses_too_few() -> None:
    metric = FrechetInfinity(feature="f")
    metric.update({"f": _normal(100, 6)}, real=True)
    metric.update({"f": _normal(50, 7)}, real=False)
    with pytest.warns(SmallSampleWarning, match="starts at 5 images, fewer than the 8 feature dimensions"):
        metric.compute()
    truth = Gaussian(mu=torch.zeros(_DIMENSION).double(), sigma=torch.eye(_DIMENSION).double())
    with pytest.raises(ValueError, match="needs at least 30 images, got 29"):
        frechet_infinity(_normal(29, 0), truth)
    with pytest.raises(ValueError, match="num_points must be at least 3"):
        FrechetInfinity(num_points=2)
