"""What every sampler of diffusion shares: from noise to data by calls of a (guided) denoiser."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diffusers import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Predict
from generative.diffusion.formulations.base import Formulation

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps the steps of a sampler, for a progress bar."""


def check_factors(**factors: float | None) -> None:
    """Refuse numbers of a sampler that are no finite ones from 0 on; None is passed over.

    Raises:
        UserError: Naming the first.
    """
    for name, value in factors.items():
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{name} must be a finite number of 0 or more, got {value}")


class Sampler(SchedulerMixin, ConfigMixin, abc.ABC):
    """A way from noise to data; saved with the pipeline as its ``scheduler``.

    Every image is made from its own stream of noise and its own numbers alone, so it is the same whatever the batch.
    """

    @abc.abstractmethod
    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Bring noise to the data, step by step; arguments as ``sample``'s.

        Yields:
            The state after each step, in the precision that the sampler adds steps up in; the last one is the data.
        """

    def sample(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> SampleState:
        """Bring noise to the data.

        Args:
            predict: The denoiser, conditions bound and guided.
            state: (B, C, h, w) standard normal noise; what a network carries from step to step is in its memory.
            num_inference_steps: Steps; how often the denoiser is called in one depends on the sampler.
            noise: One stream per image, read by stochastic samplers.
            formulation: What the denoiser's output means.
            progress: Wraps the steps.

        Returns:
            The state at the end, float32.

        Raises:
            UserError: As ``check``.
        """
        self.check(formulation, num_inference_steps)
        for reached in self.states(predict, state, num_inference_steps, noise, formulation, progress):
            state = reached
        return SampleState(state.sample.float(), state.memory)

    def check_formulation(self, formulation: Formulation) -> None:  # noqa: B027 - most samplers take all
        """Refuse a formulation that the sampler is not for, with a ``UserError``."""

    def check(self, formulation: Formulation, num_inference_steps: int) -> None:
        """Refuse, before any network runs, what cannot be sampled.

        Raises:
            UserError: If the sampler is not one for the formulation, or the number of steps is out of range.
        """
        self.check_formulation(formulation)
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
