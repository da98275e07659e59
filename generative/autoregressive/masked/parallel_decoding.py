"""Masks of discrete token models (MaskGIT, arXiv 2202.04200): the cosine distribution in training (section 3.1) and in iterative
parallel decoding (section 3.2), confidence, and the scheduler."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from generative.autoregressive.masking import MaskDraw, MaskingLaw
from generative.autoregressive.token_sampling import check_sampling_options, gumbel_noise, sample_tokens
from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise


def check_choice_temperature(choice_temperature: float) -> None:
    """Refuse a temperature of the choice that is negative or not finite, with a ``UserError``."""
    if not (choice_temperature >= 0 and math.isfinite(choice_temperature)):
        raise UserError(f"choice_temperature must be 0 or more, got {choice_temperature}; 0 keeps the most confident tokens")


class CosineMasking(MaskingLaw):
    """MaskGIT's masks: each image has its own share of masked tokens, cos(pi / 2 r) with r uniform in [0, 1), and random places.

    Args:
        min_ratio: Smaller shares are raised to this one.

    Raises:
        UserError: If it is outside [0, 1].
    """

    def __init__(self, min_ratio: float = 0.0) -> None:
        if not 0 <= min_ratio <= 1:
            raise UserError(f"min_ratio of masked tokens must be in [0, 1], got {min_ratio}")
        self.min_ratio = min_ratio

    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> MaskDraw:
        """See ``MaskingLaw``: ceil(share x L) tokens of each image, drawn evenly without replacement, at least one."""
        device = generator.device
        ratio = torch.rand(batch_size, 1, generator=generator, device=device).mul(math.pi / 2).cos()  # (B, 1), in (0, 1]
        count = (ratio.clamp(min=self.min_ratio) * num_tokens).ceil().clamp(1, num_tokens)
        places = torch.rand(batch_size, num_tokens, generator=generator, device=device).argsort(dim=1)  # (B, L), permutations
        return MaskDraw(places < count)


def masked_counts(num_tokens: int, num_steps: int) -> list[int]:
    """How many tokens are still masked after each step: floor(L cos(pi / 2 (k + 1) / N)) (MaskGIT's cosine schedule).

    Every step decides at least one token and leaves at least one for each later step; the last decides what is left.

    Args:
        num_tokens: L.
        num_steps: N.

    Returns:
        N counts, falling, the last one 0.

    Raises:
        UserError: If there is no step, or more steps than tokens.
    """
    if not 1 <= num_steps <= num_tokens:
        raise UserError(f"num_inference_steps must be in 1..{num_tokens}, one token at least for each step, got {num_steps}")
    counts, current = [], num_tokens
    for done in range(1, num_steps + 1):
        wanted = math.floor(num_tokens * math.cos(math.pi / 2 * done / num_steps))
        current = min(max(wanted, num_steps - done), current - 1) if done < num_steps else 0
        counts.append(current)
    return counts


def chosen_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token drawn: logits (..., V) and tokens (...) -> (...) float32."""
    return logits.float().log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]


def keep_confident(
    log_probabilities: Tensor, is_masked: Tensor, num_masked: int, uniform: Tensor, choice_temperature: float
) -> Tensor:
    """Decide which positions stay masked: the least confident, confidence = log p + choice_temperature x Gumbel noise.

    That is a draw without replacement (Gumbel top-k) of positions to reveal; at temperature 0 the most confident are revealed.

    Args:
        log_probabilities: (B, L) log-probability of the token drawn at each position.
        is_masked: (B, L) bool; positions that are decided stay so.
        num_masked: How many positions of each image stay masked, at most as many as are masked now.
        uniform: (B, L) in [0, 1), each image's row from its own noise.
        choice_temperature: 0 or more.

    Returns:
        (B, L) bool, exactly ``num_masked`` true in each row.
    """
    return least_confident(log_probabilities + choice_temperature * gumbel_noise(uniform), is_masked, num_masked)


def least_confident(confidence: Tensor, is_masked: Tensor, num_masked: int) -> Tensor:
    """The positions that stay masked, see ``keep_confident``, of their confidence (B, L): (B, L) bool."""
    confidence = confidence.masked_fill(~is_masked, math.inf)
    # A stable sort: ties are decided by position, whatever the batch.
    least = confidence.sort(dim=-1, stable=True).indices[:, :num_masked]  # (B, num_masked)
    return torch.zeros_like(is_masked).scatter_(1, least, True)


class ConfidenceScheduler:
    """What schedulers share that draw everything masked at once and keep the most confident: counts, and the temperatures.

    The temperature of the choice falls linearly, choice_temperature (1 - (k + 1) / N): early choices explore, late are greedy.

    Args:
        num_codes: How many are masked at first.
        choice_temperature: Scale of the Gumbel noise on the confidence at the start.
        temperature: See ``sample_tokens``.
        top_k: See ``sample_tokens``.
        top_p: See ``sample_tokens``.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(self, num_codes: int, choice_temperature: float, temperature: float, top_k: int | None, top_p: float) -> None:
        check_sampling_options(temperature, top_k, top_p)
        check_choice_temperature(choice_temperature)
        self.num_codes = num_codes
        self.choice_temperature = choice_temperature
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.counts: list[int] = []

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Steps 0 to N - 1; see ``masked_counts`` for what is refused."""
        self.counts = masked_counts(self.num_codes, num_inference_steps)
        return range(num_inference_steps)

    def model_input(self, state: SampleState, timestep: int) -> SampleState:
        """The state itself: tokens need no scaling."""
        return state

    def annealed(self, timestep: int) -> float:
        """Temperature of the choice at a step."""
        return self.choice_temperature * (1 - (timestep + 1) / len(self.counts))


class ParallelScheduler(ConfidenceScheduler):
    """MaskGIT's decoding: draw every masked token at once, keep the most confident; a ``SamplingScheduler``.

    The state's sample is the token map (B, L) with ``mask_token`` where nothing is decided yet.

    Args:
        num_tokens: L.
        mask_token: Id that stands for a masked token.
        choice_temperature: See ``ConfidenceScheduler`` (official: 4.5).
        temperature: Likewise.
        top_k: Likewise.
        top_p: Likewise.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        num_tokens: int,
        mask_token: int,
        choice_temperature: float = 4.5,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(num_tokens, choice_temperature, temperature, top_k, top_p)
        self.mask_token = mask_token

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Draw all masked tokens from logits (B, L, V) with two uniform numbers per token, and mask the least confident again."""
        is_masked = state.sample == self.mask_token  # (B, L)
        uniform = noise.rand(2, self.num_codes)  # (B, 2, L)
        drawn = sample_tokens(
            prediction.flatten(0, 1), uniform[:, 0].flatten(), self.temperature, self.top_k, self.top_p
        ).unflatten(0, is_masked.shape)  # (B, L)
        tokens = torch.where(is_masked, drawn, state.sample)
        scores = chosen_log_probabilities(prediction, tokens.clamp(max=prediction.shape[-1] - 1))
        still = keep_confident(scores, is_masked, self.counts[timestep], uniform[:, 1], self.annealed(timestep))
        return SampleState(sample=tokens.masked_fill(still, self.mask_token), memory=state.memory)
