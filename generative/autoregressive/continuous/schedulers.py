"""Which tokens are drawn at which iteration, and with what guidance: the samplers of MAR and eMIGM as ``SamplingScheduler``s."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import Tensor

from generative.autoregressive.masking import MaskSchedule
from generative.core.errors import UserError
from generative.core.guidance import GuidanceInterval, GuidanceSchedule, check_guidance, growth, is_inside
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise

DrawTokens = Callable[[Tensor, Tensor | None, list[int], ImageNoise], Tensor]
"""``(features (K, N, D), guidance scale (N, 1) or None, tokens of each image, noise) -> (N, C)``: tokens of N positions, image by
image."""
# eMIGM's official sampler steps through times from 1 down to this.
LAST_TIME = 1e-5


def check_iterations(num_inference_steps: int) -> None:
    """Refuse a run of no iteration, with a ``UserError``."""
    if num_inference_steps < 1:
        raise UserError(f"num_inference_steps must be at least 1, got {num_inference_steps}")


class MaskedScheduler(abc.ABC):
    """Draws some of the masked tokens at every iteration, all of them by the last.

    The state's sample is the tokens (B, L, C), zero where masked; its memory has ``masked`` (B, L) bool, and for an iteration's
    prediction ``chosen`` (B, L) bool, the tokens whose vectors are wanted.

    Args:
        draw_tokens: Turns vectors into tokens.
        guidance_scale: s; 1 is none.
        guidance_schedule: How the guidance grows from 1 to s with the share of tokens that are known.

    Raises:
        UserError: If the guidance is out of range.
    """

    def __init__(
        self, draw_tokens: DrawTokens, guidance_scale: float = 1.0, guidance_schedule: GuidanceSchedule = "constant"
    ) -> None:
        check_guidance(guidance_scale, guidance_schedule)
        self.draw_tokens = draw_tokens
        self.guidance_scale = guidance_scale
        self.guidance_schedule = guidance_schedule
        self.num_iterations = 0

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Iterations 0 to N - 1.

        Raises:
            UserError: If there are none.
        """
        check_iterations(num_inference_steps)
        self.num_iterations = num_inference_steps
        return range(num_inference_steps)

    def model_input(self, state: SampleState, timestep: int) -> SampleState:
        """The state with the iteration's choice."""
        return SampleState(state.sample, state.memory | {"chosen": self.choose(timestep, state)})

    def is_guided(self, timestep: int) -> bool:
        """Whether an iteration needs the null condition's vectors."""
        return self.guidance_scale != 1

    @abc.abstractmethod
    def choose(self, timestep: int, state: SampleState) -> Tensor:
        """Masked tokens that this iteration draws, (B, L) bool."""

    def remaining(self, masked: Tensor) -> Tensor:
        """Number of masked tokens (B,) that the guidance goes by, given those left after the iteration (B, L)."""
        return masked.sum(dim=1)

    def scales(self, masked: Tensor) -> Tensor:
        """Guidance scale (B,) of each image, given the tokens (B, L) that stay masked after the iteration."""
        known = 1 - self.remaining(masked) / masked.shape[1]
        return 1 + (self.guidance_scale - 1) * growth(self.guidance_schedule, known)

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Draw the chosen tokens.

        Args:
            prediction: (K, N, D) vectors of the chosen tokens, K = 2 with the null condition's second where ``is_guided``.
            timestep: Iteration, from 0.
            state: See the class.
            noise: One stream per image.
        """
        chosen = self.choose(timestep, state)  # (B, L)
        masked = state.memory["masked"] & ~chosen
        counts = chosen.sum(dim=1)  # (B,)
        tokens = state.sample.clone()
        if bool(chosen.any()):
            scale = self.scales(masked).repeat_interleave(counts)[:, None] if self.is_guided(timestep) else None  # (N, 1)
            tokens[chosen] = self.draw_tokens(prediction, scale, counts.tolist(), noise).to(tokens.dtype)
        return SampleState(tokens, state.memory | {"masked": masked})


class RandomOrderScheduler(MaskedScheduler):
    """MAR: sets of growing size along a random order of each image, read from its end (arXiv 2406.11838, section 3.5).

    The state's memory also has ``order`` (B, L) int64: the first so many of it are masked.
    """

    def num_masked(self, timestep: int, num_tokens: int, current: int) -> int:
        """Tokens that stay masked: floor(L cos(pi / 2 (k + 1) / N)), at least 1, and one fewer than now where it can be."""
        wanted = math.floor(num_tokens * math.cos(math.pi / 2 * (timestep + 1) / self.num_iterations))
        return max(1, min(current - 1, wanted))

    def choose(self, timestep: int, state: SampleState) -> Tensor:
        """See ``MaskedScheduler``; the last iteration draws all that is left."""
        masked, order = state.memory["masked"], state.memory["order"]
        if timestep == self.num_iterations - 1:
            return masked
        count = self.num_masked(timestep, masked.shape[1], int(masked[0].sum()))
        return masked & ~torch.zeros_like(masked).scatter(1, order[:, :count], True)

    def remaining(self, masked: Tensor) -> Tensor:
        """As officially, one token counts as masked at the last iteration too."""
        return masked.sum(dim=1).clamp(min=1)


class IndependentScheduler(MaskedScheduler):
    """eMIGM: every masked token becomes known with the same probability (arXiv 2503.07197, section 3.1).

    Times run evenly from 1 to 0; guidance acts where the time an iteration ends at is within an interval. Each image decides for
    itself, and draws at least one token while any is masked; the official sampler gives all images of a batch one count. The
    state's memory also has ``uniform`` (B, N, L), the numbers that decide at each iteration.

    Args:
        draw_tokens: See ``MaskedScheduler``.
        schedule: Probability of being masked by time.
        guidance_scale: See ``MaskedScheduler``.
        guidance_schedule: See ``MaskedScheduler``.
        guidance_interval: Noise levels at which it acts, that of an iteration being the time it ends at (section 3.5); None for
            all.

    Raises:
        UserError: If the guidance is out of range.
    """

    def __init__(
        self,
        draw_tokens: DrawTokens,
        schedule: MaskSchedule,
        guidance_scale: float = 1.0,
        guidance_schedule: GuidanceSchedule = "constant",
        guidance_interval: GuidanceInterval | None = None,
    ) -> None:
        super().__init__(draw_tokens, guidance_scale, guidance_schedule)
        check_guidance(guidance_scale, interval=guidance_interval)
        self.schedule = schedule
        self.guidance_interval = guidance_interval
        self.times: list[float] = []

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Iterations 0 to N - 1, between N + 1 times."""
        iterations = super().set_timesteps(num_inference_steps, device)
        self.times = torch.linspace(1.0, LAST_TIME, num_inference_steps + 1).tolist()
        return iterations

    def is_guided(self, timestep: int) -> bool:
        """Whether the iteration ends within the interval."""
        return self.guidance_scale != 1 and is_inside(self.guidance_interval, self.times[timestep + 1])

    def unmask_probability(self, timestep: int) -> float:
        """Probability that a masked token becomes known, 1 at the last iteration."""
        if timestep == self.num_iterations - 1:
            return 1.0
        return self.schedule.unmask_probability(self.times[timestep], self.times[timestep + 1])

    def choose(self, timestep: int, state: SampleState) -> Tensor:
        """See ``MaskedScheduler``."""
        masked = state.memory["masked"]
        uniform = state.memory["uniform"][:, timestep].masked_fill(~masked, math.inf)  # (B, L)
        chosen = uniform < self.unmask_probability(timestep)
        return torch.where(chosen.any(dim=1, keepdim=True), chosen, self.choose_one(timestep, uniform)) & masked

    def choose_one(self, timestep: int, uniform: Tensor) -> Tensor:
        """For images of which no token would become known: (B, L) bool, the masked token of the smallest number.

        Args:
            timestep: Iteration.
            uniform: (B, L) numbers that decided, infinite for tokens that are known.
        """
        return torch.zeros_like(uniform, dtype=torch.bool).scatter(1, uniform.argmin(dim=1, keepdim=True), True)
