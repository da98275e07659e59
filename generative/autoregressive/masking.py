"""How many tokens are masked, and which: the distributions of MAR (arXiv 2406.11838) and eMIGM (arXiv 2503.07197)."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.core.errors import UserError

# Share of masked tokens in MAR's training: a Gaussian around 1 of this std, cut at 1 and at the smallest share (section 4).
MASK_RATIO_STD = 0.25
# eMIGM's times keep off 0, where a weight 1 / p is not finite (official implementation).
TIME_OFFSET = 1e-3
SHARPNESS = 5.0
"""lambda of eMIGM's exponential and logarithmic schedules (section 3.2)."""
MIN_MASKED = 2
"""eMIGM's official masks hold at least so many tokens."""


@dataclass(frozen=True)
class MaskSchedule:
    """A schedule of eMIGM: the probability that a token is masked at a time (arXiv 2503.07197, table 1).

    Attributes:
        probability: gamma(p) of times p in [0, 1]: 0 is the clean end, 1 masks all.
        weight: gamma'(p) / gamma(p), weight of the loss under which it bounds the likelihood.
    """

    probability: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]

    def unmask_probability(self, time: float, next_time: float) -> float:
        """Probability that a token masked at ``time`` is known at ``next_time``, 1 - gamma(s) / gamma(t)."""
        now, later = self.probability(torch.tensor([time, next_time], dtype=torch.float64)).tolist()
        return 1 - later / now


def _power(exponent: float) -> MaskSchedule:
    return MaskSchedule(lambda p: p**exponent, lambda p: exponent / p)


_GROWTH = math.expm1(SHARPNESS)
MASK_SCHEDULES = {
    "cosine": MaskSchedule(lambda p: (math.pi / 2 * (1 - p)).cos(), lambda p: math.pi / 2 * (math.pi / 2 * (1 - p)).tan()),
    "linear": _power(1.0),
    "exp": MaskSchedule(
        lambda p: 1 - (-SHARPNESS * p).exp(), lambda p: SHARPNESS * (-SHARPNESS * p).exp() / (1 - (-SHARPNESS * p).exp())
    ),
    "log": MaskSchedule(
        lambda p: (1 + _GROWTH * p).log() / SHARPNESS, lambda p: _GROWTH / ((1 + _GROWTH * p) * (1 + _GROWTH * p).log())
    ),
}


def mask_schedule(name: str) -> MaskSchedule:
    """Find a schedule.

    Args:
        name: One of ``MASK_SCHEDULES``, or ``poly-X`` for p^X with a positive X.

    Raises:
        UserError: If there is none of that name.
    """
    if name in MASK_SCHEDULES:
        return MASK_SCHEDULES[name]
    prefix, _, exponent = str(name).partition("poly-")
    try:
        power = float(exponent)
    except ValueError:
        power = 0.0
    if prefix or not (power > 0 and math.isfinite(power)):
        raise UserError(f"mask_strategy must be {', '.join(MASK_SCHEDULES)} or poly-X with a positive X, got {name!r}")
    return _power(power)


@dataclass(frozen=True)
class MaskDraw:
    """Masks of a batch.

    Attributes:
        masked: (B, L) bool.
        weights: (B,) weights of the images' losses; None where all are 1.
    """

    masked: Tensor
    weights: Tensor | None = None


class MaskingLaw(abc.ABC):
    """Distribution from which the masks of training are drawn."""

    @abc.abstractmethod
    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> MaskDraw:
        """Draw masks (batch_size, num_tokens) on the generator's device."""


def random_subset(batch_size: int, num_tokens: int, size: int, generator: torch.Generator) -> Tensor:
    """(B, L) bool with ``size`` true in each row, each row's own uniform choice."""
    order = torch.rand(batch_size, num_tokens, generator=generator, device=generator.device).argsort(dim=1)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :size], True)


def truncated_normal_quantile(uniform: Tensor, low: float, high: float, mean: float, std: float) -> Tensor:
    """Quantiles of a normal distribution that is cut at both ends.

    Args:
        uniform: In [0, 1), any shape.
        low: Smallest value.
        high: Largest value.
        mean: Of the normal distribution before it is cut.
        std: Likewise.

    Returns:
        Values in [low, high], float64.
    """
    ends = torch.tensor([(low - mean) / std, (high - mean) / std], dtype=torch.float64, device=uniform.device)
    below, above = torch.special.ndtr(ends)
    return (mean + std * torch.special.ndtri(below + uniform.double() * (above - below))).clamp(low, high)


def truncated_normal_ratio(uniform: float, min_ratio: float) -> float:
    """Quantile of MAR's distribution of the share of masked tokens.

    Args:
        uniform: In [0, 1).
        min_ratio: Smallest share.

    Returns:
        A share in [min_ratio, 1].
    """
    at = torch.tensor(uniform, dtype=torch.float64)
    return float(truncated_normal_quantile(at, min_ratio, 1.0, mean=1.0, std=MASK_RATIO_STD))


class TruncatedNormalMasking(MaskingLaw):
    """MAR's distribution: one share for the batch, 1 - |N(0, 0.25)| cut at ``min_ratio``, rounded up to a count.

    Args:
        min_ratio: Smallest share of masked tokens.

    Raises:
        UserError: If it is outside [0, 1].
    """

    def __init__(self, min_ratio: float = 0.7) -> None:
        if not 0 <= min_ratio <= 1:
            raise UserError(f"mask_ratio_min must be in [0, 1], got {min_ratio}")
        self.min_ratio = min_ratio

    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> MaskDraw:
        """See ``MaskingLaw``."""
        uniform = float(torch.rand((), generator=generator, device=generator.device))
        count = math.ceil(num_tokens * truncated_normal_ratio(uniform, self.min_ratio))
        return MaskDraw(random_subset(batch_size, num_tokens, max(count, 1), generator))


def masking_time(uniform: Tensor, min_time: float) -> Tensor:
    """Times p in (0, 1] of uniform numbers: p = 0.999 max(t, min_time) + 0.001 (official eMIGM)."""
    return (1 - TIME_OFFSET) * uniform.clamp(min=min_time) + TIME_OFFSET


class ScheduledMasking(MaskingLaw):
    """eMIGM's distribution: a time, then each token masked with the schedule's probability at that time.

    Args:
        strategy: See ``mask_schedule``.
        min_time: Smallest time ("clamp"): small shares of masked tokens teach little (section 3.4). Not used by ``per_image``.
        weighted: Weight losses by gamma' / gamma.
        per_image: Each image has its own time and count; else all of a batch have one count, as an encoder that drops masked
            tokens wants it.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(self, strategy: str = "exp", min_time: float = 0.0, weighted: bool = False, per_image: bool = False) -> None:
        if not 0 <= min_time < 1:
            raise UserError(f"clamp_t_min must be in [0, 1), got {min_time}")
        self.schedule = mask_schedule(strategy)
        self.min_time = min_time
        self.weighted = weighted
        self.per_image = per_image

    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> MaskDraw:
        """See ``MaskingLaw``; draws again until 2 tokens of an image are masked.

        Raises:
            UserError: If there are fewer than 2 tokens.
        """
        if num_tokens < MIN_MASKED:
            raise UserError(f"eMIGM masks at least {MIN_MASKED} tokens of an image, and this network has {num_tokens}")

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device)

        if self.per_image:
            times = masking_time(uniform(batch_size), 0.0)  # (B,)
            masked = self.masked(times[:, None], uniform(batch_size, num_tokens))
        else:
            count = 0
            while count < MIN_MASKED:
                time = masking_time(uniform(1), self.min_time)  # (1,)
                count = int(self.masked(time, uniform(num_tokens)).sum())
            times = time.expand(batch_size)
            masked = random_subset(batch_size, num_tokens, count, generator)
        return MaskDraw(masked, self.schedule.weight(times) if self.weighted else None)

    def masked(self, times: Tensor, uniform: Tensor) -> Tensor:
        """Which tokens are masked at times p: uniform numbers below the probability."""
        return uniform < self.schedule.probability(times)
