"""Parallel decoding: counts, which tokens are kept, the scheduler, the distribution of the masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generative.autoregressive.masked.parallel_decoding import (
    CosineMasking,
    ParallelScheduler,
    chosen_log_probabilities,
    keep_confident,
    masked_counts,
)
from generative.core.errors import UserError
from generative.core.sampling import SampleState, sample_loop
from generative.core.seeding import ImageNoise


def test_masked_counts_follow_the_cosine() -> None:
    counts = masked_counts(256, 8)
    assert counts == [math.floor(256 * math.cos(math.pi / 2 * (k + 1) / 8)) for k in range(7)] + [0]
    for num_tokens in (1, 2, 7, 64, 256):
        for steps in range(1, num_tokens + 1):
            left = [num_tokens, *masked_counts(num_tokens, steps)]
            assert left[-1] == 0 and len(left) == steps + 1
            assert all(before > after for before, after in zip(left, left[1:], strict=False)), "a step decides nothing"


@pytest.mark.parametrize("steps", [0, -1, 17])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=rf"num_inference_steps must be in 1..16, .* got {steps}"):
        masked_counts(16, steps)


def test_the_least_confident_are_masked_again() -> None:
    scores = torch.tensor([[-0.1, -3.0, -0.5, -2.0], [-1.0, -1.0, -1.0, -1.0]])
    is_masked = torch.tensor([[True, True, True, True], [True, True, False, True]])
    uniform = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    assert keep_confident(scores, is_masked, 2, uniform, 0.0).tolist() == [
        [False, True, False, True],
        [True, True, False, False],  # ties by position; the decided one stays decided
    ]
    # With much noise every masked position is as likely as another.
    uniform = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))
    share = keep_confident(scores[:1].expand(4000, -1), is_masked[:1].expand(4000, -1), 2, uniform, 1e6).float().mean(0)
    torch.testing.assert_close(share, torch.full((4,), 0.5), rtol=0, atol=0.03)


def test_the_choice_is_gumbel_top_k() -> None:
    """At temperature 1 with one token to keep, a position is kept with its probability's share."""
    probabilities = torch.tensor([0.7, 0.2, 0.1])
    uniform = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(20000, 3, dtype=torch.bool)
    still = keep_confident(probabilities.log().expand(20000, -1), everything, 2, uniform, 1.0)
    torch.testing.assert_close((~still).float().mean(0), probabilities, rtol=0, atol=0.015)


def run(steps: int, choice_temperature: float = 4.5) -> tuple[list[Tensor], Tensor]:
    """Maps before each step, and the last."""
    seen: list[Tensor] = []
    logits = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(1))

    def predict(state: SampleState, timestep: int) -> Tensor:
        seen.append(state.sample)
        return logits

    noise = ImageNoise([torch.Generator().manual_seed(i) for i in range(3)])
    scheduler = ParallelScheduler(9, 5, choice_temperature)
    state = sample_loop(predict, scheduler, SampleState(torch.full((3, 9), 5)), steps, noise)
    return seen, state.sample


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_every_token_is_decided_once(steps: int) -> None:
    seen, last = run(steps)
    maps = [*seen, last]
    for before, after, count in zip(maps, maps[1:], masked_counts(9, steps), strict=False):
        decided = before != 5
        assert torch.equal(before[decided], after[decided])
        assert ((after == 5).sum(dim=1) == count).all()
    assert last.min() >= 0 and last.max() < 5


def test_the_choice_temperature_matters_and_falls_to_zero() -> None:
    assert not torch.equal(run(4, 0.0)[0][1] == 5, run(4, 50.0)[0][1] == 5)
    assert torch.equal(run(1, 0.0)[1], run(1, 50.0)[1])  # a single step is the last one: nothing is chosen
    for wrong in (-0.1, math.inf):
        with pytest.raises(UserError, match="choice_temperature must be 0 or more"):
            ParallelScheduler(9, 5, wrong)
    with pytest.raises(UserError, match="top_k must be at least 1, got 0"):
        ParallelScheduler(9, 5, top_k=0)


def test_log_probabilities_are_of_the_tokens_drawn() -> None:
    logits = torch.randn(2, 3, 4)
    tokens = torch.tensor([[0, 1, 2], [3, 3, 0]])
    expected = torch.stack([logits[b, i].log_softmax(0)[tokens[b, i]] for b in range(2) for i in range(3)]).view(2, 3)
    torch.testing.assert_close(chosen_log_probabilities(logits, tokens), expected)


def test_cosine_masks() -> None:
    masks = CosineMasking().draw(20000, 10, torch.Generator().manual_seed(0))
    assert masks.weights is None and masks.masked.any(dim=1).all()
    counts = masks.masked.sum(dim=1)
    # P(count <= c) = P(cos(pi r / 2) <= c / L) = 1 - 2 / pi arccos(c / L), r being uniform.
    for c in range(1, 10):
        assert (counts <= c).float().mean().item() == pytest.approx(1 - 2 / math.pi * math.acos(c / 10), abs=0.012)
    torch.testing.assert_close(masks.masked.float().mean(0), counts.float().mean().expand(10) / 10, rtol=0, atol=0.015)
    assert CosineMasking(min_ratio=0.55).draw(1000, 10, torch.Generator().manual_seed(0)).masked.sum(1).min() == 6
    with pytest.raises(UserError, match="min_ratio"):
        CosineMasking(1.5)
