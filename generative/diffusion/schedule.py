"""Noise schedulers of diffusers: as samplers for ``sample_loop``, and as noising processes for training."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.fit import LEARNED_VARIANCE, kind_of, missing_variance, uses_learned_variance
from generative.diffusion.flow import FlowProcess, TimestepDensity
from generative.diffusion.gaussian import GaussianProcess


def respaced_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Timesteps of ADM's and DiT's shortened chain ("respacing 250"), ascending.

    ``timestep_spacing: linspace`` of diffusers is the same but for ties: the official code adds up the stride in floating point
    before it rounds.

    Args:
        num_train_timesteps: Steps T of the full chain.
        num_inference_steps: Steps of the shortened chain.

    Raises:
        UserError: If there are more steps than the full chain has.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise UserError(f"num_inference_steps must be in 1..{num_train_timesteps}, got {num_inference_steps}")
    stride = 1.0 if num_inference_steps == 1 else (num_train_timesteps - 1) / (num_inference_steps - 1)
    position, timesteps = 0.0, []
    for _ in range(num_inference_steps):
        timesteps.append(round(position))
        position += stride
    return timesteps


def training_process(scheduler: Any, timestep_density: TimestepDensity = "uniform") -> GaussianProcess | FlowProcess:
    """Noising process that a diffusers scheduler stands for.

    Args:
        scheduler: With a table of betas (DDPM, DDIM, ...) or of flow matching (``FlowMatchEulerDiscreteScheduler``, or a solver
            with ``prediction_type: flow_prediction``).
        timestep_density: How flow matching draws its training timesteps.

    Raises:
        UserError: If the scheduler is neither, its betas and prediction type contradict one another, or a density is asked of a
            process that has none.
    """
    name = type(scheduler).__name__
    kind = kind_of(scheduler)
    if kind == "edm":
        raise UserError(f"scheduler {name} cannot train: it has no betas and is not one of flow matching; use DDPMScheduler")
    if kind == "flow":
        return FlowProcess.from_scheduler(scheduler, timestep_density)
    if timestep_density != "uniform":
        raise UserError(f"timestep_density {timestep_density!r} is for flow matching; {name} draws uniform timesteps")
    return GaussianProcess.from_scheduler(scheduler)


def global_random_state(device: torch.device) -> list[Tensor]:
    """State of torch's own generators that a draw on this device could use."""
    states = [torch.get_rng_state()]
    return states + [torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


class DiffusersSampler:
    """A diffusers scheduler as a ``SamplingScheduler``.

    It works on a copy, so that one scheduler serves several runs at once. It evens out what schedulers differ in: input scaling
    (missing in flow matching), the ``generator`` of ``step`` (missing in deterministic solvers) and learned variance (used by
    those that can, dropped for the others).

    Args:
        scheduler: Any scheduler of diffusers with ``set_timesteps`` and ``step``.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        self.name = type(scheduler).__name__
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self._uses_variance = uses_learned_variance(scheduler)
        if not self._uses_variance and scheduler.config.get("variance_type") in LEARNED_VARIANCE:
            # DPM-Solver and its kin would cut the prediction to three channels; it comes to them without its variance.
            self.scheduler.register_to_config(variance_type=None)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from; ask after ``set_timesteps``."""
        return float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> Tensor:
        """Choose the timesteps of a run.

        Raises:
            UserError: If the scheduler cannot make so many.
        """
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise UserError(f"num_inference_steps must be at least 1, got {num_inference_steps!r}")
        try:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        except (ValueError, IndexError, AssertionError) as error:
            raise UserError(f"{self.name} cannot sample in {num_inference_steps} steps: {error}") from error
        return self.scheduler.timesteps

    def model_input(self, state: SampleState, timestep: Any) -> SampleState:
        """Scale the sample as the scheduler wants the network to see it."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return state
        return SampleState(self.scheduler.scale_model_input(state.sample, timestep), state.memory)

    def step(self, prediction: Tensor, timestep: Any, state: SampleState, noise: ImageNoise) -> SampleState:
        """Take one step of the solver.

        Args:
            prediction: (B, C, H, W), or (B, 2C, H, W) with variance values.
            timestep: One of the scheduler's timesteps.
            state: (B, C, H, W) sample.
            noise: Read by stochastic solvers.

        Raises:
            UserError: If the scheduler wants a learned variance that the network lacks, or draws its noise elsewhere.
        """
        channels = state.sample.shape[1]
        has_variance = prediction.shape[1] == 2 * channels
        if self._uses_variance and not has_variance:
            raise UserError(missing_variance(self.scheduler))
        if has_variance and not self._uses_variance:
            prediction = prediction[:, :channels]
        arguments = {"generator": list(noise.generators)} if self._takes_generator else {}
        before = global_random_state(state.sample.device)
        sample = self.scheduler.step(prediction, timestep, state.sample, **arguments, return_dict=False)[0]
        after = global_random_state(state.sample.device)
        if not all(torch.equal(*pair) for pair in zip(before, after, strict=True)):
            # Such images would depend on the batch they are made in and could not be made again.
            raise UserError(f"{self.name} draws noise that no seed controls; choose another scheduler or make it deterministic")
        return SampleState(sample, state.memory)
