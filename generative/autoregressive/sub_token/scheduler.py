"""Sampling of tokens that are taken apart into sub-tokens: options of each, and the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from generative.autoregressive.token_sampling import check_sampling_options, sample_tokens
from generative.core.errors import UserError
from generative.core.guidance import GuidanceInterval, GuidanceSchedule, step_guidance
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise

Number = TypeVar("Number", int, float, int | None)


def per_sub_token(name: str, value: Number | Sequence[Number], count: int) -> list[Number]:
    """An option of each of K sub-tokens, from one for all or one for each.

    Raises:
        UserError: If there are neither one nor K.
    """
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise UserError(f"{name} must be one number, or one for each of the {count} sub-tokens, got {list(value)}")
    return list(value)


def sub_token_guidance(
    count: int,
    num_tokens: int,
    guidance_scale: float | Sequence[float],
    schedule: GuidanceSchedule = "constant",
    interval: GuidanceInterval | None = None,
    exponent: float = 1.0,
) -> Callable[[int], float]:
    """Guidance scale at each timestep, of which each position has one per sub-token.

    Args:
        count: K.
        num_tokens: L; schedule and interval are over positions.
        guidance_scale: s, one for all sub-tokens or one for each.
        schedule: See ``step_guidance``.
        interval: Likewise.
        exponent: Likewise.

    Raises:
        UserError: If an option is out of range.
    """
    scales = [
        step_guidance(scale, num_tokens, schedule, interval, exponent)
        for scale in per_sub_token("guidance_scale", guidance_scale, count)
    ]

    def scale_at(timestep: int) -> float:
        scale = scales[timestep % count]
        return scale(timestep // count) if callable(scale) else scale

    return scale_at


def check_sub_token_options(
    count: int,
    guidance_scale: float | Sequence[float],
    temperature: float | Sequence[float],
    top_k: int | Sequence[int | None] | None,
    top_p: float | Sequence[float],
    guidance_schedule: GuidanceSchedule = "constant",
    guidance_interval: GuidanceInterval | None = None,
    guidance_exponent: float = 1.0,
) -> None:
    """Refuse sampling options that are out of range or not one for each sub-token, with a ``UserError``."""
    SubTokenScheduler(1, count, temperature, top_k, top_p)
    sub_token_guidance(count, 1, guidance_scale, guidance_schedule, guidance_interval, guidance_exponent)


class SubTokenScheduler:
    """One sub-token per step, positions in raster order; a ``generative.core.sampling.SamplingScheduler``.

    The state's sample are the sub-tokens (B, L, K); those not reached yet are 0.

    Args:
        num_tokens: L.
        num_sub_tokens: K.
        temperature: See ``sample_tokens``; one for all sub-tokens or one for each, as the others.
        top_k: See ``sample_tokens``.
        top_p: See ``sample_tokens``.
    """

    def __init__(
        self,
        num_tokens: int,
        num_sub_tokens: int,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int | None] | None = None,
        top_p: float | Sequence[float] = 1.0,
    ) -> None:
        self.num_steps = num_tokens * num_sub_tokens
        self.num_sub_tokens = num_sub_tokens
        self.options = list(
            zip(
                per_sub_token("temperature", temperature, num_sub_tokens),
                per_sub_token("top_k", top_k, num_sub_tokens),
                per_sub_token("top_p", top_p, num_sub_tokens),
                strict=True,
            )
        )
        for options in self.options:
            check_sampling_options(*options)

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """0 to L K - 1; timestep t is sub-token t mod K of position t // K.

        Raises:
            UserError: If ``num_inference_steps`` is not L K.
        """
        if num_inference_steps != self.num_steps:
            raise UserError(f"num_inference_steps must be {self.num_steps}, one for each sub-token, got {num_inference_steps}")
        return range(self.num_steps)

    def model_input(self, state: SampleState, timestep: int) -> SampleState:
        """The state itself: tokens need no scaling."""
        return state

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Draw a sub-token from logits (B, 2^bits[k]) with one uniform number per image."""
        position, k = divmod(timestep, self.num_sub_tokens)
        sample = state.sample.clone()
        sample[:, position, k] = sample_tokens(prediction, noise.rand(), *self.options[k])
        return SampleState(sample=sample, memory=state.memory)
