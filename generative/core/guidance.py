"""When guidance acts, and how strongly: one vocabulary for diffusion, masked and token models.

A guidance scale s is that of u + s (c - u), c predicted under the condition and u by something weaker (the null condition, a
worse network); 1 is no guidance. Its interval is on the noise level in [0, 1]: the formulation's in diffusion (0 clean data, 1
pure noise), in models of tokens the share that is still to be drawn. Its schedule is over the progress, 1 - level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.options import GuidanceInterval, GuidanceSchedule

SHARPNESS = 5.0
"""lambda of the exponential schedules of eMIGM (arXiv 2503.07197, section 3.2)."""

# Share of s - 1 that acts at progress p. ``linear``: Muse (arXiv 2301.00704), MAR (2406.11838), VAR over its scales (2404.02905).
# ``power``, ``cubic``, ``exp`` and ``cosine``: eMIGM's official sampler.
GROWTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "linear": lambda progress: progress,
    "power": torch.square,
    "cubic": lambda progress: progress**3,
    "exp": lambda progress: 1 - (-SHARPNESS * progress).exp(),
    "cosine": lambda progress: (math.pi / 2 * (1 - progress)).cos(),
}


def is_interval(value: Any) -> bool:
    """Whether a value is two numbers with 0 <= low < high <= 1; NaN is no number."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(isinstance(end, (int, float)) for end in value):
        return False
    return 0 <= value[0] < value[1] <= 1


def check_guidance(
    guidance_scale: float,
    schedule: GuidanceSchedule = "constant",
    interval: GuidanceInterval | None = None,
    exponent: float = 1.0,
    prefix: str = "guidance",
) -> None:
    """Refuse guidance options outside their range.

    Args:
        guidance_scale: See ``scale_at``.
        schedule: See ``GuidanceSchedule``.
        interval: See ``is_inside``.
        exponent: See ``growth``.
        prefix: What the names of the scale and the interval begin with, for the message.

    Raises:
        UserError: If the scale is negative or not finite, the schedule is not known, the interval is not within
            0 <= low < high <= 1, or the exponent is not positive.
    """
    if not (guidance_scale >= 0 and math.isfinite(guidance_scale)):
        raise UserError(f"{prefix}_scale must be 0 or more, got {guidance_scale}; 1 is no guidance")
    if schedule not in get_args(GuidanceSchedule):
        raise UserError(f"guidance_schedule must be one of {', '.join(get_args(GuidanceSchedule))}, got {schedule!r}")
    if interval is not None and not is_interval(interval):
        raise UserError(f"{prefix}_interval must be two numbers with 0 <= low < high <= 1, got {interval!r}")
    if not (exponent > 0 and math.isfinite(exponent)):
        raise UserError(f"guidance_exponent must be a positive number, got {exponent}")


def is_inside(interval: GuidanceInterval | None, level: float) -> bool:
    """Whether guidance acts at a noise level (arXiv 2404.07724): low < level <= high, and at clean data if low is 0."""
    if interval is None:
        return True
    low, high = interval
    return (low < level or low == level == 0) and level <= high


def growth(schedule: GuidanceSchedule, progress: Tensor, exponent: float = 1.0) -> Tensor:
    """Share of the guidance s - 1 that acts.

    Args:
        schedule: See ``GuidanceSchedule``.
        progress: p in [0, 1], any shape.
        exponent: a of ``power_cosine``, (1 - cos(pi p^a)) / 2 (MDTv2, arXiv 2303.14389); above 1 guidance comes later. FiT's
            official sampler has the same of 1 - p, ``falling_power_cosine``: above 1 guidance goes sooner.
    """
    if schedule == "falling_power_cosine":
        return growth("power_cosine", 1 - progress, exponent)
    if schedule == "power_cosine":
        return (1 - (math.pi * progress**exponent).cos()) / 2
    return GROWTHS[schedule](progress)


def scale_at(
    guidance_scale: float,
    progress: float,
    schedule: GuidanceSchedule = "constant",
    interval: GuidanceInterval | None = None,
    exponent: float = 1.0,
    level: float | None = None,
) -> float:
    """Guidance scale at one moment of sampling.

    Args:
        guidance_scale: s at the end; 1 is no guidance.
        progress: p in [0, 1], 0 at the first step and 1 at the last.
        schedule: See ``GuidanceSchedule``.
        interval: Noise levels at which guidance acts; None for all.
        exponent: See ``growth``.
        level: Noise level; None for 1 - p.
    """
    if guidance_scale == 1 or not is_inside(interval, 1 - progress if level is None else level):
        return 1.0
    if schedule == "constant":
        return float(guidance_scale)
    return 1 + (guidance_scale - 1) * float(growth(schedule, torch.tensor(progress, dtype=torch.float64), exponent))


def step_guidance(
    guidance_scale: float,
    num_steps: int,
    schedule: GuidanceSchedule = "constant",
    interval: GuidanceInterval | None = None,
    exponent: float = 1.0,
) -> float | Callable[[int], float]:
    """Guidance scale at each of a model of tokens' positions, scales or iterations, as ``classifier_free_guidance`` takes it.

    The noise level of step i is (L - i) / L, the share that is still to come: 1 at the first step, 1 / L at the last. A part of
    the steps from a share ``start`` that is done up to another, ``start <= i / L < stop``, is the interval (1 - stop, 1 - start).

    Args:
        guidance_scale: s; 1 is no guidance.
        num_steps: L.
        schedule: See ``GuidanceSchedule``; the progress of step i is i / (L - 1).
        interval: Noise levels at which guidance acts; None for all.
        exponent: See ``growth``.

    Returns:
        A number if it is the same everywhere, else a function of the step.

    Raises:
        UserError: If an argument is out of range, see ``check_guidance``.
    """
    check_guidance(guidance_scale, schedule, interval, exponent)
    if guidance_scale == 1 or (schedule == "constant" and (interval is None or tuple(interval) == (0, 1))):
        return float(guidance_scale)

    def scale_of(step: int) -> float:
        progress, level = step / max(num_steps - 1, 1), (num_steps - step) / num_steps
        return scale_at(guidance_scale, progress, schedule, interval, exponent, level)

    return scale_of
