"""Noise schedulers of diffusers as samplers of any formulation that they fit."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput, Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.samplers.base import Progress
from generative.diffusion.samplers.fit import (
    EDM_SCHEDULERS,
    LEARNED_VARIANCE,
    class_name,
    missing_variance,
    uses_learned_variance,
)


def global_random_state(device: torch.device) -> list[Tensor]:
    """State of torch's own generators that a draw on this device could use."""
    states = [torch.get_rng_state()]
    return states + [torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


class DiffusersSampler:
    """A diffusers scheduler as a ``Sampler``.

    It works on a copy, so that one scheduler serves several runs at once. It evens out what schedulers differ in: input scaling
    (missing in flow matching), the ``generator`` of ``step`` (missing in deterministic solvers), learned variance (used by those
    that can, dropped for the others), and what they call a timestep.

    Args:
        scheduler: One that ``fit_scheduler`` has adapted to the formulation.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        self.name = type(scheduler).__name__
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self._uses_variance = uses_learned_variance(scheduler)
        self._is_edm = class_name(scheduler) in EDM_SCHEDULERS
        if not self._uses_variance and scheduler.config.get("variance_type") in LEARNED_VARIANCE:
            # DPM-Solver and its kin would cut the prediction to three channels; it comes to them without its variance.
            self.scheduler.register_to_config(variance_type=None)

    def check(self, formulation: Formulation, num_inference_steps: int) -> None:
        """Refuse a number of steps that the scheduler cannot make; that it fits the formulation is ``fit_scheduler``'s to say."""
        DiffusersSampler(self.scheduler).set_timesteps(num_inference_steps, torch.device("cpu"))

    def sample(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> SampleState:
        """Run the scheduler; see ``Sampler.sample``."""
        timesteps = self.set_timesteps(num_inference_steps, state.sample.device)
        state = SampleState(state.sample * float(getattr(self.scheduler, "init_noise_sigma", 1.0)), state.memory)
        for timestep in progress(timesteps):
            state = self.step(self.output(predict, state, timestep, formulation), timestep, state, noise)
        return state

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> Tensor:
        """Choose the timesteps of a run.

        Raises:
            UserError: If the scheduler cannot make so many.
        """
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        try:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        except (ValueError, IndexError, AssertionError) as error:
            raise UserError(f"{self.name} cannot sample in {num_inference_steps} steps: {error}") from error
        # On the CPU, where guidance and the scheduler look at them without waiting for a GPU.
        timesteps: Tensor = self.scheduler.timesteps.cpu()
        return timesteps

    def output(self, predict: Predict, state: SampleState, timestep: Tensor, formulation: Formulation) -> DenoiserOutput:
        """What the denoiser says at one of the scheduler's timesteps, as the scheduler wants it said."""
        sample = state.sample
        if hasattr(self.scheduler, "scale_model_input"):
            sample = self.scheduler.scale_model_input(sample, timestep)
        if self._is_edm:  # the formulation scales the input; asking the scheduler only made it count its steps
            sigma = self.scheduler.sigmas[self.scheduler.step_index].to(state.sample.dtype)
            return formulation.shift_score(predict(state, sigma), state.sample, sigma)
        scaled = SampleState(sample, state.memory)
        if not isinstance(formulation, Interpolant):
            return formulation.shift_score(predict(scaled, timestep), sample, timestep)
        time = timestep
        if (formulation.config.data_time, formulation.config.time_scale) != (0, self.scheduler.config.num_train_timesteps):
            time = formulation.time_of_level(timestep / self.scheduler.config.num_train_timesteps)
        output = formulation.shift_score(predict(scaled, time), sample, time)
        velocity = formulation.velocity(output, sample, time)
        return DenoiserOutput(-velocity if formulation.config.data_time else velocity)

    def step(self, output: DenoiserOutput, timestep: Any, state: SampleState, noise: ImageNoise) -> SampleState:
        """Take one step of the solver.

        Args:
            output: Of the denoiser.
            timestep: One of the scheduler's timesteps.
            state: (B, C, H, W) sample.
            noise: Read by stochastic solvers.

        Raises:
            UserError: If the scheduler wants a learned variance that the network lacks, or draws its noise elsewhere.
        """
        prediction = output.prediction
        if self._uses_variance:
            if output.variance is None:
                raise UserError(missing_variance(self.scheduler))
            prediction = torch.cat([prediction, output.variance], dim=1)  # (B, 2C, H, W)
        arguments = {"generator": list(noise.generators)} if self._takes_generator else {}
        before = global_random_state(state.sample.device)
        sample = self.scheduler.step(prediction, timestep, state.sample, **arguments, return_dict=False)[0]
        after = global_random_state(state.sample.device)
        if not all(torch.equal(*pair) for pair in zip(before, after, strict=True)):
            # Such images would depend on the batch they are made in and could not be made again.
            raise UserError(f"{self.name} draws noise that no seed controls; choose another scheduler or make it deterministic")
        return SampleState(sample, state.memory)
