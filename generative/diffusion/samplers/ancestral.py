"""Steps back through a Gaussian chain: DDPM's with a fixed or learned variance (arXiv 2006.11239, 2102.09672)."""

from __future__ import annotations

from collections.abc import Callable

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.gaussian_process import GaussianProcess, Variance
from generative.diffusion.samplers.base import check_factors
from generative.diffusion.samplers.chain import ChainSampler


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
    log_variance = process.log_variance(variance, output.variance, index, sample)
    if output.gradient is not None:
        # The posterior's variance is 0 at the last step, though its logarithm is that of the step before.
        moved = process.at(process.posterior_variance, index, sample) if variance == "small" else log_variance.exp()
        mean = mean + moved * output.gradient
    return mean, log_variance


def add_step_noise(mean: Tensor, log_variance: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw x_{t-1} from standard normal noise, all (B, ...): what ``reverse_mean`` gives, its noise times a temperature."""
    return mean + temperature * (0.5 * log_variance).exp() * noise


class AncestralSampler(ChainSampler):
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
        check_factors(temperature=temperature)

    def check_formulation(self, formulation: Formulation) -> None:
        """A Gaussian chain, with a learned variance if that is what is asked for."""
        super().check_formulation(formulation)
        if self.config.variance == "learned" and not formulation.config.learned_variance:
            raise UserError("variance 'learned' needs a network that was trained with learned_variance; use small or large")

    def step(
        self, process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, draw: Callable[[], Tensor] | None
    ) -> Tensor:
        """Draw from p(x_{t-1} | x_t); its mean at the last step."""
        mean, log_variance = reverse_mean(process, output, sample, index, self.config.variance, self.config.clip_sample)
        return mean if draw is None else add_step_noise(mean, log_variance, draw(), self.config.temperature)
