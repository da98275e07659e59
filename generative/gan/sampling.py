"""Noise for generators and the scheduler whose one step is the whole of sampling."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise


def check_truncation(truncation: float | None) -> None:
    """Raise ``UserError`` unless a truncation threshold is None or positive."""
    if truncation is not None and not (isinstance(truncation, (int, float)) and truncation > 0):
        raise UserError(f"truncation must be a positive threshold, or None for no truncation, got {truncation!r}")


def truncated_normal(uniform: Tensor, threshold: float) -> Tensor:
    """Standard normal numbers truncated to [-threshold, threshold], by inverse CDF.

    Equal in law to redrawing every value beyond the threshold (the truncation trick, arXiv 1809.11096, section 3.1), but each
    number costs exactly one draw.

    Args:
        uniform: Uniform numbers in [0, 1), any shape.
        threshold: Positive.

    Returns:
        The same shape and dtype.
    """
    reach = math.erf(threshold / math.sqrt(2))  # probability of |z| <= threshold
    values = math.sqrt(2) * torch.erfinv((2 * uniform.double() - 1) * reach)
    return values.clamp(-threshold, threshold).to(uniform.dtype)  # a uniform of exactly 0 may reach infinity


def draw_z(batch_size: int, z_dim: int, generator: torch.Generator, truncation: float | None = None) -> Tensor:
    """Noise of a training batch, from one stream.

    Args:
        batch_size: B.
        z_dim: Z.
        generator: Its device is the result's.
        truncation: Threshold, or None.

    Returns:
        (B, Z) float32.
    """
    if truncation is None:
        return torch.randn((batch_size, z_dim), generator=generator, device=generator.device)
    return truncated_normal(torch.rand((batch_size, z_dim), generator=generator, device=generator.device), truncation)


def image_z(noise: ImageNoise, z_dim: int, truncation: float | None = None) -> Tensor:
    """Noise of images to sample, each row from its image's own stream.

    Args:
        noise: One stream per image.
        z_dim: Z.
        truncation: Threshold, or None.

    Returns:
        (B, Z) float32.
    """
    return noise.randn(z_dim) if truncation is None else truncated_normal(noise.rand(z_dim), truncation)


class OneStepScheduler:
    """Sampling in one step: the prediction is the sample."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> Iterable[Any]:
        """One timestep, 0.

        Raises:
            UserError: If more than one step is asked for.
        """
        if num_inference_steps != 1:
            raise UserError(f"a GAN samples in 1 step, got num_inference_steps={num_inference_steps}")
        return [0]

    def model_input(self, state: SampleState, timestep: Any) -> SampleState:
        """The noise as it is."""
        return state

    def step(self, prediction: Tensor, timestep: Any, state: SampleState, noise: ImageNoise) -> SampleState:
        """Take the images predicted."""
        return SampleState(prediction, state.memory)
