"""Steps along a gamma schedule, on a denoiser that is exact for Gaussian data. The official steps are in tests/parity."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.samplers.gamma import GammaSampler, step_to

sys.path.append(str(Path(__file__).parents[1]))
from exact import MEAN, STD, exact_end, exact_predict  # noqa: E402


def made(sampler: GammaSampler, formulation: ContinuousDiffusion, steps: int, count: int = 64) -> torch.Tensor:
    noise = ImageNoise([torch.Generator().manual_seed(seed) for seed in range(count)])
    state = SampleState(noise.randn(1, 8, 8))
    return sampler.sample(exact_predict(formulation), state, steps, noise, formulation).sample


FORMULATIONS = {
    "linear": ContinuousDiffusion("simple_linear", network_time="gamma"),
    "v of half data": ContinuousDiffusion("cosine", "v_prediction", data_scale=0.5),
    "half data": ContinuousDiffusion("offset_cosine", "sample", data_scale=0.5),
}


@pytest.mark.parametrize("name", list(FORMULATIONS))
@pytest.mark.parametrize("options", [{}, {"step_variance": "small"}, {"method": "ddim"}, {"schedule": "offset_cosine"}], ids=str)
def test_noise_becomes_the_data(name: str, options: dict[str, Any]) -> None:
    images = made(GammaSampler(**options), FORMULATIONS[name], 100)
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(images.std()) == pytest.approx(STD, abs=0.05)


def test_a_schedule_may_be_logarithmic_and_bend_either_way() -> None:
    times = torch.tensor([0.0, 0.5, 1.0])
    forth, back = ContinuousDiffusion("log", start=1.0, end=100.0), ContinuousDiffusion("log", start=100.0, end=1.0)
    torch.testing.assert_close(forth.gamma(times), torch.tensor([1.0, 1 - math.log(50.5) / math.log(100), 1e-9]))
    torch.testing.assert_close(back.gamma(times), torch.tensor([1.0, math.log(50.5) / math.log(100), 1e-9]))


def test_ddim_follows_the_ode() -> None:
    formulation = FORMULATIONS["linear"]
    state = SampleState(torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    noise = ImageNoise([torch.Generator()] * 2)
    wanted = exact_end(formulation, state.sample.double(), torch.ones(1).double(), torch.zeros(1).double())
    errors = []
    for steps in (50, 100):
        found = GammaSampler("ddim", schedule="cosine").sample(exact_predict(formulation), state, steps, noise, formulation)
        errors.append(float((found.sample - wanted).abs().max()))
    assert errors[1] < 0.02 and errors[1] < 0.7 * errors[0]


def test_steps_by_hand() -> None:
    start, sample = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    now, then = torch.tensor(0.25), torch.tensor(0.5)
    mean, spread = step_to(start, sample, now, then, "ddpm", "small")
    # q(x_s | x_t, x_0): alpha is 1/2, weights sqrt(.5) * .5 / .75 of x_0 and sqrt(.5) * .5 / .75 of x_t.
    assert float(mean) == pytest.approx(0.5**0.5 * 0.5 / 0.75 * (2 + 3), rel=1e-5)
    assert float(spread) == pytest.approx((0.5 / 0.75 * 0.5) ** 0.5, rel=1e-5)
    assert float(step_to(start, sample, now, then, "ddpm")[1]) == pytest.approx(0.5**0.5)
    mean, spread = step_to(start, sample, now, then, "ddim")
    noise = (3 - 0.5 * 2) / 0.75**0.5
    assert float(mean) == pytest.approx(0.5**0.5 * 2 + 0.5**0.5 * noise, rel=1e-5) and not spread


def test_each_step_may_aim_further() -> None:
    formulation = FORMULATIONS["linear"]
    gammas = GammaSampler(time_shift=1.0).gammas(formulation, 4)
    torch.testing.assert_close(gammas[:, 0], torch.tensor([1e-9, 0.25, 0.5, 0.75]))
    torch.testing.assert_close(gammas[:, 1], torch.tensor([0.5, 0.75, 1.0, 1.0]))


def test_data_are_clipped_where_that_is_asked_for() -> None:
    formulation = ContinuousDiffusion("simple_linear", "sample")

    def predict(state: SampleState, time: torch.Tensor) -> DenoiserOutput:
        return DenoiserOutput(torch.full_like(state.sample, 3.0))

    noise = ImageNoise([torch.Generator()])
    for options, wanted in (({}, 3.0), ({"clip_sample": True}, 1.0), ({"clip_sample": True, "clip_range": 2.0}, 2.0)):
        found = GammaSampler(**options).sample(predict, SampleState(torch.randn(1, 1, 2, 2)), 3, noise, formulation)
        assert float(found.sample.max()) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "heun"}, "method must be one of ddpm, ddim, got 'heun'"),
        ({"step_variance": "learned"}, "step_variance must be one of large, small, got 'learned'"),
        ({"time_shift": -1.0}, "time_shift must be a finite number of 0 or more, got -1.0"),
        ({"schedule": "square"}, "schedule must be one of vp_sde"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GammaSampler(**options)


def test_a_flow_has_no_gamma() -> None:
    with pytest.raises(
        UserError, match="GammaSampler goes along a schedule of gamma, and the network was trained as Interpolant"
    ):
        GammaSampler().check(Interpolant(), 4)
