"""The diffusion head and its samplers: schedules against diffusers, samples of a known Gaussian, guidance, noise per image."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from generative.autoregressive.continuous.diffusion_head import (
    DiffusionHead,
    HeadSampler,
    TokenNoise,
    cosine_betas,
    draw_tokens,
    guide,
    head_losses,
    head_process,
)
from generative.autoregressive.continuous.head_samplers import AncestralHeadSampler, DPMSolverHeadSampler
from generative.core.errors import UserError
from generative.core.sampling import SampleState, sample_loop
from generative.core.seeding import ImageNoise
from generative.diffusion.samplers.dpm_solver import solver_orders

MEAN, STD = 0.7, 0.4  # of the known Gaussian
SOLVERS: list[Callable[[], HeadSampler]] = [lambda: AncestralHeadSampler(100), lambda: DPMSolverHeadSampler(14)]


def make_head() -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(token_size=3, condition_size=5, width=8, depth=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return head.eval()


def noise(*seeds: int) -> ImageNoise:
    return ImageNoise([torch.Generator().manual_seed(seed) for seed in seeds])


def test_schedule_is_the_cosine_one_of_diffusers() -> None:
    betas = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").betas
    torch.testing.assert_close(cosine_betas().float(), betas)


def test_shortened_chain_has_the_betas_of_diffusers() -> None:
    sampler = AncestralHeadSampler([0, 300, 999])
    kept = head_process().alphas_cumprod[[0, 300, 999]]
    torch.testing.assert_close(sampler.chain.process.alphas_cumprod, kept)
    assert [sampler.model_time(step) for step in sampler.set_timesteps(3, torch.device("cpu"))] == [999, 300, 0]
    assert AncestralHeadSampler(4).chain.timesteps == [0, 333, 666, 999]


@pytest.mark.parametrize("make_sampler", SOLVERS)
def test_an_exact_denoiser_gives_the_known_gaussian(make_sampler: Callable[[], HeadSampler]) -> None:
    sampler, alphas_cumprod = make_sampler(), head_process().alphas_cumprod
    times = torch.arange(1000, dtype=torch.float64)

    def predict(state: SampleState, timestep: int) -> Tensor:
        # The solver's times are a little stretched against the chain's steps: the model is told what it is trained on.
        time = sampler.model_time(timestep)
        lower = min(int(time), 998)
        share = time - lower
        level = float((1 - share) * alphas_cumprod[lower].log() + share * alphas_cumprod[lower + 1].log())
        signal = math.exp(level / 2)
        variance = signal**2 * STD**2 + 1 - signal**2
        predicted = math.sqrt(1 - signal**2) * (state.sample - signal * MEAN) / variance
        return torch.cat([predicted, torch.zeros_like(predicted)], dim=1)

    assert len(times) == 1000
    draws = TokenNoise(noise(0), [20000], sampler.num_draws, 1)
    sample = sample_loop(predict, sampler, SampleState(draws.randn(1)), sampler.num_evaluations, draws).sample
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.03) and float(sample.std()) == pytest.approx(STD, abs=0.03)


def test_temperature_zero_takes_the_mean_of_every_step() -> None:
    head, condition = make_head(), torch.randn(1, 4, 5)
    cold = AncestralHeadSampler(5, temperature=0.0)
    tokens = [draw_tokens(head, condition, None, cold, TokenNoise(noise(seed), [4], 5, 3)) for seed in (0, 0, 1)]
    assert torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])
    state = SampleState(torch.randn(4, 3))
    output = head(state.sample, torch.tensor([500]), condition[0])
    index = torch.tensor([2])
    step = AncestralHeadSampler(5, temperature=0.5).reverse_step
    half, none = step(output, state.sample, index, torch.ones(4, 3)), step(output, state.sample, index, torch.zeros(4, 3))
    full = AncestralHeadSampler(5).reverse_step(output, state.sample, index, torch.ones(4, 3))
    torch.testing.assert_close(half - none, (full - none) / 2)
    torch.testing.assert_close(step(output, state.sample, torch.tensor([0]), torch.ones(4, 3)),
                               step(output, state.sample, torch.tensor([0]), torch.zeros(4, 3)))  # fmt: skip


def test_shared_conditions_and_shared_tokens_broadcast() -> None:
    head = make_head()
    x, condition, timesteps = torch.randn(2, 4, 3), torch.randn(4, 5), torch.randint(1000, (2, 4))
    output = head(x, timesteps, condition)
    for copy in range(2):
        torch.testing.assert_close(output[copy], head(x[copy], timesteps[copy], condition))
    branches = head(x[0], torch.tensor([3.5]), torch.stack([condition, condition + 1]))
    torch.testing.assert_close(branches[1], head(x[0], torch.full((4,), 3.5), condition + 1))


def test_many_rows_embed_each_timestep_once() -> None:
    head = make_head()
    timesteps = torch.randint(1000, (2, 600))
    torch.testing.assert_close(head.embed_timesteps(timesteps)[1, :3], head.embed_timesteps(timesteps[1, :3]))


def test_a_new_head_predicts_nothing_and_its_loss_is_known() -> None:
    head, process = DiffusionHead(3, 5, 8, 1), head_process()
    target, drawn, timesteps = torch.randn(6, 3), torch.randn(6, 3), torch.randint(1, 1000, (6,))
    noised = process.add_noise(target, drawn, timesteps)
    output = head(noised, timesteps, torch.randn(6, 5))
    assert not output.any()
    mse, bound = head_losses(process, output, target, drawn, noised, timesteps)
    torch.testing.assert_close(mse, drawn.square().mean(1))
    assert bound.shape == (6,) and (bound > 0).all()
    mse.sum().backward()
    assert head.output.bias.grad is not None and head.output.bias.grad[:3].any() and not head.output.bias.grad[3:].any()


def test_guidance_of_the_noise_and_not_of_the_variance() -> None:
    output = torch.randn(2, 4, 6)
    scale = torch.tensor([[1.0], [0.0], [3.0], [2.0]])
    guided = guide(output, scale, 3)
    torch.testing.assert_close(guided[0], output[0, 0])
    torch.testing.assert_close(guided[1, :3], output[1, 1, :3])
    torch.testing.assert_close(guided[2, :3], 3 * output[0, 2, :3] - 2 * output[1, 2, :3])
    assert torch.equal(guided[:, 3:], output[0, :, 3:])
    assert torch.equal(guide(output[:1], None, 3), output[0])


@pytest.mark.parametrize("make_sampler", SOLVERS)
def test_tokens_of_an_image_do_not_depend_on_its_batch(make_sampler: Callable[[], HeadSampler]) -> None:
    head, sampler = make_head(), make_sampler()
    condition, scale = torch.randn(2, 5, 5), torch.full((5, 1), 1.5)
    together = draw_tokens(head, condition, scale, sampler, TokenNoise(noise(3, 4, 5), [2, 0, 3], sampler.num_draws, 3))
    alone = draw_tokens(head, condition[:, 2:], scale[2:], sampler, TokenNoise(noise(5), [3], sampler.num_draws, 3))
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("evaluations", "orders"), [(1, [1]), (2, [2]), (3, [2, 1]), (7, [3, 3, 1]), (8, [3, 3, 2]), (9, [3, 3, 2, 1])]
)
def test_orders_use_up_the_evaluations(evaluations: int, orders: list[int]) -> None:
    assert solver_orders(evaluations) == orders
    sampler = DPMSolverHeadSampler(evaluations)
    assert len(sampler.stages) == evaluations == sum(orders)
    times = [sampler.model_time(step) for step in range(evaluations)]
    assert times == sorted(times, reverse=True) and times[0] == pytest.approx(999, abs=0.1) and times[-1] > 0


@pytest.mark.parametrize("steps", [0, 1, 1001, [5], [3, 3], [5, 2], [0, 1000]])
def test_wrong_chains_are_refused(steps: int | list[int]) -> None:
    with pytest.raises(UserError, match="num_diffusion_steps must be"):
        AncestralHeadSampler(steps)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="temperature must be 0 or more, got -1"):
        AncestralHeadSampler(5, temperature=-1)
    with pytest.raises(UserError, match="num_diffusion_steps of dpm-solver must be a number from 1 on, got 0"):
        DPMSolverHeadSampler(0)
