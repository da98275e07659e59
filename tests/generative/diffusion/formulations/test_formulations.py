"""Formulations against closed forms and against one another; every kind through the same checks."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant

sys.path.append(str(Path(__file__).parents[1]))
from exact import CONTINUOUS, GAUSSIAN  # noqa: E402

ALL = CONTINUOUS | GAUSSIAN


@pytest.fixture(params=list(ALL))
def formulation(request: pytest.FixtureRequest) -> Formulation:
    return ALL[request.param]


def middle_times(formulation: Formulation) -> torch.Tensor:
    """Four times well inside, of rising noise, in the formulation's unit and type."""
    return formulation.time_of_ratio(torch.tensor([0.05, 0.5, 1.0, 8.0], dtype=torch.float64))


def data(seed: int) -> torch.Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_exact_prediction_gives_data_and_noise_back(formulation: Formulation) -> None:
    times, x_start, noise = middle_times(formulation), data(0), data(1)
    sample = formulation.add_noise(x_start, noise, times)
    output = DenoiserOutput(formulation.target(x_start, noise, times))
    torch.testing.assert_close(formulation.predict_start(output, sample, times), x_start, rtol=1e-4, atol=1e-4, check_dtype=False)
    torch.testing.assert_close(formulation.predict_noise(output, sample, times), noise, rtol=1e-3, atol=1e-3, check_dtype=False)
    losses = formulation.losses(output, x_start, noise, sample, times)
    assert max(float(value.abs().max()) for value in losses.values()) < 1e-6


def test_output_of_is_the_way_back(formulation: Formulation) -> None:
    times, x_start, noise = middle_times(formulation), data(0), data(1)
    sample = formulation.add_noise(x_start, noise, times)
    output = formulation.output_of(x_start, sample, times)
    torch.testing.assert_close(
        output.prediction, formulation.target(x_start, noise, times), rtol=1e-3, atol=1e-3, check_dtype=False
    )


def test_times_and_ratios_are_inverse_and_levels_rise_with_noise(formulation: Formulation) -> None:
    times = middle_times(formulation)
    alpha, sigma = formulation.alpha_sigma(times)
    wanted = torch.tensor([0.05, 0.5, 1.0, 8.0], dtype=torch.float64)
    tolerance = 0.02 if isinstance(formulation, GaussianDiffusion) else 1e-6  # a chain has no times between its steps
    torch.testing.assert_close((sigma / alpha).double(), wanted, rtol=tolerance, atol=0)
    levels = formulation.noise_level(times)
    assert bool((levels.diff() > 0).all()) and 0 <= float(levels[0]) < float(levels[-1]) <= 1


def test_training_times_are_in_range_and_repeat_with_their_seed(formulation: Formulation) -> None:
    times = formulation.draw_times(2000, torch.Generator().manual_seed(0))
    levels = formulation.noise_level(times)
    assert 0 <= float(levels.min()) < 0.3 < 0.7 < float(levels.max()) <= 1
    assert torch.equal(times, formulation.draw_times(2000, torch.Generator().manual_seed(0)))


def test_classifier_guidance_makes_the_score_larger_by_its_gradient(formulation: Formulation) -> None:
    times, x_start, noise, gradient = middle_times(formulation), data(0), data(1), data(2)
    sample = formulation.add_noise(x_start, noise, times)
    output = DenoiserOutput(formulation.target(x_start, noise, times), gradient=gradient)
    shifted = formulation.shift_score(output, sample, times)
    assert shifted.gradient is None
    difference = formulation.score(shifted, sample, times) - formulation.score(output, sample, times)
    torch.testing.assert_close(difference, gradient, rtol=1e-2, atol=1e-2, check_dtype=False)


@pytest.mark.parametrize("name", list(CONTINUOUS))
def test_rates_are_the_derivatives(name: str) -> None:
    formulation = CONTINUOUS[name]
    times = formulation.time_of_ratio(torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64))
    step = 1e-6 * formulation.time_unit
    for rate, low, high in zip(
        formulation.rates(times), formulation.alpha_sigma(times - step), formulation.alpha_sigma(times + step), strict=True
    ):
        torch.testing.assert_close(rate, (high - low) / 2e-6, rtol=1e-5, atol=1e-6)


def test_saved_and_loaded_formulation_is_the_same(formulation: Formulation, tmp_path: Path) -> None:
    formulation.save_pretrained(tmp_path)
    loaded = type(formulation).from_pretrained(tmp_path)
    times = middle_times(formulation)
    assert {key: value for key, value in formulation.config.items() if not key.startswith("_")}.items() <= loaded.config.items()
    for ours, theirs in zip(loaded.alpha_sigma(times), formulation.alpha_sigma(times), strict=True):
        assert torch.equal(ours, theirs)


def test_directions_of_time_are_mirrors() -> None:
    forward, backward = Interpolant(), Interpolant(data_time=1)
    times = torch.tensor([0.1, 0.6])
    x_start, noise = data(0)[:2], data(1)[:2]
    torch.testing.assert_close(forward.add_noise(x_start, noise, times), backward.add_noise(x_start, noise, 1 - times))
    assert torch.equal(forward.target(x_start, noise, times), -backward.target(x_start, noise, 1 - times))
    torch.testing.assert_close(forward.noise_level(times), backward.noise_level(1 - times))


def test_shift_moves_training_and_sampling_alike() -> None:
    plain, shifted = Interpolant(), Interpolant(shift=3.0)
    generator = torch.Generator().manual_seed(0)
    drawn = plain.draw_times(5, generator)
    expected = 3 * drawn / (1 + 2 * drawn)
    torch.testing.assert_close(shifted.draw_times(5, torch.Generator().manual_seed(0)), expected)
    grid = plain.sampling_times(4)
    torch.testing.assert_close(shifted.sampling_times(4), 3 * grid / (1 + 2 * grid))


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_noise_with_velocity_weighting_has_the_velocity_s_error(path: str) -> None:
    x_start, noise, times = data(0), data(1), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    velocity, epsilon = Interpolant(path, data_time=1), Interpolant(path, "epsilon", data_time=1, weighting="velocity")
    sample = velocity.add_noise(x_start, noise, times)
    wrong = DenoiserOutput(noise + 0.1 * data(2))
    implied = DenoiserOutput(epsilon.velocity(wrong, sample, times))
    torch.testing.assert_close(
        epsilon.losses(wrong, x_start, noise, sample, times)["mse"],
        velocity.losses(implied, x_start, noise, sample, times)["mse"],
    )


def test_edm_scales_input_and_target_to_unit_variance() -> None:
    formulation, generator = EDM(), torch.Generator().manual_seed(0)
    x_start = 0.5 * torch.randn(4, 200_000, generator=generator)
    noise = torch.randn(4, 200_000, generator=generator)
    times = torch.tensor([0.01, 0.5, 3.0, 80.0])
    scaled, told = formulation.network_input(formulation.add_noise(x_start, noise, times), times)
    torch.testing.assert_close(scaled.std(dim=1), torch.ones(4), rtol=0.01, atol=0)
    torch.testing.assert_close(formulation.target(x_start, noise, times).std(dim=1), torch.ones(4), rtol=0.01, atol=0)
    torch.testing.assert_close(told, times.log() / 4)


def test_edm_loss_is_that_of_the_raw_network_and_uncertainty_balances_it() -> None:
    formulation, times = EDM(), torch.tensor([0.1, 0.5, 1.0, 10.0])
    x_start, noise = data(0).float(), data(1).float()
    sample = formulation.add_noise(x_start, noise, times)
    error = data(2).float()
    output = DenoiserOutput(formulation.target(x_start, noise, times) + error)
    loss = formulation.losses(output, x_start, noise, sample, times)["mse"]
    torch.testing.assert_close(loss, error.square().flatten(1).mean(1), rtol=1e-3, atol=1e-4)
    learned = DenoiserOutput(output.prediction, log_variance=loss.log())
    parts = formulation.losses(learned, x_start, noise, sample, times)
    torch.testing.assert_close(parts["mse"], torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts["uncertainty"], loss.log())


def test_gaussian_refuses_a_variance_it_does_not_learn_and_the_other_way_round() -> None:
    x_start, noise, times = data(0), data(1), torch.tensor([1, 10, 500, 900])
    for learned in (False, True):
        formulation = GaussianDiffusion(learned_variance=learned)
        output = DenoiserOutput(noise, variance=None if learned else noise)
        with pytest.raises(UserError, match=f"learned_variance={learned}"):
            formulation.losses(output, x_start, noise, x_start, times)


def test_network_time_of_each_kind() -> None:
    times = torch.tensor([0.25])
    assert float(Interpolant(time_scale=1000.0).network_time(times * 1000)) == 250
    assert float(ContinuousDiffusion("vp_sde", time_scale=999.0).network_time(times)) == pytest.approx(249.75)
    gamma = ContinuousDiffusion("simple_linear", network_time="gamma", time_scale=1000.0).network_time(times)
    assert float(gamma) == pytest.approx(750)
    log_snr = ContinuousDiffusion("simple_linear", network_time="log_snr").network_time(times)
    assert float(log_snr) == pytest.approx(math.log(3), rel=1e-5)
    assert float(GaussianDiffusion(time_offset=1.0).network_time(torch.tensor([0]))) == 1


@pytest.mark.parametrize("interpolation", ["log_ratio", "log_alpha"])
def test_times_between_the_steps_of_a_chain(interpolation: str) -> None:
    chain = GaussianDiffusion(interpolation=interpolation)  # type: ignore[arg-type]
    steps = torch.tensor([0, 3, 999])
    for exact, between in zip(chain.alpha_sigma(steps), chain.alpha_sigma(steps.double()), strict=True):
        torch.testing.assert_close(between, exact)
    times = torch.tensor([0.5, 400.25], dtype=torch.float64)
    alpha, sigma = chain.alpha_sigma(times)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(2))
    torch.testing.assert_close(chain.continuous_time_of_ratio(sigma.double() / alpha.double()), times, rtol=0, atol=1e-4)
    before, after = (chain.alpha_sigma(torch.tensor([step])) for step in (0, 1))
    half = {"log_alpha": lambda pair: pair[0].log(), "log_ratio": lambda pair: (pair[1] / pair[0]).log()}[interpolation]
    torch.testing.assert_close(half((alpha, sigma))[:1], (half(before) + half(after)) / 2)
    assert chain.identity() == GaussianDiffusion().identity()


def test_the_whole_way_of_a_continuous_process_goes_on_to_the_data() -> None:
    process = ContinuousDiffusion("vp_sde", min_time=1e-3)
    assert process.whole_way().tolist() == [1, 0] and process.sampling_times(1).tolist() == [1, 1e-3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interpolant("round"), "path must be one of linear, gvp, vp, got 'round'"),  # type: ignore[arg-type]
        (lambda: Interpolant(shift=0.0), "shift must be a positive number, got 0.0"),
        (lambda: Interpolant(weighting="velocity"), "weighting 'velocity' is of predicted noise or score, not of velocity"),
        (lambda: Interpolant(min_level=0.5, max_level=0.2), "levels must satisfy"),
        (lambda: EDM(sigma_min=2.0, sigma_max=1.0), "noise levels must satisfy 0 < sigma_min < sigma_max"),
        (lambda: ContinuousDiffusion("square"), "schedule must be one of vp_sde"),  # type: ignore[arg-type]
        (lambda: GaussianDiffusion(beta_start=0.5, beta_end=0.1), "betas must satisfy"),
        (lambda: GaussianDiffusion(num_train_timesteps=1), "at least 2 steps"),
        (lambda: GaussianDiffusion(interpolation="cubic"), "interpolation must be log_ratio or log_alpha"),  # type: ignore[arg-type]
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=message):
        make()
