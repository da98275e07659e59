"""One evaluation from noise to data, as generators that were distilled from a diffusion are trained for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from diffusers.configuration_utils import register_to_config

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.samplers.base import Progress, Sampler


class OneStepSampler(Sampler):
    """The data that one call implies for noise at a fixed noise level (SiD, arXiv 2404.04057, eq. 5).

    Args:
        sigma: Noise-to-signal ratio that the network is told: EDM's sigma.

    Raises:
        UserError: If it is not positive.
    """

    @register_to_config
    def __init__(self, sigma: float = 2.5) -> None:
        if not 0 < sigma < math.inf:
            raise UserError(f"sigma must be a positive number, got {sigma}")

    def check(self, formulation: Formulation, num_inference_steps: int) -> None:
        """Refuse more than one step, besides what every sampler refuses.

        Raises:
            UserError: If there are more.
        """
        super().check(formulation, num_inference_steps)
        if num_inference_steps != 1:
            raise UserError(
                f"a one-step generator makes an image in one call of its network, got num_inference_steps {num_inference_steps}; "
                "leave it out, or sample from its teacher"
            )

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Predict once; see ``Sampler.states``."""
        time = formulation.time_of_ratio(torch.tensor(self.config.sigma, dtype=torch.float64))
        _, sigma = formulation.alpha_sigma(time)
        noised = SampleState(state.sample.double() * sigma, state.memory)
        for _ in progress(range(1)):
            output = formulation.shift_score(predict(noised, time), noised.sample, time)
            yield SampleState(formulation.predict_start(output, noised.sample, time), state.memory)
