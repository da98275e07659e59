"""What samplers of a Gaussian chain share: they go back through its steps, or through fewer of them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator

import torch
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


def check_gaussian_chain(sampler: Sampler, formulation: Formulation) -> None:
    """Refuse a formulation that is no Gaussian chain.

    Raises:
        UserError: Naming the sampler, and those that serve.
    """
    if not isinstance(formulation, GaussianDiffusion):
        raise UserError(
            f"{type(sampler).__name__} goes back through a Gaussian chain, and the network was trained as "
            f"{type(formulation).__name__}; take the sampler ode, sde or heun (in Python ODESampler, SDESampler or "
            "HeunSampler)"
        )


class ChainSampler(Sampler):
    """Base of ``AncestralSampler`` and ``DDIMSampler``; its subclasses have an option ``respacing``."""

    @abc.abstractmethod
    def step(
        self, process: GaussianProcess, output: DenoiserOutput, sample: Tensor, index: Tensor, draw: Callable[[], Tensor] | None
    ) -> Tensor:
        """One step back.

        Args:
            process: The shortened chain.
            output: Of the network.
            sample: (B, ...) x_t.
            index: (1,) int64 step of the chain.
            draw: Gives standard normal noise (B, ...); None at the last step, which adds none.

        Returns:
            (B, ...) x_{t-1}.
        """

    def chain(self, formulation: Formulation, num_inference_steps: int) -> ShortenedChain:
        """The chain that is gone back through.

        Raises:
            UserError: If the formulation is no Gaussian chain, or has no such steps.
        """
        check_gaussian_chain(self, formulation)
        assert isinstance(formulation, GaussianDiffusion)
        respacing = self.config.respacing
        chain = ShortenedChain(formulation.process, num_inference_steps if respacing is None else respacing)
        if len(chain) != num_inference_steps:
            raise UserError(f"respacing {respacing!r} has {len(chain)} steps, num_inference_steps is {num_inference_steps}")
        return chain

    def check_formulation(self, formulation: Formulation) -> None:
        """A Gaussian chain."""
        check_gaussian_chain(self, formulation)

    def check(self, formulation: Formulation, num_inference_steps: int) -> None:
        """See ``Sampler.check``."""
        super().check(formulation, num_inference_steps)
        self.chain(formulation, num_inference_steps)

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Go back step by step, the last one without noise; see ``Sampler.states``."""
        chain = self.chain(formulation, num_inference_steps)
        shape = state.sample.shape[1:]
        for index in progress(range(len(chain) - 1, -1, -1)):
            output = predict(state, torch.tensor([chain.timesteps[index]]))
            draw = (lambda: noise.randn(*shape)) if index else None
            sample = self.step(chain.process, output, state.sample, torch.tensor([index]), draw)
            state = SampleState(sample, state.memory)
            yield state
