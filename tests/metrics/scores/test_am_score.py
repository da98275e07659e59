from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from metrics.scores.am_score import AMScore, am_score


def _logits(count: int, seed: int) -> torch.Tensor:
    return 2.0 * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_certain_fakes_of_the_training_distribution_score_zero() -> None:
    real = 100.0 * torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    assert am_score(real, real.repeat(5, 1)) == pytest.approx(0.0, abs=1e-12)


def test_two_classes_by_hand() -> None:
    # Reals are half and half; fakes are (3/4, 1/4) always.
    real = torch.zeros(4, 2)
    fake = torch.tensor([[math.log(3.0), 0.0]]).repeat(3, 1)
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert am_score(real, fake) == pytest.approx(divergence + entropy, rel=1e-6)


def test_a_class_that_fakes_never_show_costs_its_finite_logarithm() -> None:
    """exp(-2000) is zero in float64, its logarithm is not."""
    real = torch.zeros(2, 2)
    fake = torch.tensor([[0.0, -2000.0]])
    assert am_score(real, fake) == pytest.approx(0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 2000.0), rel=1e-9)


def test_is_asymmetric_and_blind_to_the_certainty_of_reals() -> None:
    real, fake = _logits(40, 0), _logits(50, 1)
    assert am_score(real, fake) != pytest.approx(am_score(fake, real), rel=1e-3)
    mean = real.double().softmax(1).mean(0).log()[None]
    assert am_score(mean, fake) == pytest.approx(am_score(real, fake), rel=1e-9)


def test_metric_streams_merges_and_keeps_no_images(tiny_extractor) -> None:
    real, fake = _logits(40, 2), _logits(50, 3)
    parts = [AMScore(feature="logits") for _ in range(2)]
    for index, (start, stop) in enumerate(((0, 17), (17, 50))):
        parts[index].update({"logits": real[start:stop]}, True)
        parts[index].update({"logits": fake[start:stop]}, False)
    merged = AMScore(feature="logits")
    for side in (True, False):
        merged.load_states(side, [part.state(side) for part in parts], None)
    assert merged.compute() == {"am_score": pytest.approx(am_score(real, fake), rel=1e-12)}
    assert merged.state(True)["log_sum"].shape == (6,)
    assert merged.load_statistics(SimpleNamespace(features=fake), real=True)
    assert merged.compute() == {"am_score": pytest.approx(am_score(fake, fake), rel=1e-12)}
    assert not merged.load_statistics(SimpleNamespace(features=None), real=True)
    merged.reset(True)
    with pytest.raises(ValueError, match="at least one real image"):
        merged.compute()


def test_reads_biased_logits_and_refuses_what_is_no_classifier(tiny_extractor) -> None:
    metric = AMScore()
    metric.bind(tiny_extractor)
    assert metric.feature == "logits"
    tiny_extractor.class_logits = None
    with pytest.raises(ValueError, match="tiny is no classifier"):
        AMScore().bind(tiny_extractor)
    with pytest.raises(ValueError, match="numbers of classes differ: 6 real and 2 fake"):
        am_score(_logits(3, 0), torch.zeros(3, 2))


def test_takes_the_logits_with_bias_of_a_network_that_has_both(tiny_extractor) -> None:
    tiny_extractor.feature_dims["logits_unbiased"] = 5
    tiny_extractor.class_logits = "logits_unbiased"
    metric = AMScore()
    metric.bind(tiny_extractor)
    assert metric.parameters == {"feature": "logits"}
