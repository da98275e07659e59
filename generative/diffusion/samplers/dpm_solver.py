"""DPM-Solver (arXiv 2206.00927) and DPM-Solver++ (2211.01095), singlestep: exact in the linear part of the ODE.

All is in lambda = log(alpha / sigma), the half log-SNR, which grows from noise to data. A step from s to t of width h is, in
DPM-Solver++, a Taylor series in m, the data predicted, and in DPM-Solver in the noise predicted:

    x_t = sigma_t / sigma_s x_s + alpha_t (1 - e^-h) m_s + terms of how m has changed within the step,
    x_t = alpha_t / alpha_s x_s - sigma_t (e^h - 1) m_s + terms of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput, Predict
from generative.diffusion.formulations.base import NEAREST_RATIO, Formulation
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.samplers.base import Progress, Sampler
from generative.diffusion.samplers.ode import start_state

Grid = Literal["log_snr", "time_uniform"]
Algorithm = Literal["dpmsolver++", "dpmsolver"]
MIN_HALF_LOG_SNR = -5.1
"""Least lambda: near pure noise some schedules have no usable one (official implementation)."""


class NoiseSchedule(Protocol):
    """A noising process as a function of a continuous time; all maps are of (K,) tensors on the CPU."""

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of data and of noise."""

    def half_log_snr(self, times: Tensor) -> Tensor:
        """lambda = log(alpha / sigma)."""

    def times_of(self, half_log_snr: Tensor) -> Tensor:
        """Times of lambdas."""


def even_times(schedule: NoiseSchedule, start: Tensor, end: Tensor, num_steps: int, grid: Grid = "log_snr") -> Tensor:
    """Times (num_steps + 1,) from one to another, evenly spaced in lambda or in time; see ``DPMSolverSampler``."""
    first, last = (0.0, 1.0) if grid == "time_uniform" else schedule.half_log_snr(torch.stack([start, end])).tolist()
    even = torch.linspace(first, last, num_steps + 1, dtype=start.dtype, device=start.device)
    return start + (end - start) * even if grid == "time_uniform" else schedule.times_of(even)


def solver_orders(num_evaluations: int, order: int = 3) -> list[int]:
    """Orders of the steps that use up the evaluations: the highest as often as it fits, then lower ones.

    That is appendix C of arXiv 2206.00927, where a run of order 3 does not end in a step of order 3.
    """
    whole, rest = divmod(num_evaluations, order)
    if order == 3 and rest == 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + ([rest] if rest else [])


@dataclass(frozen=True)
class Stage:
    """One evaluation and what follows from it: ``base * x_s + first * m_s + difference * (m - m_s)``.

    x_s is the sample at the start of the solver's step, m_s the data (or the noise) predicted there, m those predicted now.

    Attributes:
        time: Of the evaluation, a number of the schedule's.
        alpha: Factor of the data there.
        sigma: Factor of the noise there.
        base: See above.
        first: See above.
        difference: See above; at a step's first evaluation m is m_s.
        starts: Whether a step begins here.
    """

    time: Tensor
    alpha: float
    sigma: float
    base: float
    first: float
    difference: float
    starts: bool

    def advance(self, data: Tensor, first_sample: Tensor, first_data: Tensor) -> Tensor:
        """Sample (B, ...) at the next evaluation, or at the end of the solver's step.

        Args:
            data: (B, ...) m, predicted at this evaluation.
            first_sample: (B, ...) x_s.
            first_data: (B, ...) m_s; m itself where the step starts.
        """
        sample = self.base * first_sample + self.first * first_data
        if self.difference:
            sample = sample + self.difference * (data - first_data)
        return sample


def step_stages(
    schedule: NoiseSchedule,
    start: Tensor,
    end: Tensor,
    order: int,
    grid: Grid = "log_snr",
    algorithm: Algorithm = "dpmsolver++",
) -> list[Stage]:
    """Evaluations of one step of the solver (arXiv 2211.01095, algorithm 1; 2206.00927, algorithms 1 and 2).

    Args:
        schedule: The noising process.
        start: Time at the start.
        end: Time at the end.
        order: 1, 2 or 3, the number of evaluations.
        grid: How they are spaced.
        algorithm: See ``DPMSolverSampler``.
    """
    edges = schedule.half_log_snr(even_times(schedule, start, end, order, grid))
    first, last = schedule.half_log_snr(torch.stack([start, end]))
    width = last - first
    gone = (edges - edges[0]) / (edges[-1] - edges[0]) * width  # lambda gone at each evaluation and at the end
    times = torch.cat([start[None], schedule.times_of(first + gone[1:-1]), end[None]])
    alphas, sigmas = schedule.alpha_sigma(times)
    # Data are what is left of x as lambda grows without end, noise as it falls: the formulas are mirror images.
    kept, added, direction = (sigmas, alphas, -1) if algorithm == "dpmsolver++" else (alphas, sigmas, 1)
    stages = []
    for index in range(order):
        reached = gone[index + 1] if index + 1 < order else width
        phi = torch.expm1(direction * reached)
        # What the slope of m since the start adds: order 3 integrates it, order 2 takes its middle.
        slope = 0.0
        if index > 0:
            share = phi / (direction * reached) - 1 if order == 3 else 0.5 * phi
            slope = float(-added[index + 1] * share * reached / gone[index])
        stages.append(
            Stage(
                time=times[index],
                alpha=float(alphas[index]),
                sigma=float(sigmas[index]),
                base=float(kept[index + 1] / kept[0]),
                first=float(-added[index + 1] * phi),
                difference=slope,
                starts=index == 0,
            )
        )
    return stages


def solver_times(schedule: NoiseSchedule, start: Tensor, end: Tensor, orders: list[int], grid: Grid = "log_snr") -> Tensor:
    """Times (number of steps + 1,) at which the solver's steps begin, and the last one's end.

    Even in lambda by steps, but in time by evaluations, as officially.
    """
    if grid == "log_snr":
        return even_times(schedule, start, end, len(orders))
    places = torch.tensor([0, *orders], device=start.device).cumsum(0)
    return even_times(schedule, start, end, sum(orders), grid)[places]


def solver_stages(
    schedule: NoiseSchedule,
    times: Tensor,
    orders: list[int],
    grid: Grid = "log_snr",
    algorithm: Algorithm = "dpmsolver++",
) -> list[Stage]:
    """Evaluations of a whole run; times from ``solver_times``."""
    stages: list[Stage] = []
    for order, start, end in zip(orders, times[:-1], times[1:], strict=True):
        stages += step_stages(schedule, start, end, order, grid, algorithm)
    return stages


class FormulationSchedule:
    """Any formulation as a ``NoiseSchedule``, in float64.

    Args:
        formulation: A continuous one or a Gaussian chain, whose times between its steps are those of its ``interpolation``.
    """

    def __init__(self, formulation: Formulation) -> None:
        self.formulation = formulation

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """See ``NoiseSchedule``."""
        alphas, sigmas = self.formulation.alpha_sigma(times)
        return alphas.double(), sigmas.double()

    def half_log_snr(self, times: Tensor) -> Tensor:
        """See ``NoiseSchedule``."""
        alphas, sigmas = self.alpha_sigma(times)
        return alphas.log() - sigmas.log()

    def times_of(self, half_log_snr: Tensor) -> Tensor:
        """See ``NoiseSchedule``."""
        return self.formulation.continuous_time_of_ratio((-half_log_snr).exp()).double()

    def ends(self) -> tuple[Tensor, Tensor]:
        """Times of the noise that a run starts from and of the data next to which it ends, each () float64."""
        if isinstance(self.formulation, GaussianDiffusion):
            ends = torch.tensor([self.formulation.process.num_train_timesteps - 1, 0], dtype=torch.float64)
        else:
            ends = self.formulation.sampling_times(1)
        known = self.half_log_snr(ends)
        usable = known.clamp(MIN_HALF_LOG_SNR, -math.log(NEAREST_RATIO))
        first, last = torch.where(usable == known, ends, self.times_of(usable))
        return first, last


class DPMSolverSampler(Sampler):
    """Orders 1 (DDIM) to 3, as many evaluations as ``num_inference_steps`` says; deterministic.

    Args:
        order: The highest; fewer where the evaluations do not come out even.
        grid: Evaluations evenly spaced in the log-SNR (``log_snr``) or, as those of U-ViT's latent models, in time
            (``time_uniform``).
        algorithm: ``dpmsolver++`` expands the data predicted, ``dpmsolver`` the noise, as U-ViT's pixel models are sampled.
        clip_sample: Clip the data predicted to [-1, 1], for pixels: a noise predicted says little of them where noise is most.

    Raises:
        UserError: If a value is not known.
    """

    @register_to_config
    def __init__(
        self, order: int = 3, grid: Grid = "log_snr", algorithm: Algorithm = "dpmsolver++", clip_sample: bool = False
    ) -> None:
        if order not in (1, 2, 3):
            raise UserError(f"order must be 1, 2 or 3, got {order}")
        if grid not in ("log_snr", "time_uniform"):
            raise UserError(f"grid must be log_snr or time_uniform, got {grid!r}")
        if algorithm not in ("dpmsolver++", "dpmsolver"):
            raise UserError(f"algorithm must be dpmsolver++ or dpmsolver, got {algorithm!r}")

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Solve; see ``Sampler.states``."""
        start, end = FormulationSchedule(formulation).ends()
        state = start_state(state, formulation, start[None])
        return self.solve(predict, state, start, end, num_inference_steps, formulation, progress)

    def solve(
        self,
        predict: Predict,
        state: SampleState,
        start: Tensor,
        end: Tensor,
        num_evaluations: int,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Solve from a sample at one time to another.

        Args:
            predict: The denoiser, conditions bound and guided.
            state: x_start (B, C, h, w).
            start: () float64 time of the formulation.
            end: () float64 time nearer to the data.
            num_evaluations: Calls of the denoiser.
            formulation: What the denoiser's output means.
            progress: Wraps the evaluations.

        Yields:
            The state after each evaluation.
        """
        grid, algorithm = self.config.grid, self.config.algorithm
        schedule, orders = FormulationSchedule(formulation), solver_orders(num_evaluations, self.config.order)
        times = solver_times(schedule, start, end, orders, grid)
        first_sample = first = state.sample
        for stage in progress(solver_stages(schedule, times, orders, grid, algorithm)):
            time = stage.time[None]
            output = formulation.shift_score(predict(state, time), state.sample, time)
            predicted = self.predicted(output, state.sample, stage, formulation)
            if stage.starts:
                first_sample, first = state.sample, predicted
            state = SampleState(stage.advance(predicted, first_sample, first), state.memory)
            yield state

    def predicted(self, output: DenoiserOutput, sample: Tensor, stage: Stage, formulation: Formulation) -> Tensor:
        """What the solver expands, (B, ...): the data or the noise that an output implies."""
        time, is_noise = stage.time[None], self.config.algorithm == "dpmsolver"
        if is_noise and not self.config.clip_sample:
            return formulation.predict_noise(output, sample, time)
        data = formulation.predict_start(output, sample, time)
        if self.config.clip_sample:
            data = data.clamp(-1, 1)
        return (sample - stage.alpha * data) / stage.sigma if is_noise else data
