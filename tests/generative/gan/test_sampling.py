"""Truncated noise and the one-step scheduler."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest, truncnorm

from generative.core.errors import UserError
from generative.core.sampling import SampleState, sample_loop
from generative.core.seeding import ImageNoise, keyed_generator
from generative.gan.sampling import OneStepScheduler, check_truncation, draw_z, image_z, truncated_normal


@pytest.mark.parametrize("threshold", [0.3, 1.0, 3.0])
def test_truncated_normal_has_the_law_of_redrawing(threshold: float) -> None:
    values = truncated_normal(torch.rand(20_000, generator=keyed_generator(0)), threshold).double().numpy()
    assert abs(values).max() <= threshold
    assert kstest(values, truncnorm(-threshold, threshold).cdf).pvalue > 1e-3


def test_truncated_normal_at_the_ends_of_the_unit_interval() -> None:
    values = truncated_normal(torch.tensor([0.0, 0.5, 1 - 2**-24]), 50.0)  # the normal law has no mass out there in float64
    assert values.isfinite().all() and values[1] == 0
    assert truncated_normal(torch.tensor([0.0]), 0.5).item() == pytest.approx(-0.5)


def test_image_noise_does_not_depend_on_the_batch() -> None:
    def generators() -> list[torch.Generator]:
        return [keyed_generator(index) for index in range(3)]

    for truncation in (None, 0.7):
        together = image_z(ImageNoise(generators()), 5, truncation)
        alone = [image_z(ImageNoise([generator]), 5, truncation) for generator in generators()]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


def test_draw_z_follows_its_generator() -> None:
    assert torch.equal(draw_z(2, 3, keyed_generator(4)), draw_z(2, 3, keyed_generator(4)))
    assert draw_z(100, 3, keyed_generator(4), truncation=0.5).abs().max() <= 0.5


@pytest.mark.parametrize("truncation", [0, -1.0, float("nan"), "much"])
def test_wrong_truncation_is_told(truncation: object) -> None:
    with pytest.raises(UserError, match="truncation must be a positive threshold"):
        check_truncation(truncation)  # type: ignore[arg-type]


def test_one_step_takes_the_prediction() -> None:
    state = SampleState(torch.zeros(2, 4))
    images = torch.rand(2, 3, 8, 8)
    noise = ImageNoise([keyed_generator(index) for index in range(2)])
    result = sample_loop(lambda state, timestep: images, OneStepScheduler(), state, 1, noise)
    assert result.sample is images
    with pytest.raises(UserError, match="in 1 step, got num_inference_steps=20"):
        sample_loop(lambda state, timestep: images, OneStepScheduler(), state, 20, noise)
