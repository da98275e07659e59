"""Reverse SDE by Euler-Maruyama steps, and what is done with the last of them (SiT, arXiv 2401.08740, sections 2.3 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.samplers.base import Progress, Sampler, check_factors
from generative.diffusion.samplers.ode import start_state

DiffusionForm = Literal["sbdm", "sigma", "linear", "constant", "decreasing", "increasing-decreasing"]
# Share of data in the noise that the SDE starts from, below which alpha' / alpha of its SBDM form cannot be followed by steps.
SMALLEST_ALPHA = 1e-4

LastStep = Literal["mean", "tweedie", "euler", "none"]


class SDESampler(Sampler):
    """dx = (v - w s) dt + sqrt(2 w) dW backwards in time, s the score and w >= 0 any function: all have the ODE's marginals.

    Args:
        form: w at the noise level l: ``sigma`` sigma(l), ``linear`` l, ``constant`` 1, ``sbdm`` half of g^2 of the forward SDE,
            ``decreasing`` (1 + cos(pi (1 - l)))^2 / 4, ``increasing-decreasing`` sin^2(pi l).
        diffusion_scale: Factor on w; of ``decreasing``, as in SiT, on the cosine.
        last_step: From the noise level ``last_step_size`` to the data: ``mean`` one step of the drift without noise, ``tweedie``
            the expected data, ``euler`` one step of the ODE, ``none`` stops there.
        last_step_size: 0.04 in SiT.
        method: ``euler`` (Euler-Maruyama) or ``heun`` (the noise is added first, then a Heun step of the drift).

    Raises:
        UserError: If a value is not known or out of range.
    """

    @register_to_config
    def __init__(
        self,
        form: DiffusionForm = "sigma",
        diffusion_scale: float = 1.0,
        last_step: LastStep = "mean",
        last_step_size: float = 0.04,
        method: Literal["euler", "heun"] = "euler",
    ) -> None:
        for name, value, known in (
            ("form", form, ("sbdm", "sigma", "linear", "constant", "decreasing", "increasing-decreasing")),
            ("last_step", last_step, ("mean", "tweedie", "euler", "none")),
            ("method", method, ("euler", "heun")),
        ):
            if value not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        check_factors(diffusion_scale=diffusion_scale)
        if not 0 <= last_step_size < 1:
            raise UserError(f"last_step_size must be in [0, 1), got {last_step_size}")

    def check_formulation(self, formulation: Formulation) -> None:
        """A continuous one, in which the form has a limit at pure noise."""
        first = formulation.sampling_times(1)[0]
        if self.config.form == "sbdm" and float(formulation.alpha_sigma(first)[0]) < SMALLEST_ALPHA:
            raise UserError(
                "form 'sbdm' of the SDE has no limit at pure noise, where this formulation starts; take another form, or a "
                "max_level below 1 such as 0.999"
            )

    def check(self, formulation: Formulation, num_inference_steps: int) -> None:
        """See ``Sampler.check``; there is at least one step besides the last."""
        super().check(formulation, num_inference_steps)
        if num_inference_steps < 2:
            raise UserError(f"num_inference_steps of the SDE must be at least 2, with the last one, got {num_inference_steps}")

    @property
    def last_step(self) -> LastStep:
        """What is done last: nothing, where it would be a step of no length."""
        kind: LastStep = self.config.last_step
        return kind if kind == "tweedie" or self.config.last_step_size > 0 else "none"

    def diffusion(self, time: Tensor, formulation: Formulation) -> Tensor:
        """w at times, shaped as they are."""
        level, scale = formulation.noise_level(time), self.config.diffusion_scale
        form = self.config.form
        if form == "sbdm":
            return scale * formulation.diffusion(time)
        if form == "sigma":
            return scale * formulation.alpha_sigma(time)[1]
        if form == "linear":
            return scale * level
        if form == "constant":
            return scale * torch.ones_like(level)
        if form == "decreasing":
            return 0.25 * (scale * (math.pi * (1 - level)).cos() + 1).square()
        return scale * (math.pi * level).sin().square()

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Integrate: ``num_inference_steps`` - 1 stochastic steps, then the last one; see ``Sampler.states``."""
        grid, data = self.grid(formulation, num_inference_steps)
        state = start_state(state, formulation, grid[0])
        stride = (grid[1] - grid[0]) / formulation.time_unit
        for index in progress(range(num_inference_steps - 1)):
            state = self._step(predict, state, grid[index], stride, noise, formulation)
            yield state
        x = self._last(predict, state, grid[-1], (data - grid[-1]) / formulation.time_unit, formulation)
        yield SampleState(x, state.memory)

    def grid(self, formulation: Formulation, num_inference_steps: int) -> tuple[Tensor, Tensor]:
        """Times that the steps start at, (num_inference_steps,) float64, the last step's at the end; and the data's, ()."""
        first, nearest = formulation.sampling_times(1)
        noise, data = formulation.whole_way()
        size = self.config.last_step_size if self.config.last_step != "none" else 0.0
        end = data + (noise - data) * size if size > 0 else nearest
        return first + (end - first) * torch.linspace(0, 1, num_inference_steps, dtype=torch.float64), data

    def _drift(self, predict: Predict, state: SampleState, time: Tensor, sign: Tensor, formulation: Formulation) -> Tensor:
        """v dt's factor, with the score's share: positive towards the data whatever time's direction."""
        output = formulation.shift_score(predict(state, time), state.sample, time)
        flow = formulation.velocity(output, state.sample, time)
        return flow + sign * self.diffusion(time, formulation) * formulation.score(output, state.sample, time)

    def _step(
        self, predict: Predict, state: SampleState, time: Tensor, stride: Tensor, noise: ImageNoise, formulation: Formulation
    ) -> SampleState:
        sign = stride.sign()
        drawn = noise.randn(*state.sample.shape[1:]).double()
        spread = (2 * self.diffusion(time, formulation) * stride.abs()).sqrt() * drawn
        if self.config.method == "euler":
            x = state.sample + self._drift(predict, state, time, sign, formulation) * stride
            return SampleState(x + spread, state.memory)
        noised = SampleState(state.sample + spread, state.memory)
        first = self._drift(predict, noised, time, sign, formulation)
        ahead = SampleState(noised.sample + first * stride, state.memory)
        second = self._drift(predict, ahead, time + stride * formulation.time_unit, sign, formulation)
        return SampleState(noised.sample + (first + second) / 2 * stride, state.memory)

    def _last(self, predict: Predict, state: SampleState, time: Tensor, size: Tensor, formulation: Formulation) -> Tensor:
        kind = self.last_step
        if kind == "none":
            return state.sample
        if kind == "mean":
            return state.sample + self._drift(predict, state, time, size.sign(), formulation) * size
        output = formulation.shift_score(predict(state, time), state.sample, time)
        if kind == "tweedie":
            return formulation.predict_start(output, state.sample, time)
        return state.sample + formulation.velocity(output, state.sample, time) * size
