"""DDIM as the code of latent diffusion has it (arXiv 2112.10752), by which RCG samples representations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput, Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.gaussian_process import GaussianProcess
from generative.diffusion.samplers.base import Progress, Sampler, check_factors
from generative.diffusion.samplers.chain import check_gaussian_chain
from generative.diffusion.samplers.ddim import start_and_noise


def ldm_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Steps of the chain that are sampled, ascending: every (T // N)-th from 1 on, which are more than N where N divides T not.

    Args:
        num_train_timesteps: T.
        num_inference_steps: N.

    Raises:
        UserError: If a stride of T // N does not fit in the chain.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise UserError(f"num_inference_steps must be in 1..{num_train_timesteps}, got {num_inference_steps}")
    stride = num_train_timesteps // num_inference_steps
    steps = [step + 1 for step in range(0, num_train_timesteps, stride)]
    if steps[-1] >= num_train_timesteps:
        raise UserError(
            f"ldm-ddim takes every {stride}th of {num_train_timesteps} steps from 1 on for num_inference_steps "
            f"{num_inference_steps}, and the last would be {steps[-1]}, beyond the chain; take another, such as 250 of 1000"
        )
    return steps


def ldm_ddim_step(
    process: GaussianProcess, output: DenoiserOutput, sample: Tensor, timestep: Tensor, before: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the sample at the step before (arXiv 2010.02502, eq. 12).

    Args:
        process: The whole chain.
        output: Of the network.
        sample: (B, ...) x_t.
        timestep: (B,) or (1,) int64 steps t.
        before: (B,) or (1,) int64 the steps that are gone to; step 0 is the last.
        eta: 0 is deterministic, 1 has DDPM's variance.
    """
    kept, kept_before = (process.at(process.alphas_cumprod, step, sample) for step in (timestep, before))
    start, noise = start_and_noise(process, output, sample, timestep)
    std = eta * ((1 - kept_before) / (1 - kept) * (1 - kept / kept_before)).sqrt()
    return kept_before.sqrt() * start + (1 - kept_before - std.square()).clamp(min=0).sqrt() * noise, std


class LDMDDIMSampler(Sampler):
    """DDIM over even strides from step 1, which ends at step 0 rather than at clean data, with that step's noise too.

    Args:
        eta: 0 is deterministic, 1 has DDPM's variance (RCG).

    Raises:
        UserError: If eta is negative or not finite.
    """

    @register_to_config
    def __init__(self, eta: float = 0.0) -> None:
        check_factors(eta=eta)

    def check_formulation(self, formulation: Formulation) -> None:
        """A Gaussian chain."""
        check_gaussian_chain(self, formulation)

    def check(self, formulation: Formulation, num_inference_steps: int) -> None:
        """See ``Sampler.check`` and ``ldm_timesteps``."""
        super().check(formulation, num_inference_steps)
        assert isinstance(formulation, GaussianDiffusion)
        ldm_timesteps(formulation.process.num_train_timesteps, num_inference_steps)

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Go back step by step; see ``Sampler.states``."""
        assert isinstance(formulation, GaussianDiffusion)
        process = formulation.process
        steps = [0, *ldm_timesteps(process.num_train_timesteps, num_inference_steps)]
        for place in progress(range(len(steps) - 1, 0, -1)):
            timestep, before = torch.tensor([steps[place]]), torch.tensor([steps[place - 1]])
            output = predict(state, timestep)
            sample, std = ldm_ddim_step(process, output, state.sample, timestep, before, self.config.eta)
            if self.config.eta:
                sample = sample + std * noise.randn(*sample.shape[1:])
            state = SampleState(sample, state.memory)
            yield state
