"""Sampling defaults saved when the guidance of token models was told in other words."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from generative.core.guidance import is_interval

# Of a share such as 0.8 or (i + 2) / L, not of the float that stands for it: ends must fall on the steps they fell on.
LARGEST_DENOMINATOR = 10**6


def was_saved_before_noise_levels(index: Mapping[str, Any]) -> bool:
    """Whether a pipeline of a token model is from when intervals were shares of steps done: its network's module was flat then.

    Args:
        index: Content of ``model_index.json``.
    """
    component = index.get("transformer")
    library = str(component[0]) if isinstance(component, list) and component else ""
    return library.startswith("generative.autoregressive.") and library.count(".") == 2


def current_defaults(index: Mapping[str, Any]) -> Any:
    """Sampling defaults of a pipeline folder in today's words (``generative.core.guidance``).

    In old ones of token models an interval ``(start, stop)`` is over the share of steps that is done, and ``cosine`` is what is
    ``power_cosine`` now.

    Args:
        index: Content of ``model_index.json``.
    """
    defaults = index.get("sampling_defaults")
    if not isinstance(defaults, Mapping) or not was_saved_before_noise_levels(index):
        return defaults
    changed = dict(defaults)
    if changed.get("guidance_schedule") == "cosine":
        changed["guidance_schedule"] = "power_cosine"
    if is_interval(changed.get("guidance_interval")):  # others are refused where they are used
        start, stop = (Fraction(end).limit_denominator(LARGEST_DENOMINATOR) for end in changed["guidance_interval"])
        changed["guidance_interval"] = [float(1 - stop), float(1 - start)]
    return changed
