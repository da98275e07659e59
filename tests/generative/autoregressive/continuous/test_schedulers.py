"""Which tokens are drawn when: MAR's counts, eMIGM's probabilities and interval, guidance by what is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generative.autoregressive.continuous.schedulers import IndependentScheduler, MaskedScheduler, RandomOrderScheduler
from generative.autoregressive.masking import mask_schedule
from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise

CPU = torch.device("cpu")


class Drawing:
    """Draws the number of the iteration for every token, and remembers what it was asked."""

    def __init__(self) -> None:
        self.scales: list[Tensor | None] = []
        self.counts: list[list[int]] = []

    def __call__(self, features: Tensor, scale: Tensor | None, counts: list[int], noise: ImageNoise) -> Tensor:
        assert features.shape[1] == sum(counts)
        self.scales.append(scale)
        self.counts.append(counts)
        return torch.full((sum(counts), 1), float(len(self.counts)))


def noise(batch_size: int) -> ImageNoise:
    return ImageNoise([torch.Generator().manual_seed(seed) for seed in range(batch_size)])


def run(scheduler: MaskedScheduler, num_iterations: int, num_tokens: int = 16, batch_size: int = 2) -> SampleState:
    images = noise(batch_size)
    masked = torch.ones(batch_size, num_tokens, dtype=torch.bool)
    draws = {"order": images.rand(num_tokens).argsort(1), "uniform": images.rand(num_iterations, num_tokens)}
    state = SampleState(torch.zeros(batch_size, num_tokens, 1), {"masked": masked, **draws})
    for timestep in scheduler.set_timesteps(num_iterations, CPU):
        state = scheduler.model_input(state, timestep)
        features = torch.zeros(1 + scheduler.is_guided(timestep), int(state.memory["chosen"].sum()), 4)
        state = scheduler.step(features, timestep, state, images)
    assert not state.memory["masked"].any()
    return state


@pytest.mark.parametrize("num_iterations", [1, 4, 16, 30])
def test_mar_counts_follow_the_cosine(num_iterations: int) -> None:
    drawing = Drawing()
    state = run(RandomOrderScheduler(drawing), num_iterations)
    left, expected = 16, []
    for k in range(num_iterations):
        target = max(1, min(left - 1, math.floor(16 * math.cos(math.pi / 2 * (k + 1) / num_iterations))))
        after = 0 if k == num_iterations - 1 else target
        if left > after:
            expected.append([left - after] * 2)
        left = after
    assert drawing.counts == expected and (state.sample > 0).all()


def test_mar_draws_from_the_end_of_the_order() -> None:
    state = run(RandomOrderScheduler(Drawing()), 4)
    drawn_at = state.sample[..., 0].gather(1, state.memory["order"])
    assert (drawn_at.diff(dim=1) <= 0).all()


def test_linear_guidance_grows_with_what_is_known() -> None:
    drawing = Drawing()
    run(RandomOrderScheduler(drawing, 3.0, "linear"), 4)
    left = [14, 11, 6, 1]  # floor(16 cos(pi/8 k)), and 1 at the last
    for scale, masked in zip(drawing.scales, left, strict=True):
        assert scale is not None
        torch.testing.assert_close(scale, torch.full_like(scale, 1 + 2 * (16 - masked) / 16))
    plain = Drawing()
    run(RandomOrderScheduler(plain, 1.0, "linear"), 4)
    assert plain.scales == [None] * 4


def test_emigm_unmasks_with_the_probability_of_its_schedule() -> None:
    drawing = Drawing()
    scheduler = IndependentScheduler(drawing, mask_schedule("linear"))
    run(scheduler, 4, num_tokens=4000, batch_size=1)
    assert [count / 4000 for (count,) in drawing.counts] == pytest.approx([0.25] * 4, abs=0.03)
    assert [scheduler.unmask_probability(k) for k in range(4)] == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1], abs=1e-4)


def test_every_image_draws_at_each_iteration_while_any_is_masked() -> None:
    drawing = Drawing()
    run(IndependentScheduler(drawing, mask_schedule("exp")), 30, num_tokens=12, batch_size=3)
    left = [12] * 3
    for counts in drawing.counts:
        for image, count in enumerate(counts):
            assert count >= min(1, left[image])
            left[image] -= count
    assert left == [0] * 3


def test_guidance_acts_where_the_iteration_ends_within_the_interval() -> None:
    drawing = Drawing()
    scheduler = IndependentScheduler(drawing, mask_schedule("exp"), 4.0, "constant", (0.25, 0.5))
    run(scheduler, 8)
    ends = torch.linspace(1, 1e-5, 9)[1:].tolist()
    assert [scheduler.is_guided(k) for k in range(8)] == [0.25 < end <= 0.5 for end in ends]
    # An iteration may find nothing left to draw.
    guided = [scale for scale in drawing.scales if scale is not None]
    assert all((scale == 4).all() for scale in guided) and 1 <= len(guided) <= sum(0.25 < end <= 0.5 for end in ends)


def test_images_have_their_own_guidance() -> None:
    drawing = Drawing()
    scheduler = IndependentScheduler(drawing, mask_schedule("cosine"), 3.0, "linear")
    run(scheduler, 3)
    known = [0, 0]
    for counts, scale in zip(drawing.counts, drawing.scales, strict=True):
        assert scale is not None
        known = [before + count for before, count in zip(known, counts, strict=True)]
        expected = [1 + 2 * known[image] / 16 for image, count in enumerate(counts) for _ in range(count)]
        torch.testing.assert_close(scale[:, 0], torch.tensor(expected))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="num_inference_steps must be at least 1, got 0"):
        RandomOrderScheduler(Drawing()).set_timesteps(0, CPU)
    with pytest.raises(UserError, match=r"guidance_interval must be two numbers .* got \(0.5, 0.2\)"):
        IndependentScheduler(Drawing(), mask_schedule("exp"), 2.0, "constant", (0.5, 0.2))
    with pytest.raises(UserError, match="guidance_scale must be 0 or more"):
        RandomOrderScheduler(Drawing(), math.nan)
