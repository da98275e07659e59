"""Gaussian diffusion formulas against diffusers, closed forms and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian_process import (
    GaussianProcess,
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    mean_over_image,
)

TIMESTEPS = torch.tensor([0, 1, 500, 999])


def make_process(prediction_type: str = "epsilon", **options: object) -> tuple[GaussianProcess, DDPMScheduler]:
    """A process and the scheduler it comes from."""
    scheduler = DDPMScheduler(prediction_type=prediction_type, **options)
    return GaussianProcess.from_scheduler(scheduler), scheduler


def images(seed: int) -> Tensor:
    """Four random images."""
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "scaled_linear"])
def test_noise_and_velocity_equal_those_of_diffusers(schedule: str) -> None:
    process, scheduler = make_process("v_prediction", beta_schedule=schedule)
    x_start, noise = images(0), images(1)
    theirs = scheduler.add_noise(x_start, noise, TIMESTEPS)
    torch.testing.assert_close(process.add_noise(x_start, noise, TIMESTEPS), theirs, rtol=1e-3, atol=1e-5)
    velocity = scheduler.get_velocity(x_start, noise, TIMESTEPS)
    torch.testing.assert_close(process.target(x_start, noise, TIMESTEPS), velocity, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_exact_prediction_gives_the_data_back(prediction_type: str) -> None:
    process, _ = make_process(prediction_type)
    x_start, noise = images(0), images(1)
    sample = process.add_noise(x_start, noise, TIMESTEPS)
    target = process.target(x_start, noise, TIMESTEPS)
    torch.testing.assert_close(process.predict_start(target, sample, TIMESTEPS), x_start, rtol=1e-3, atol=1e-3)


def test_posterior_is_the_product_of_its_two_gaussians() -> None:
    process, _ = make_process()
    step = 20
    beta, before = process.betas[step], process.alphas_cumprod[step - 1]
    x_start, sample = torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), -0.3)
    # q(x_t | x_{t-1}) as a Gaussian of x_{t-1}, times q(x_{t-1} | x_0).
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta).sqrt() * -0.3 / beta + before.sqrt() * 0.7 / (1 - before)) / precision
    timestep = torch.tensor([step])
    assert process.posterior_mean(x_start, sample, timestep).item() == pytest.approx(mean.item(), rel=1e-5)
    assert process.posterior_variance[step].item() == pytest.approx(1 / precision.item(), rel=1e-6)


def test_learned_log_variance_lies_between_posterior_variance_and_beta() -> None:
    process, _ = make_process()
    timesteps = torch.tensor([1, 500])
    values = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    lower, upper = process.learned_log_variance(values, timesteps).flatten()
    assert lower.exp().item() == pytest.approx(process.posterior_variance[1].item(), rel=1e-5)
    assert upper.exp().item() == pytest.approx(process.betas[500].item(), rel=1e-5)
    first = process.learned_log_variance(torch.full((1, 1, 1, 1), -1.0), torch.tensor([0]))
    assert first.exp().item() == pytest.approx(process.posterior_variance[1].item(), rel=1e-5)


def test_kl_is_zero_for_equal_gaussians_and_half_the_squared_distance_for_unit_ones() -> None:
    mean, zero = torch.tensor([0.3, -2.0]), torch.zeros(2)
    assert gaussian_kl(mean, zero + 0.4, mean, zero + 0.4).abs().max() == 0
    torch.testing.assert_close(gaussian_kl(mean, zero, mean + 3, zero), torch.full((2,), 4.5))
    # Swapping the arguments must matter.
    assert not torch.allclose(gaussian_kl(mean, zero, mean, zero + 1), gaussian_kl(mean, zero + 1, mean, zero))


def test_discretized_likelihood_sums_to_one_over_the_levels() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean, std in ((0.1, 0.3), (-0.99, 0.05), (2.0, 0.5)):
        likelihood = discretized_gaussian_log_likelihood(levels, torch.tensor(mean), torch.tensor(math.log(std)))
        assert likelihood.double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_bound_vanishes_for_the_true_posterior() -> None:
    process, _ = make_process()
    x_start, noise = images(0), images(1)
    timesteps = torch.tensor([1, 10, 500, 999])
    sample = process.add_noise(x_start, noise, timesteps)
    mean = process.posterior_mean(x_start, sample, timesteps)
    log_variance = process.learned_log_variance(-torch.ones_like(sample), timesteps)
    assert process.variational_bound(mean, log_variance, x_start, sample, timesteps).abs().max() < 1e-5


def test_bound_in_bits_by_hand() -> None:
    process, _ = make_process()
    x_start, noise = images(0), images(1)
    timesteps = torch.tensor([3, 3, 3, 3])
    sample = process.add_noise(x_start, noise, timesteps)
    std = process.posterior_variance[3].sqrt().item()
    mean = process.posterior_mean(x_start, sample, timesteps) + 2 * std  # 2 standard deviations off: KL 2 nats
    log_variance = process.learned_log_variance(-torch.ones_like(sample), timesteps)
    bits = process.variational_bound(mean, log_variance, x_start, sample, timesteps)
    torch.testing.assert_close(bits, torch.full((4,), 2 / math.log(2)), rtol=1e-3, atol=0)


def test_variance_loss_trains_the_variance_and_not_the_mean() -> None:
    process, _ = make_process()
    x_start, noise = images(0), images(1)
    sample = process.add_noise(x_start, noise, TIMESTEPS)
    output = torch.cat([noise + 0.1, torch.zeros_like(noise)], dim=1).requires_grad_()
    process.variance_loss(output, x_start, sample, TIMESTEPS).sum().backward()
    assert output.grad is not None
    assert not output.grad[:, :2].any()
    assert output.grad[:, 2:].any()


def test_min_snr_weights() -> None:
    timesteps = torch.tensor([0, 500, 999])
    process, _ = make_process("epsilon")
    snr = (process.alphas_cumprod / (1 - process.alphas_cumprod))[timesteps].float()
    capped = snr.clamp(max=5.0)
    torch.testing.assert_close(process.min_snr_weight(timesteps, 5.0), capped / snr)
    torch.testing.assert_close(make_process("sample")[0].min_snr_weight(timesteps, 5.0), capped)
    torch.testing.assert_close(make_process("v_prediction")[0].min_snr_weight(timesteps, 5.0), capped / (snr + 1))


def test_timesteps_cover_the_schedule_and_follow_the_generator() -> None:
    process, _ = make_process(num_train_timesteps=10)
    first = process.draw_timesteps(1000, torch.Generator().manual_seed(3))
    assert torch.equal(first, process.draw_timesteps(1000, torch.Generator().manual_seed(3)))
    assert sorted(set(first.tolist())) == list(range(10))


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(UserError, match="prediction_type must be one of epsilon, sample, v_prediction, got 'score'"):
        GaussianProcess(torch.full((10,), 0.1), "score")


def test_a_single_step_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 steps, got 1"):
        GaussianProcess(torch.full((1,), 0.1))


def test_mean_over_image_keeps_the_batch() -> None:
    assert mean_over_image(torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])).tolist() == [2, 6]
