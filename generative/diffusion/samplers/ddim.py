"""DDIM (arXiv 2010.02502) over a shortened Gaussian chain, as ADM samples in 25 steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.gaussian_process import GaussianProcess
from generative.diffusion.samplers.chain import ChainSampler


def ddim_step(
    process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, eta: float, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_{t-1} given x_t (eq. 12).

    Args:
        process: The (shortened) chain.
        output: Of the network; its gradient g makes the noise smaller by sigma g (arXiv 2105.05233, algorithm 2), after clipping.
        sample: (B, ...) x_t.
        index: (B,) or (1,) int64 steps of the chain.
        eta: 0 is deterministic, 1 has DDPM's variance.
        clip: Clip x_0 to [-1, 1], for images.
    """
    kept = process.at(process.alphas_cumprod, index, sample)
    before = process.at(torch.cat([process.alphas_cumprod.new_ones(1), process.alphas_cumprod[:-1]]), index, sample)
    start = process.predict_start(output.prediction, sample, index)
    start = start.clamp(-1, 1) if clip else start
    noise = (sample - kept.sqrt() * start) / (1 - kept).sqrt()
    if output.gradient is not None:
        noise = noise - (1 - kept).sqrt() * output.gradient
        start = (sample - (1 - kept).sqrt() * noise) / kept.sqrt()
    std = eta * ((1 - before) / (1 - kept) * (1 - kept / before)).sqrt()
    return before.sqrt() * start + (1 - before - std.square()).clamp(min=0).sqrt() * noise, std


class DDIMSampler(ChainSampler):
    """Non-Markovian steps back, deterministic unless ``eta`` says otherwise.

    Args:
        eta: 0 is deterministic, 1 has DDPM's variance.
        clip_sample: Clip the predicted data to [-1, 1] at every step: for images, not for latents.
        respacing: As ``AncestralSampler``'s; ADM's DDIM takes ``ddim25``.

    Raises:
        UserError: If eta is negative.
    """

    @register_to_config
    def __init__(self, eta: float = 0.0, clip_sample: bool = False, respacing: str | None = None) -> None:
        if not eta >= 0:
            raise UserError(f"eta must be 0 or more, got {eta}")

    def step(
        self, process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, draw: Callable[[], Tensor] | None
    ) -> Tensor:
        """The mean of ``ddim_step``, with noise unless ``eta`` is 0."""
        mean, std = ddim_step(process, output, sample, index, self.config.eta, self.config.clip_sample)
        return mean if draw is None or not self.config.eta else mean + std * draw()
