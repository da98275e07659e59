"""Steps back through a Gaussian chain: DDPM's with a fixed or learned variance (arXiv 2006.11239, 2102.09672)."""

from __future__ import annotations

from typing import Literal

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
from generative.diffusion.respacing import ShortenedChain
from generative.diffusion.samplers.base import Progress, Sampler

Variance = Literal["learned", "small", "large"]


def check_chain(formulation: Formulation) -> GaussianDiffusion:
    """Refuse whatever is no Gaussian chain, with a ``UserError``; returns it."""
    if not isinstance(formulation, GaussianDiffusion):
        raise UserError(
            f"ancestral and ddim go back through a Gaussian chain, and the network was trained as {type(formulation).__name__}; "
            "take ode, sde or heun"
        )
    return formulation


def chain_of(formulation: Formulation, num_inference_steps: int, respacing: str | None) -> ShortenedChain:
    """The chain that a sampler goes back through.

    Raises:
        UserError: If the formulation is no Gaussian chain, or has no such steps.
    """
    formulation = check_chain(formulation)
    return ShortenedChain(formulation.process, num_inference_steps if respacing is None else respacing)


def check_steps(formulation: Formulation, num_inference_steps: int, respacing: str | None) -> None:
    """Refuse a number of steps that the chain cannot be shortened to, or that a respacing does not have, with a ``UserError``."""
    chain = chain_of(formulation, num_inference_steps, respacing)
    if len(chain) != num_inference_steps:
        raise UserError(f"respacing {respacing!r} has {len(chain)} steps, num_inference_steps is {num_inference_steps}")


def reverse_mean(
    process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, variance: Variance, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and log variance of p(x_{t-1} | x_t).

    Args:
        process: The (shortened) chain.
        output: Of the network; its gradient moves the mean by variance x gradient (arXiv 2105.05233, algorithm 1).
        sample: (B, ...) x_t.
        index: (B,) or (1,) int64 steps of the chain.
        variance: ``learned``, ``small`` (the posterior's) or ``large`` (beta).
        clip: Clip x_0 to [-1, 1], for images.
    """
    start = process.predict_start(output.prediction, sample, index)
    mean = process.posterior_mean(start.clamp(-1, 1) if clip else start, sample, index)
    if variance == "learned":
        assert output.variance is not None
        log_variance = process.learned_log_variance(output.variance, index)
    else:
        log_variance = process.at(
            process.posterior_log_variance if variance == "small" else process.large_log_variance, index, sample
        )
    if output.gradient is not None:
        mean = mean + log_variance.exp() * output.gradient
    return mean, log_variance


def add_step_noise(mean: Tensor, log_variance: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw x_{t-1} from standard normal noise, all (B, ...): what ``reverse_mean`` gives, its noise times a temperature."""
    return mean + temperature * (0.5 * log_variance).exp() * noise


class AncestralSampler(Sampler):
    """DDPM's reverse steps, over a shortened chain where fewer steps are asked for.

    Args:
        variance: ``learned`` by the network, ``small`` (the posterior's) or ``large`` (beta).
        clip_sample: Clip the predicted data to [-1, 1] at every step: for images, not for latents.
        respacing: Instead of evenly spread steps ``ddimN`` or numbers of steps by section, as many as ``num_inference_steps``.
        temperature: Factor on the noise of the steps.

    Raises:
        UserError: If a value is not known or out of range.
    """

    @register_to_config
    def __init__(
        self, variance: Variance = "small", clip_sample: bool = False, respacing: str | None = None, temperature: float = 1.0
    ) -> None:
        if variance not in ("learned", "small", "large"):
            raise UserError(f"variance must be learned, small or large, got {variance!r}")
        if not temperature >= 0:
            raise UserError(f"temperature must be 0 or more, got {temperature}")

    def check_formulation(self, formulation: Formulation) -> None:
        """A Gaussian chain, with a learned variance if that is what is asked for."""
        check_chain(formulation)
        if self.config.variance == "learned" and not formulation.config.learned_variance:
            raise UserError("variance 'learned' needs a network that was trained with learned_variance; use small or large")

    def check(self, formulation: Formulation, num_inference_steps: int) -> None:
        """See ``Sampler.check``."""
        super().check(formulation, num_inference_steps)
        check_steps(formulation, num_inference_steps, self.config.respacing)

    def sample(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> SampleState:
        """Go back step by step, the last one without noise; see ``Sampler.sample``."""
        self.check(formulation, num_inference_steps)
        chain = chain_of(formulation, num_inference_steps, self.config.respacing)
        for index in progress(range(len(chain) - 1, -1, -1)):
            output = predict(state, torch.tensor([chain.timesteps[index]]))
            here = torch.tensor([index])
            mean, log_variance = reverse_mean(
                chain.process, output, state.sample, here, self.config.variance, self.config.clip_sample
            )
            if index:
                mean = add_step_noise(mean, log_variance, noise.randn(*mean.shape[1:]), self.config.temperature)
            state = SampleState(mean, state.memory)
        return state
