from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metrics.scores.class_matching import (
    _WeightedDistance,
    match_classes,
    match_top1_histogram,
    middle_n_indicators,
    optimise_weights,
    resample,
    top_n_indicators,
)
from metrics.scores.frechet import frechet_distance_from_features

_NUM_CLASSES = 4


def _images(counts: list[int], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, a feature that is the class plus noise, and one that knows nothing of it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    onehot = torch.eye(_NUM_CLASSES)[labels]
    noise = torch.randn(3, len(labels), _NUM_CLASSES, generator=generator)
    return 8 * onehot + noise[0], {"class": 3 * onehot + noise[1], "other": noise[2]}


def test_indicators_mark_ranks() -> None:
    logits = torch.tensor([[0.1, 5.0, 3.0, -1.0, 2.0, 1.0]])
    assert top_n_indicators(logits, 2).tolist() == [[0, 1, 1, 0, 0, 0]]
    assert middle_n_indicators(logits, 2).tolist() == [[0, 0, 0, 0, 1, 1]], "ranks 3 and 4 of 6"
    assert middle_n_indicators(logits, 3).tolist() == [[1, 0, 0, 0, 1, 1]]
    assert top_n_indicators(logits, 6).sum() == 6
    with pytest.raises(ValueError, match=r"n must lie between 1 and the number of classes \(6\), got 7"):
        top_n_indicators(logits, 7)


def test_top1_draw_has_the_real_histogram() -> None:
    real, _ = _images([10, 20, 30, 40], 0)
    fake, _ = _images([100, 100, 10, 30], 1)
    indices = match_top1_histogram(real, fake, num=50, seed=2)
    assert fake.argmax(1)[indices].bincount().tolist() == [5, 10, 15, 20]
    repeats = indices.bincount(minlength=len(fake))
    assert repeats[:200].max() == 1, "a class with enough fakes repeats none"
    assert set(repeats[200:210].tolist()) == {1, 2}, "15 draws of 10"
    assert torch.equal(indices, match_top1_histogram(real, fake, num=50, seed=2))
    assert not torch.equal(indices, match_top1_histogram(real, fake, num=50, seed=3))


def test_top1_leaves_out_classes_that_no_fake_has_and_rounds_to_num() -> None:
    real, _ = _images([10, 10, 10, 10], 0)
    fake, _ = _images([30, 30, 30], 1)
    counts = fake.argmax(1)[match_top1_histogram(real, fake, num=50)].bincount(minlength=4)
    assert sorted(counts.tolist()) == [0, 16, 17, 17]
    with pytest.raises(ValueError, match="share no top-1 class"):
        match_top1_histogram(_images([0, 5], 0)[0], _images([5], 1)[0], num=5)


@pytest.mark.parametrize("num_real", [40, 3])
def test_gradient_by_log_weights_equals_autograd(num_real: int) -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(num_real, 5, generator=generator)
    fake = torch.randn(30, 5, generator=generator) + 0.5
    measure = _WeightedDistance(real, fake)
    log_weights = (0.3 * torch.randn(30, generator=generator, dtype=torch.float64)).requires_grad_()
    w, x = log_weights.exp(), fake.double()
    mean = w @ x / w.sum()
    covariance = (x - mean).T @ (w[:, None] * (x - mean)) / (w.sum() - 1)
    sigma = real.double().T.cov()
    overlap = torch.linalg.eigvalsh(measure.factor.T @ covariance @ measure.factor).sqrt().sum()
    expected = (mean - real.double().mean(0)).square().sum() + sigma.trace() + covariance.trace() - 2 * overlap
    expected.backward()
    distance, gradient = measure(log_weights.detach())
    assert distance == pytest.approx(float(expected.detach()), rel=1e-10)
    torch.testing.assert_close(gradient, log_weights.grad, rtol=1e-8, atol=1e-12)


def test_equal_weights_give_the_plain_distance() -> None:
    real, fake = _images([9, 9, 9, 9], 0)[1]["class"], _images([20, 5, 5, 5], 1)[1]["class"]
    distance, _ = _WeightedDistance(real, fake)(torch.zeros(len(fake), dtype=torch.float64))
    assert distance == pytest.approx(frechet_distance_from_features(real, fake), rel=1e-9)


def test_optimised_weights_undo_wrong_proportions() -> None:
    real, fake = _images([50, 50, 50, 50], 0)[1]["class"], _images([200, 100, 40, 20], 1)[1]["class"]
    weights = optimise_weights(real, fake, steps=60)
    assert float(weights.sum()) == pytest.approx(1.0)
    labels = torch.arange(4).repeat_interleave(torch.tensor([200, 100, 40, 20]))
    shares = torch.zeros(4, dtype=torch.float64).index_add_(0, labels, weights)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.05)
    small_steps = optimise_weights(real, fake, steps=3, lr=0.1)
    assert 0 < float((small_steps * len(fake) - 1).abs().max()) < 0.1


@pytest.mark.parametrize("mode", ["top1", "top-n", "logits", "class"])
def test_matching_classes_lowers_the_distance_of_classes_only(mode: str) -> None:
    real_logits, real = _images([100, 100, 100, 100], 0)
    fake_logits, fake = _images([600, 300, 150, 150], 1)
    result = match_classes(real_logits, fake_logits, real, fake, num=400, mode=mode, n=1, steps=60)
    assert len(result.indices) == 400
    assert result.after["class"] < result.before["class"] / 4
    assert abs(result.after["other"] - result.before["other"]) < 0.1
    assert result.num_distinct == len(set(result.indices.tolist()))
    assert result.unmatched_share == 0.0


def test_middle_ranks_of_noise_match_nothing() -> None:
    real_logits, real = _images([100, 100, 100, 100], 0)
    fake_logits, fake = _images([600, 300, 150, 150], 1)
    noise = torch.Generator().manual_seed(5)
    result = match_classes(
        torch.randn(400, 9, generator=noise), torch.randn(1200, 9, generator=noise), real, fake, 400, "middle-n", n=3, steps=20
    )
    assert result.after["class"] > result.before["class"] / 2


def test_tells_the_share_of_reals_without_a_counterpart() -> None:
    real_logits, real = _images([10, 10, 10, 10], 0)
    fake_logits, fake = _images([20, 20, 20], 1)
    assert match_classes(real_logits, fake_logits, real, fake, num=30).unmatched_share == 0.25


def test_resample_follows_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0])
    counts = resample(weights, 4000, seed=1).bincount(minlength=4)
    assert counts[0] == counts[3] == 0
    assert float(counts[2] / counts[1]) == pytest.approx(3.0, rel=0.1)
    assert torch.equal(resample(weights, 10), resample(weights, 10))


def test_refuses_bad_input() -> None:
    logits, features = _images([5, 5], 0)
    with pytest.raises(ValueError, match="mode 'top5' is not known: choose from top1, top-n, middle-n, logits, class, other"):
        match_classes(logits, logits, features, features, 5, "top5")
    with pytest.raises(ValueError, match=r"size of the pool \(10\), got 11"):
        match_classes(logits, logits, features, features, 11)
    with pytest.raises(ValueError, match="steps and lr must be positive, got 5 and 0"):
        optimise_weights(logits, logits, steps=5, lr=0.0)
    with pytest.raises(ValueError, match="features must be"):
        optimise_weights(logits, logits[:, :2])
    for weights in (torch.zeros(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(ValueError, match="weights finite, >= 0 and not all zero"):
            resample(weights, 3)
