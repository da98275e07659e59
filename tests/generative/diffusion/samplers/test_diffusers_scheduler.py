"""Schedulers of diffusers in the sampling loop."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput, Predict
from generative.diffusion.respacing import respaced_timesteps
from generative.diffusion.samplers.diffusers_scheduler import DiffusersSampler
from generative.diffusion.samplers.fit import formulation_of

SHAPE = (2, 4, 4)
GAUSSIAN = [
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": False}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
]
FLOW = [
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
]


def make(entry: tuple[str, dict[str, Any]]) -> Any:
    """A scheduler from its class name and options."""
    return getattr(diffusers, entry[0])(**entry[1])


def noise_of(seeds: list[int]) -> ImageNoise:
    """One stream per seed."""
    return ImageNoise([torch.Generator().manual_seed(seed) for seed in seeds])


def sample(scheduler: Any, predict: Predict, seeds: list[int], num_inference_steps: int = 20) -> Tensor:
    """Run a scheduler from noise."""
    noise = noise_of(seeds)
    state = SampleState(noise.randn(*SHAPE))
    formulation = formulation_of(scheduler)
    return DiffusersSampler(scheduler).sample(predict, state, num_inference_steps, noise, formulation).sample


def exact_prediction(scheduler: Any, data: Tensor) -> Predict:
    """The prediction of a network that knows the data."""
    formulation = formulation_of(scheduler)
    return lambda state, time: formulation.output_of(data, state.sample, time)


@pytest.mark.parametrize("entry", GAUSSIAN + FLOW, ids=str)
def test_exact_denoiser_brings_noise_back_to_the_data(entry: tuple[str, dict[str, Any]]) -> None:
    scheduler = make(entry)
    data = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(9)) * 2 - 1
    result = sample(scheduler, exact_prediction(scheduler, data), [1, 2, 3])
    assert (result - data).abs().max() < 0.06


@pytest.mark.parametrize("entry", GAUSSIAN + FLOW, ids=str)
def test_a_batch_is_its_images_one_by_one(entry: tuple[str, dict[str, Any]]) -> None:
    scheduler = make(entry)
    state = torch.get_rng_state()

    def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
        return DenoiserOutput(0.3 * state.sample.tanh())

    together = sample(scheduler, predict, [5, 6, 7], 6)
    alone = torch.cat([sample(scheduler, predict, [seed], 6) for seed in (5, 6, 7)])
    assert torch.equal(together, alone)
    assert torch.equal(sample(scheduler, predict, [7, 5], 6), together[[2, 0]])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_scheduler_itself_is_left_alone() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps.clone()
    sample(scheduler, lambda state, time: DenoiserOutput(state.sample), [1], 3)
    assert torch.equal(scheduler.timesteps, timesteps)


def test_noise_that_no_seed_controls_is_refused() -> None:
    class Careless(DDIMScheduler):
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
            return (sample + torch.randn_like(sample),)

    with pytest.raises(UserError, match="Careless draws noise that no seed controls"):
        sample(Careless(), lambda state, time: DenoiserOutput(state.sample), [1], 2)


def test_learned_variance_is_used_by_ddpm_and_dropped_by_the_others() -> None:
    def predict_with(values: float | None) -> Predict:
        def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
            variance = None if values is None else torch.full_like(state.sample, values)
            return DenoiserOutput(0.1 * state.sample, variance)

        return predict

    learned = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    assert not torch.allclose(sample(learned, predict_with(-1), [1], 5), sample(learned, predict_with(1), [1], 5))
    fixed = DDPMScheduler(clip_sample=False)
    solver = DPMSolverMultistepScheduler.from_config(learned.config)
    ddim = DDIMScheduler.from_config(learned.config)
    for scheduler in (fixed, solver, ddim):
        plain = sample(scheduler, predict_with(None), [1], 5)
        assert torch.equal(sample(scheduler, predict_with(1), [1], 5), plain)
    # At -1 the learned variance is the posterior's, which is what fixed_small says.
    torch.testing.assert_close(sample(learned, predict_with(-1), [1], 5), sample(fixed, predict_with(None), [1], 5))
    with pytest.raises(UserError, match="variance_type 'learned_range' but the network predicts no variance"):
        sample(learned, predict_with(None), [1], 5)


def test_learned_variance_over_four_channels_reaches_a_solver_whole() -> None:
    solver = DPMSolverMultistepScheduler(variance_type="learned_range")
    noise = noise_of([1])
    state = SampleState(noise.randn(4, 2, 2))

    def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
        return DenoiserOutput(state.sample, state.sample)

    result = DiffusersSampler(solver).sample(predict, state, 3, noise, formulation_of(solver))
    assert result.sample.shape == (1, 4, 2, 2)


@pytest.mark.parametrize("count", [0, 1001])
def test_impossible_number_of_steps_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"{count}"):
        sample(DDPMScheduler(), lambda state, time: DenoiserOutput(state.sample), [1], count)


def test_respacing_250_is_linspace_and_its_official_ends() -> None:
    ours = respaced_timesteps(1000, 250)
    assert ours == np.linspace(0, 999, 250).round().astype(int).tolist()
    assert ours[:4] == [0, 4, 8, 12] and ours[-1] == 999
    scheduler = DDPMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(250)
    assert scheduler.timesteps.tolist() == ours[::-1]
    assert respaced_timesteps(1000, 1) == [0]
    assert respaced_timesteps(1000, 1000) == list(range(1000))
    with pytest.raises(UserError, match="num_inference_steps must be in 1..1000, got 1001"):
        respaced_timesteps(1000, 1001)
