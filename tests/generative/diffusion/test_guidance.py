"""When guidance acts."""

from __future__ import annotations

from typing import Any

import pytest

from generative.autoregressive.decoding import check_guidance
from generative.autoregressive.masked_schedulers import IndependentScheduler
from generative.autoregressive.masking import mask_schedule
from generative.core.errors import UserError
from generative.diffusion.guidance import timestep_guidance


def level(timestep: float) -> float:
    """Noise level of a timestep of 1,000."""
    return timestep / 1000


def test_no_interval_guides_everywhere() -> None:
    schedule = timestep_guidance(3.0, None, level)
    assert [schedule(t) for t in (0, 500, 1000)] == [3, 3, 3]


def test_interval_is_in_fractions_of_the_schedule() -> None:
    schedule = timestep_guidance(3.0, (0.2, 0.6), level)
    assert [schedule(t) for t in (0, 199, 200, 600, 601, 999)] == [1, 1, 3, 3, 1, 1]


@pytest.mark.parametrize(
    "interval", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.1, 1.1), 0.5, (0.5,), ("a", "b"), (float("nan"), 0.5)]
)
def test_bad_interval_is_refused_in_every_family(interval: Any) -> None:
    with pytest.raises(UserError, match="guidance_interval must be"):
        timestep_guidance(3.0, interval, level)
    with pytest.raises(UserError, match="guidance_interval must be"):
        check_guidance(3.0, interval=interval)
    if interval != (0.5, 0.5):  # there a time at which an iteration may end
        with pytest.raises(UserError, match="guidance_interval must be"):
            IndependentScheduler(lambda *given: given[0], mask_schedule("cosine"), guidance_interval=interval)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="guidance_scale must be a finite number"):
        timestep_guidance(scale, None, level)
