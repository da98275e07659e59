"""Steps from one gamma to the next of a variance-preserving diffusion in continuous time, DDPM's or DDIM's, as RIN samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.continuous import ContinuousDiffusion, Schedule
from generative.diffusion.samplers.base import Progress, Sampler, check_factors

GammaMethod = Literal["ddpm", "ddim"]
StepVariance = Literal["large", "small"]


def step_to(
    start: Tensor, sample: Tensor, now: Tensor, then: Tensor, method: GammaMethod, variance: StepVariance = "large"
) -> tuple[Tensor, Tensor]:
    """Mean of the sample at the next gamma, and the standard deviation of its noise.

    In this order of operations, and in float32, as officially: next to pure noise the sample less its noise keeps few digits, and
    another order differs by 3e-3 of an image after four steps.

    Args:
        start: (B, ...) predicted x_0, times the formulation's ``data_scale``.
        sample: (B, ...) x_t, likewise.
        now: (), gamma of the sample.
        then: (), the next one.
        method: ``ddpm`` draws from q(x_s | x_t, x_0) (arXiv 2006.11239, eq. 11, of a chain with these two); ``ddim`` goes where
            the noise stays the same (2010.02502, eq. 12, eta 0).
        variance: Of ``ddpm``: ``large`` 1 - alpha, ``small`` the posterior's, alpha being the quotient of both gammas.
    """
    noise = 1 / (1 - now).sqrt() * (sample - now.sqrt() * start)
    if method == "ddim":
        return start * then.sqrt() + noise * (1 - then).sqrt(), torch.zeros_like(now)
    alpha = (now.log() - then.log()).exp().clamp(0, 1)
    mean = alpha.rsqrt() * (sample - (1 - now).rsqrt() * (1 - alpha) * noise)
    spread = 1 - alpha
    if variance == "small":
        spread = ((-then).log1p() - (-now).log1p()).exp() * spread
    return mean, spread.sqrt()


class GammaSampler(Sampler):
    """DDPM's or DDIM's steps over any gamma schedule, which need not be the one that was trained on.

    Args:
        method: ``ddpm`` or ``ddim``.
        step_variance: Of DDPM's steps, ``large`` or ``small``, see ``step_to``.
        schedule: Of the steps; None takes the one of the formulation. RIN is trained on ``simple_linear`` and sampled on
            ``offset_cosine``.
        start: Of the schedule, as ``ContinuousDiffusion``'s, also for the next two.
        end: See ``start``.
        tau: See ``start``.
        clip_sample: Clip the predicted data at every step: for images, not for latents.
        clip_range: To so much on either side of 0.
        time_shift: How many steps further each one aims (asymmetric time intervals, arXiv 2208.04202, section 3.3).

    Raises:
        UserError: If a value is not known or out of range.
    """

    @register_to_config
    def __init__(
        self,
        method: GammaMethod = "ddpm",
        step_variance: StepVariance = "large",
        schedule: Schedule | None = None,
        start: float = 0.0,
        end: float = 1.0,
        tau: float = 1.0,
        clip_sample: bool = False,
        clip_range: float = 1.0,
        time_shift: float = 0.0,
    ) -> None:
        for name, value, known in (("method", method, GammaMethod), ("step_variance", step_variance, StepVariance)):
            if value not in get_args(known):
                raise UserError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        check_factors(time_shift=time_shift, clip_range=clip_range)
        self.own = None if schedule is None else ContinuousDiffusion(schedule, start=start, end=end, tau=tau)

    def check_formulation(self, formulation: Formulation) -> None:
        """One with a gamma schedule."""
        if not isinstance(formulation, ContinuousDiffusion):
            raise UserError(
                f"GammaSampler goes along a schedule of gamma, and the network was trained as {type(formulation).__name__}; take "
                "ancestral or ddim for a chain, ode, sde or heun for others"
            )

    def gammas(self, formulation: Formulation, num_inference_steps: int) -> Tensor:
        """Gamma that each step starts from and the one it aims at, (num_inference_steps, 2) float32."""
        own = formulation if self.own is None else self.own
        assert isinstance(own, ContinuousDiffusion)
        steps = torch.arange(num_inference_steps, dtype=torch.float32)
        ends = torch.stack([steps, steps + 1 + self.config.time_shift], dim=1)
        return own.gamma((1 - ends / num_inference_steps).clamp(min=0))

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Step; the last one gives the predicted data. See ``Sampler.states``."""
        self.check_formulation(formulation)
        scale = formulation.config.data_scale
        gammas = self.gammas(formulation, num_inference_steps)
        times = formulation.time_of_ratio((1 / gammas[:, 0].double() - 1).sqrt() / scale)
        state = SampleState(state.sample / scale, state.memory)
        for index in progress(range(num_inference_steps)):
            output = formulation.shift_score(predict(state, times[index]), state.sample, times[index])
            start = formulation.predict_start(output, state.sample, times[index]).float()
            if self.config.clip_sample:
                start = start.clamp(-self.config.clip_range, self.config.clip_range)
            sample = start
            if index + 1 < num_inference_steps:
                now, then = gammas[index]
                options = (now, then, self.config.method, self.config.step_variance)
                sample, spread = step_to(scale * start, scale * state.sample, *options)
                if self.config.method == "ddpm":
                    sample = sample + spread * noise.randn(*sample.shape[1:])
                sample = sample / scale
            state = SampleState(sample, state.memory)
            yield state
