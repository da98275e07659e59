"""DDIM (arXiv 2010.02502) over a shortened Gaussian chain, as ADM samples in 25 steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import DenoiserOutput, Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.gaussian_process import GaussianProcess
from generative.diffusion.samplers.base import Progress, check_factors
from generative.diffusion.samplers.chain import ChainSampler


def start_and_noise(
    process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """x_0 and the noise that x_t is made of, each (B, ...).

    Args:
        process: The (shortened) chain.
        output: Of the network; its gradient g makes the noise smaller by sigma g (arXiv 2105.05233, algorithm 2), after clipping.
        sample: (B, ...) x_t.
        index: (B,) or (1,) int64 steps of the chain.
        clip: Clip x_0 to [-1, 1], for images.
    """
    kept = process.at(process.alphas_cumprod, index, sample)
    start = process.predict_start(output.prediction, sample, index)
    start = start.clamp(-1, 1) if clip else start
    noise = (sample - kept.sqrt() * start) / (1 - kept).sqrt()
    if output.gradient is not None:
        noise = noise - (1 - kept).sqrt() * output.gradient
        start = (sample - (1 - kept).sqrt() * noise) / kept.sqrt()
    return start, noise


def ddim_step(
    process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, eta: float, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_{t-1} given x_t (eq. 12).

    Args:
        process: See ``start_and_noise``, also for the others.
        output: Of the network.
        sample: (B, ...) x_t.
        index: (B,) or (1,) int64 steps of the chain.
        eta: 0 is deterministic, 1 has DDPM's variance.
        clip: Clip x_0 to [-1, 1], for images.
    """
    kept = process.at(process.alphas_cumprod, index, sample)
    before = process.at(torch.cat([process.alphas_cumprod.new_ones(1), process.alphas_cumprod[:-1]]), index, sample)
    start, noise = start_and_noise(process, output, sample, index, clip)
    std = eta * ((1 - before) / (1 - kept) * (1 - kept / before)).sqrt()
    return before.sqrt() * start + (1 - before - std.square()).clamp(min=0).sqrt() * noise, std


def ddim_reverse_step(
    process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, clip: bool = False
) -> Tensor:
    """x_{t+1} of x_t (B, ...), the deterministic step the other way round; after the last step nothing is left of x_0.

    Arguments as ``start_and_noise``'s.
    """
    after = process.at(torch.cat([process.alphas_cumprod[1:], process.alphas_cumprod.new_zeros(1)]), index, sample)
    start, _ = start_and_noise(process, output, sample, index, clip)
    # From tables in float64: of the first step's noise, which is no longer small afterwards, float32 would leave four digits.
    inverse = process.at(process.alphas_cumprod.rsqrt(), index, sample)
    noise = (inverse * sample - start) / process.at((1 / process.alphas_cumprod - 1).sqrt(), index, sample)
    return after.sqrt() * start + (1 - after).sqrt() * noise


class DDIMSampler(ChainSampler):
    """Non-Markovian steps back, deterministic unless ``eta`` says otherwise.

    Args:
        eta: 0 is deterministic, 1 has DDPM's variance.
        clip_sample: Clip the predicted data to [-1, 1] at every step: for images, not for latents.
        respacing: As ``AncestralSampler``'s; ADM's DDIM takes ``ddim25``.

    Raises:
        UserError: If eta is negative or not finite.
    """

    @register_to_config
    def __init__(self, eta: float = 0.0, clip_sample: bool = False, respacing: str | None = None) -> None:
        check_factors(eta=eta)

    def step(
        self, process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, draw: Callable[[], Tensor] | None
    ) -> Tensor:
        """The mean of ``ddim_step``, with noise unless ``eta`` is 0."""
        mean, std = ddim_step(process, output, sample, index, self.config.eta, self.config.clip_sample)
        return mean if draw is None or not self.config.eta else mean + std * draw()

    def invert(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> SampleState:
        """Bring data to the noise that ``sample`` makes them of again, up to the error of as many steps (section 5.4).

        Args:
            predict: The denoiser, conditions bound.
            state: (B, C, h, w) data.
            num_inference_steps: Steps.
            formulation: What the denoiser's output means.
            progress: Wraps the steps.

        Raises:
            UserError: If ``eta`` is not 0, or ``check`` refuses.
        """
        if self.config.eta:
            raise UserError(f"only the deterministic DDIM can be turned round; set eta to 0, got {self.config.eta}")
        self.check(formulation, num_inference_steps)
        chain = self.chain(formulation, num_inference_steps)
        for index in progress(range(len(chain))):
            output = predict(state, torch.tensor([chain.timesteps[index]]))
            sample = ddim_reverse_step(chain.process, output, state.sample, torch.tensor([index]), self.config.clip_sample)
            state = SampleState(sample, state.memory)
        return state
