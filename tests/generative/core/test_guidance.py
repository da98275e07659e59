"""When guidance acts, and how strongly."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from generative.core.errors import UserError
from generative.core.guidance import GuidanceSchedule, check_guidance, growth, is_inside, scale_at


def test_no_interval_guides_everywhere() -> None:
    assert [scale_at(3.0, progress) for progress in (0.0, 0.5, 1.0)] == [3, 3, 3]


def test_an_interval_is_open_below_and_closed_above_but_holds_clean_data() -> None:
    assert [is_inside((0.2, 0.6), level) for level in (0.0, 0.2, 0.21, 0.6, 0.61, 1.0)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert is_inside((0.0, 0.6), 0.0) and is_inside((0.0, 1.0), 1.0)


def test_outside_the_interval_there_is_no_guidance() -> None:
    assert [scale_at(3.0, progress, interval=(0.2, 0.6)) for progress in (0.0, 0.5, 0.9)] == [1, 3, 1]
    assert scale_at(3.0, 0.0, interval=(0.2, 0.6), level=0.5) == 3


@pytest.mark.parametrize("schedule", get_args(GuidanceSchedule))
def test_every_schedule_grows_from_nothing_to_all(schedule: GuidanceSchedule) -> None:
    progress = torch.linspace(0, 1, 11, dtype=torch.float64)
    share = growth(schedule, progress)
    if schedule != "constant":
        assert float(share[0]) == pytest.approx(0, abs=1e-12) and bool((share.diff() > 0).all())
    assert float(share[-1]) == pytest.approx(1, abs=0.007)
    assert scale_at(4.0, 0.5, schedule) == pytest.approx(1 + 3 * float(share[5]))


def test_cosines_are_named_apart() -> None:
    middle = torch.tensor(0.5, dtype=torch.float64)
    assert float(growth("cosine", middle)) == pytest.approx(math.cos(math.pi / 4))
    assert float(growth("power_cosine", middle)) == pytest.approx(0.5)
    assert float(growth("power_cosine", middle, exponent=2.0)) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": math.nan}, "guidance_scale must be 0 or more, got nan"),
        ({"guidance_scale": -1.0}, "guidance_scale must be 0 or more"),
        ({"schedule": "round"}, "guidance_schedule must be one of constant, linear"),
        ({"interval": (0.5, 0.5)}, "guidance_interval must be two numbers"),
        ({"interval": (-0.1, 0.5)}, "guidance_interval must be two numbers"),
        ({"interval": (0.1, 1.1)}, "guidance_interval must be two numbers"),
        ({"exponent": 0.0}, "guidance_exponent must be a positive number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_guidance(**({"guidance_scale": 2.0} | options))  # type: ignore[arg-type]
