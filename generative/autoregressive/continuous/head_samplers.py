"""Samplers of the diffusion head: those of ``generative.diffusion``, on the head's chain and a token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from generative.autoregressive.continuous.diffusion_head import NUM_TRAIN_TIMESTEPS, HeadSampler, cosine_betas, head_process
from generative.autoregressive.options import SolverName
from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.respacing import ShortenedChain
from generative.diffusion.samplers.ancestral import add_step_noise, reverse_mean
from generative.diffusion.samplers.dpm_solver import MIN_HALF_LOG_SNR, solver_orders, solver_stages, solver_times

CPU = torch.device("cpu")  # where the tables are, whatever the default device


class AncestralHeadSampler:
    """DDPM's reverse steps with learned variance over a shortened chain; a ``HeadSampler``.

    Args:
        timesteps: Ascending timesteps of the chain, among 0 to 999; or how many, spread evenly.
        temperature: Factor on the noise of the steps (MAR, section 4.3; the noise it starts from keeps its size).

    Raises:
        UserError: If they are no chain of at least 2 steps, or the temperature is negative.
    """

    def __init__(self, timesteps: int | Sequence[int], temperature: float = 1.0) -> None:
        try:
            self.chain = ShortenedChain(head_process(), timesteps)
        except UserError as error:
            wanted = f"in 2..{NUM_TRAIN_TIMESTEPS}"
            if not isinstance(timesteps, int):
                wanted = f"a number, or at least 2 ascending timesteps below {NUM_TRAIN_TIMESTEPS}"
            raise UserError(f"num_diffusion_steps must be {wanted}, got {timesteps}") from error
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise UserError(f"temperature must be 0 or more, got {temperature}")
        self.temperature = temperature
        self.num_evaluations = self.num_draws = len(self.chain)

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Evaluations 0 to S - 1; as many as the chain has steps."""
        return range(self.num_evaluations)

    def model_time(self, timestep: int) -> float:
        """Timestep of the full chain: the last one first."""
        return self.chain.timesteps[-1 - timestep]

    def model_input(self, state: SampleState, timestep: int) -> SampleState:
        """The state itself."""
        return state

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Draw x_{t-1} (N, C) from a prediction (N, 2 C); the last step adds no noise."""
        index = len(self.chain) - 1 - timestep
        drawn = noise.randn(state.sample.shape[-1]) if index else torch.zeros_like(state.sample)  # (N, C)
        indices = torch.tensor([index], device=prediction.device)
        return SampleState(self.reverse_step(prediction, state.sample, indices, drawn), state.memory)

    def reverse_step(self, prediction: Tensor, sample: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """One reverse step.

        Args:
            prediction: (N, 2 C) of the head.
            sample: (N, C) x_t.
            index: (N,) or (1,) int64, which step of the shortened chain, 0 the last one taken.
            noise: (N, C) standard normal; not used at step 0.

        Returns:
            (N, C) x_{t-1}.
        """
        predicted, variance = prediction.chunk(2, dim=-1)
        output = DenoiserOutput(predicted, variance)
        mean, log_variance = reverse_mean(self.chain.process, output, sample, index, "learned")
        return add_step_noise(mean, log_variance, (index > 0)[:, None] * noise, self.temperature)


def interpolate(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """Piecewise linear function through known points (K,), ascending in x; beyond them the outermost pieces go on."""
    right = torch.searchsorted(known_x, x).clamp(1, len(known_x) - 1)
    left = right - 1
    slope = (known_y[right] - known_y[left]) / (known_x[right] - known_x[left])
    return known_y[left] + (x - known_x[left]) * slope


class CosineSchedule:
    """The cosine chain as a function of a continuous time in (0, 1]: log alpha is linear between the chain's steps.

    A ``NoiseSchedule``. The steps that are left after the cut share the time axis evenly, the last one at 1. All is float32, as
    officially: at the clean end 1 - alpha^2 keeps only three digits of it, which moves the times that the network is told by
    tenths of a step.
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

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """See ``NoiseSchedule``."""
        log_alpha = self.log_alpha(times)
        return log_alpha.exp(), (1 - (2 * log_alpha).exp()).sqrt()

    def half_log_snr(self, times: Tensor) -> Tensor:
        """See ``NoiseSchedule``."""
        log_alpha = self.log_alpha(times)
        return log_alpha - 0.5 * (1 - (2 * log_alpha).exp()).log()

    def times_of(self, half_log_snr: Tensor) -> Tensor:
        """See ``NoiseSchedule``."""
        log_alpha = -0.5 * torch.logaddexp(torch.zeros(1, device=CPU), -2 * half_log_snr)
        return interpolate(log_alpha, self.log_alphas.flip(0), self.times.flip(0))

    def model_time(self, time: Tensor) -> float:
        """What the network is told, in [0, 1000)."""
        return float((time - 1 / self.num_steps) * NUM_TRAIN_TIMESTEPS)


class DPMSolverHeadSampler:
    """DPM-Solver++ singlestep of order 3 with steps even in log-SNR, as eMIGM's official sampler runs it; a ``HeadSampler``.

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
        self.schedule = CosineSchedule()
        orders = solver_orders(num_evaluations)
        start, end = torch.tensor([1, 1 / self.schedule.num_steps], device=CPU).unbind()
        self.outer_times = solver_times(self.schedule, start, end, orders)
        self.stages = solver_stages(self.schedule, self.outer_times, orders)

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Evaluations 0 to N - 1."""
        return range(self.num_evaluations)

    def model_time(self, timestep: int) -> float:
        """Time of an evaluation, fractional."""
        return self.schedule.model_time(self.stages[timestep].time)

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
        data = (state.sample - stage.sigma * prediction[..., : state.sample.shape[-1]]) / stage.alpha
        memory = {"sample": state.sample, "data": data} if stage.starts else state.memory
        return SampleState(stage.advance(data, memory["sample"], memory["data"]), memory)


def head_sampler(solver: SolverName, num_diffusion_steps: int | Sequence[int], temperature: float) -> HeadSampler:
    """Sampler of the diffusion head.

    Args:
        solver: ``dpm-solver`` or ``ddpm``.
        num_diffusion_steps: Network evaluations; for ``ddpm`` perhaps the timesteps themselves.
        temperature: Factor on the noise of ddpm's steps.

    Raises:
        UserError: If the solver is unknown, or a temperature is asked of the deterministic one.
    """
    if solver == "ddpm":
        return AncestralHeadSampler(num_diffusion_steps, temperature)
    if solver != "dpm-solver":
        raise UserError(f"solver must be dpm-solver or ddpm, got {solver!r}")
    if temperature != 1:
        raise UserError(f"temperature {temperature} acts on the noise of ddpm's steps, and dpm-solver adds none; use 1, or ddpm")
    if not isinstance(num_diffusion_steps, int):
        raise UserError(f"num_diffusion_steps of dpm-solver must be a number, got {num_diffusion_steps!r}")
    return DPMSolverHeadSampler(num_diffusion_steps)
