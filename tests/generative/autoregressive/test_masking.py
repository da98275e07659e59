"""Masks of MAR and eMIGM: distributions by their formulas, weights by differentiation, wrong options."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import truncnorm
from seeded import generator

from generative.autoregressive.masking import (
    ScheduledMasking,
    TruncatedNormalMasking,
    mask_schedule,
    masking_time,
    random_subset,
    truncated_normal_ratio,
)
from generative.core.errors import UserError

STRATEGIES = ["exp", "cosine", "linear", "log", "poly-0.5", "poly-3"]


@pytest.mark.parametrize("min_ratio", [0.7, 0.1])
def test_share_of_masked_tokens_is_the_truncated_normal(min_ratio: float) -> None:
    distribution = truncnorm((min_ratio - 1) / 0.25, 0, loc=1, scale=0.25)
    for uniform in (0.0, 0.01, 0.3, 0.77, 0.999):
        assert truncated_normal_ratio(uniform, min_ratio) == pytest.approx(distribution.ppf(uniform), abs=1e-9)


def test_mar_masks_one_count_for_the_batch_and_each_image_its_own_subset() -> None:
    masking, counts = TruncatedNormalMasking(0.7), set()
    for seed in range(20):
        draw = masking.draw(5, 64, generator(seed))
        assert draw.weights is None and len(set(draw.masked.sum(1).tolist())) == 1
        counts.add(int(draw.masked[0].sum()))
        assert draw.masked.all() or not torch.equal(draw.masked[0], draw.masked[1])
    assert min(counts) >= math.ceil(0.7 * 64) and max(counts) <= 64 and len(counts) > 5


def test_subsets_are_uniform() -> None:
    shares = random_subset(4000, 6, 2, generator()).float().mean(0)
    torch.testing.assert_close(shares, torch.full((6,), 1 / 3), atol=0.03, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weight_is_the_logarithmic_derivative_and_probability_ends_right(strategy: str) -> None:
    schedule = mask_schedule(strategy)
    times = torch.linspace(0.05, 0.95, 10, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.probability(times).log().sum(), times)
    torch.testing.assert_close(schedule.weight(times.detach()), slope)
    start, end = schedule.probability(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    assert start == pytest.approx(0, abs=1e-12) and end == pytest.approx(1, abs=0.01)
    assert schedule.unmask_probability(0.8, 0.3) == pytest.approx(
        1 - float(schedule.probability(torch.tensor(0.3))) / float(schedule.probability(torch.tensor(0.8))), abs=1e-6
    )


def test_emigm_masks_by_time_and_holds_at_least_two() -> None:
    masking = ScheduledMasking("exp", min_time=0.2, weighted=True)
    for seed in range(30):
        draw = masking.draw(3, 16, generator(seed))
        counts = draw.masked.sum(1)
        assert counts.min() == counts.max() >= 2 and draw.weights is not None
        assert draw.weights.shape == (3,) and draw.weights.max() <= masking.schedule.weight(masking_time(torch.zeros(1), 0.2))
    assert ScheduledMasking("linear").draw(2, 2, generator()).masked.all()
    with pytest.raises(UserError, match="at least 2 tokens of an image, and this network has 1"):
        masking.draw(2, 1, generator())


def test_shares_per_image_follow_their_times() -> None:
    draw = ScheduledMasking("linear", per_image=True, weighted=True).draw(400, 256, generator())
    assert draw.weights is not None
    times = 1 / draw.weights
    torch.testing.assert_close(draw.masked.float().mean(1), times, atol=0.16, rtol=0)
    assert times.min() < 0.05 and times.max() > 0.95


def test_times_are_clamped_and_kept_off_zero() -> None:
    torch.testing.assert_close(masking_time(torch.tensor([0.0, 0.1, 1.0]), 0.0), torch.tensor([0.001, 0.1009, 1.0]))
    torch.testing.assert_close(masking_time(torch.tensor([0.0, 0.5]), 0.2), torch.tensor([0.2008, 0.5005]))


@pytest.mark.parametrize("name", ["poly-0", "poly-", "poly-x", "poly-nan", "sine", "apoly-2", ""])
def test_unknown_schedules_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="mask_strategy must be cosine, linear, exp, log or poly-X"):
        mask_schedule(name)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"mask_ratio_min must be in \[0, 1\], got 1.2"):
        TruncatedNormalMasking(1.2)
    with pytest.raises(UserError, match=r"clamp_t_min must be in \[0, 1\), got 1"):
        ScheduledMasking("exp", min_time=1)
