"""Guidance schedules for diffusion: when guidance acts. How it acts is in ``generative.core.sampling``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from generative.core.errors import UserError
from generative.core.sampling import is_interval


def timestep_guidance(
    guidance_scale: float, interval: tuple[float, float] | None, noise_level: Callable[[Any], float]
) -> Callable[[Any], float]:
    """Guidance scale as a function of the timestep, 1 (no guidance) outside an interval of noise levels.

    Limiting guidance to the middle noise levels keeps diversity (Kynkaanniemi et al., arXiv 2404.07724).

    Args:
        guidance_scale: Scale inside the interval.
        interval: ``(low, high)``: guided where low <= noise level <= high. None guides everywhere.
        noise_level: Of a timestep, in [0, 1], 0 the clean end and 1 pure noise: see ``generative.diffusion.fit.noise_level_of``.

    Raises:
        UserError: If the scale is not finite, or the interval is not 0 <= low < high <= 1.
    """
    if not math.isfinite(guidance_scale):
        raise UserError(f"guidance_scale must be a finite number, got {guidance_scale}; 1 is no guidance")
    if interval is None:
        return lambda timestep: guidance_scale
    if not is_interval(interval) or interval[0] == interval[1]:
        raise UserError(f"guidance_interval must be (low, high) with 0 <= low < high <= 1, got {interval!r}")
    low, high = interval
    return lambda timestep: guidance_scale if low <= noise_level(timestep) <= high else 1.0
