"""DPM-Solver++ (arXiv 2211.01095) in its singlestep form of order 3, as eMIGM's official sampler runs it on the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from generative.autoregressive.continuous.diffusion_head import NUM_TRAIN_TIMESTEPS, cosine_betas
from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise

# Half log-SNR below which the chain is cut: near pure noise a cosine schedule has no usable one (official implementation).
MIN_HALF_LOG_SNR = -5.1
CPU = torch.device("cpu")  # where the tables are, whatever the default device


def interpolate(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """Piecewise linear function through known points (K,), ascending in x; beyond them the outermost pieces go on."""
    right = torch.searchsorted(known_x, x).clamp(1, len(known_x) - 1)
    left = right - 1
    slope = (known_y[right] - known_y[left]) / (known_x[right] - known_x[left])
    return known_y[left] + (x - known_x[left]) * slope


class ContinuousSchedule:
    """The cosine chain as a function of a continuous time in (0, 1]: log alpha is linear between the chain's steps.

    The steps that are left after the cut share the time axis evenly, the last one at 1. All is float32, as officially: at the
    clean end 1 - alpha^2 keeps only three digits of it, which moves the times that the network is told by tenths of a step.
    """

    def __init__(self) -> None:
        log_alphas = 0.5 * (1 - cosine_betas()).log().cumsum(0)  # (T,) float64
        half_log_snr = log_alphas - 0.5 * (1 - (2 * log_alphas).exp()).log()
        self.log_alphas = log_alphas[half_log_snr >= MIN_HALF_LOG_SNR].float()
        self.num_steps = len(self.log_alphas)
        self.times = torch.linspace(0, 1, self.num_steps + 1, device=CPU)[1:]

    def log_alpha(self, times: Tensor) -> Tensor:
        """Log of the signal's factor."""
        return interpolate(times, self.times, self.log_alphas)

    def sigma(self, times: Tensor) -> Tensor:
        """Factor of the noise."""
        return (1 - (2 * self.log_alpha(times)).exp()).sqrt()

    def half_log_snr(self, times: Tensor) -> Tensor:
        """lambda = log(alpha / sigma)."""
        log_alpha = self.log_alpha(times)
        return log_alpha - 0.5 * (1 - (2 * log_alpha).exp()).log()

    def times_of(self, half_log_snr: Tensor) -> Tensor:
        """Times of lambdas."""
        log_alpha = -0.5 * torch.logaddexp(torch.zeros(1, device=CPU), -2 * half_log_snr)
        return interpolate(log_alpha, self.log_alphas.flip(0), self.times.flip(0))

    def even_times(self, start: Tensor, end: Tensor, num_steps: int) -> Tensor:
        """Times (num_steps + 1,) evenly spaced in lambda from one time to another."""
        first, last = self.half_log_snr(torch.stack([start, end])).tolist()
        return self.times_of(torch.linspace(first, last, num_steps + 1, device=CPU))

    def model_time(self, time: Tensor) -> float:
        """What the network is told, in [0, 1000)."""
        return float((time - 1 / self.num_steps) * NUM_TRAIN_TIMESTEPS)


def solver_orders(num_evaluations: int) -> list[int]:
    """Orders of the steps that use up the evaluations: order 3 as often as it fits, then lower (arXiv 2206.00927, appendix C)."""
    thirds, rest = divmod(num_evaluations, 3)
    return [3] * (thirds - 1) + [2, 1] if rest == 0 else [3] * thirds + [rest]


@dataclass(frozen=True)
class Stage:
    """One evaluation and what follows from it: ``base * x_s + first * m_s + difference * (m - m_s)``.

    x_s is the sample at the start of the solver's step, m_s the clean sample predicted there, m the one predicted now.

    Attributes:
        time: Of the evaluation, as the network is told.
        alpha: Factor of the signal there.
        sigma: Factor of the noise there.
        base: See above.
        first: See above.
        difference: See above; at a step's first evaluation m is m_s.
        starts: Whether a step begins here.
    """

    time: float
    alpha: float
    sigma: float
    base: float
    first: float
    difference: float
    starts: bool


def step_stages(schedule: ContinuousSchedule, start: Tensor, end: Tensor, order: int) -> list[Stage]:
    """Evaluations of one step of the solver, evenly spaced in lambda (arXiv 2211.01095, algorithm 1; 2206.00927, algorithm 2).

    Args:
        schedule: The chain.
        start: Time at the start.
        end: Time at the end.
        order: 1, 2 or 3, the number of evaluations.
    """
    edges = schedule.half_log_snr(schedule.even_times(start, end, order))
    first, last = schedule.half_log_snr(torch.stack([start, end]))
    width = last - first
    gone = (edges - edges[0]) / (edges[-1] - edges[0]) * width  # lambda gone at each evaluation and at the end
    times = torch.cat([start[None], schedule.times_of(first + gone[1:-1]), end[None]])
    alphas, sigmas = schedule.log_alpha(times).exp(), schedule.sigma(times)
    stages = []
    for index in range(order):
        reached = gone[index + 1] if index + 1 < order else width
        phi = torch.expm1(-reached)
        # What the slope of m since the start adds: order 3 integrates it, order 2 takes its middle.
        slope = 0.0
        if index > 0:
            share = phi / reached + 1 if order == 3 else -0.5 * phi
            slope = float(alphas[index + 1] * share * reached / gone[index])
        stages.append(
            Stage(
                time=schedule.model_time(times[index]),
                alpha=float(alphas[index]),
                sigma=float(sigmas[index]),
                base=float(sigmas[index + 1] / sigmas[0]),
                first=float(-alphas[index + 1] * phi),
                difference=slope,
                starts=index == 0,
            )
        )
    return stages


class DPMSolverSampler:
    """DPM-Solver++ singlestep of order 3 with steps even in log-SNR; a ``HeadSampler``.

    Deterministic but for the noise it starts from, so it has no temperature.

    Args:
        num_evaluations: Network evaluations of a run; eMIGM has 8 or 14.

    Raises:
        UserError: If there are none.
    """

    num_draws = 1

    def __init__(self, num_evaluations: int) -> None:
        if isinstance(num_evaluations, bool) or not isinstance(num_evaluations, int) or num_evaluations < 1:
            raise UserError(f"num_diffusion_steps of dpm-solver must be a number from 1 on, got {num_evaluations!r}")
        self.num_evaluations = num_evaluations
        self.schedule = ContinuousSchedule()
        orders = solver_orders(num_evaluations)
        # Times in (0, 1] at which the solver's steps begin, and the last one's end.
        start, end = torch.tensor([1, 1 / self.schedule.num_steps], device=CPU).unbind()
        self.outer_times = self.schedule.even_times(start, end, len(orders))
        self.stages: list[Stage] = []
        for order, start, end in zip(orders, self.outer_times[:-1], self.outer_times[1:], strict=True):
            self.stages += step_stages(self.schedule, start, end, order)

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Evaluations 0 to N - 1."""
        return range(self.num_evaluations)

    def model_time(self, timestep: int) -> float:
        """Time of an evaluation, fractional."""
        return self.stages[timestep].time

    def model_input(self, state: SampleState, timestep: int) -> SampleState:
        """The state itself."""
        return state

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Go on to the next evaluation, or to the end of the solver's step.

        Args:
            prediction: (N, 2 C) of the head; the variance is not used.
            timestep: Number of the evaluation.
            state: (N, C) sample; its memory keeps the start of the solver's step.
            noise: Not used.
        """
        stage = self.stages[timestep]
        clean = (state.sample - stage.sigma * prediction[..., : state.sample.shape[-1]]) / stage.alpha
        memory: dict[str, Any] = {"base": state.sample, "clean": clean} if stage.starts else state.memory
        sample = stage.base * memory["base"] + stage.first * memory["clean"]
        if stage.difference:
            sample = sample + stage.difference * (clean - memory["clean"])
        return SampleState(sample, memory)
