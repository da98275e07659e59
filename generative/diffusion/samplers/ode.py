"""Probability-flow ODE in fixed steps: Euler, the midpoint rule and Heun's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.samplers.base import Progress, Sampler

Method = Literal["euler", "midpoint", "heun"]


class ContinuousSampler(Sampler):
    """A sampler along a formulation's own continuous times."""

    def check_formulation(self, formulation: Formulation) -> None:
        """One that has them."""
        formulation.sampling_times(1)


class ODESampler(ContinuousSampler):
    """dx = v dt along the formulation's own time, from pure noise to data (arXiv 2011.13456, eq. 13).

    Args:
        method: ``euler`` (order 1, one evaluation a step), ``midpoint`` or ``heun`` (order 2, two evaluations a step).

    Raises:
        UserError: If the method is not known.
    """

    @register_to_config
    def __init__(self, method: Method = "euler") -> None:
        if method not in ("euler", "midpoint", "heun"):
            raise UserError(f"method must be euler, midpoint or heun, got {method!r}")

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Integrate; see ``Sampler.states``."""
        times = formulation.sampling_times(num_inference_steps)
        state = start_state(state, formulation, times[0])
        for index in progress(range(num_inference_steps)):
            now, end = times[index], times[index + 1]
            step = (end - now) / formulation.time_unit
            x = state.sample
            slope = velocity(predict, state, now, formulation)
            if self.config.method == "midpoint":
                state = SampleState(x + step / 2 * slope, state.memory)
                slope = velocity(predict, state, (now + end) / 2, formulation)
            elif self.config.method == "heun" and (index + 1 < num_inference_steps or formulation.ends_in_data):
                state = SampleState(x + step * slope, state.memory)
                slope = (slope + velocity(predict, state, end, formulation)) / 2
            state = SampleState(x + step * slope, state.memory)
            yield state


def start_state(state: SampleState, formulation: Formulation, time: Tensor) -> SampleState:
    """Standard normal noise as the sample that it is at a time, in float64: solvers add many small steps to large numbers."""
    _, sigma = formulation.alpha_sigma(time)
    return SampleState(state.sample.double() * sigma, state.memory)


def velocity(predict: Predict, state: SampleState, time: Tensor, formulation: Formulation) -> Tensor:
    """dx/dt at a state, float64 as the sample; classifier guidance enters the score."""
    output = predict(state, time)
    output = formulation.shift_score(output, state.sample, time)
    return formulation.velocity(output, state.sample, time)
