"""EDM's stochastic sampler (arXiv 2206.00364, algorithm 2): Heun steps in the noise-to-signal ratio, with churn."""

from __future__ import annotations

import math
from collections.abc import Iterator

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.samplers.base import Progress, Sampler, check_factors


class HeunSampler(Sampler):
    """Order 2, 2 n - 1 evaluations in n steps; on y = x / alpha with sigma the noise-to-signal ratio, so for any formulation.

    Args:
        churn: S_churn, how much fresh noise is added over the whole run; 0 is deterministic.
        churn_min: S_min, least noise level at which it is added.
        churn_max: S_max, largest; None for no limit.
        noise_scale: S_noise, standard deviation of the added noise.
        sigma_min: Least noise level of the grid (eq. 5).
        sigma_max: Noise level to start from.
        rho: Exponent of the grid.
        order: 2 for Heun's corrected steps, 1 for Euler's.

    Raises:
        UserError: If a number is out of range.
    """

    @register_to_config
    def __init__(
        self,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float | None = None,
        noise_scale: float = 1.0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        order: int = 2,
    ) -> None:
        check_factors(churn=churn, churn_min=churn_min, churn_max=churn_max, noise_scale=noise_scale)
        if order not in (1, 2):
            raise UserError(f"order must be 1 or 2, got {order}")
        self.grid = EDM(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Integrate; the states are of y, which is x at the data's end. See ``Sampler.states``."""
        sigmas = self.grid.sampling_times(num_inference_steps)
        most = min(self.config.churn / num_inference_steps, math.sqrt(2) - 1)
        highest = math.inf if self.config.churn_max is None else self.config.churn_max

        def slope_at(y: Tensor, sigma: Tensor) -> Tensor:
            time = formulation.time_of_ratio(sigma)
            alpha, _ = formulation.alpha_sigma(time)
            current = SampleState(alpha * y, state.memory)
            output = formulation.shift_score(predict(current, time), current.sample, time)
            return (y - formulation.predict_start(output, current.sample, time)) / sigma

        y = state.sample.double() * sigmas[0]
        for index in progress(range(num_inference_steps)):
            sigma, end = sigmas[index], sigmas[index + 1]
            if most > 0 and self.config.churn_min <= float(sigma) <= highest:
                raised = sigma * (1 + most)
                fresh = noise.randn(*y.shape[1:]).double()
                y = y + (raised**2 - sigma**2).sqrt() * self.config.noise_scale * fresh
                sigma = raised
            slope = slope_at(y, sigma)
            y_end = y + (end - sigma) * slope
            if self.config.order == 2 and index + 1 < num_inference_steps:
                y_end = y + (end - sigma) * (slope + slope_at(y_end, end)) / 2
            y = y_end
            yield SampleState(y, state.memory)
