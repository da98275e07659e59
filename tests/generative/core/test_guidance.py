"""When guidance acts, and how strongly."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from generative.core.errors import UserError
from generative.core.guidance import GuidanceSchedule, check_guidance, growth, is_inside, scale_at, step_guidance


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


@pytest.mark.parametrize("schedule", [name for name in get_args(GuidanceSchedule) if not name.startswith("falling")])
def test_every_schedule_grows_from_nothing_to_all(schedule: GuidanceSchedule) -> None:
    progress = torch.linspace(0, 1, 11, dtype=torch.float64)
    share = growth(schedule, progress)
    if schedule != "constant":
        assert float(share[0]) == pytest.approx(0, abs=1e-12) and bool((share.diff() > 0).all())
    assert float(share[-1]) == pytest.approx(1, abs=0.007)
    assert scale_at(4.0, 0.5, schedule) == pytest.approx(1 + 3 * float(share[5]))


def test_the_falling_schedule_is_the_growing_one_read_from_the_end() -> None:
    progress = torch.linspace(0, 1, 11, dtype=torch.float64)
    falling = growth("falling_power_cosine", progress, exponent=0.8)
    assert torch.allclose(falling, growth("power_cosine", progress, exponent=0.8).flip(0))
    assert scale_at(4.0, 0.0, "falling_power_cosine") == 4 and scale_at(4.0, 1.0, "falling_power_cosine") == 1


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


def test_what_is_the_same_at_every_step_is_a_number() -> None:
    assert step_guidance(2.0, 5) == 2.0 and step_guidance(2.0, 5, interval=(0.0, 1.0)) == 2.0
    assert step_guidance(1.0, 5, "linear", (0.2, 0.4)) == 1.0


def steps(num_steps: int, *args: Any, **options: Any) -> list[float]:
    """Guidance scales 3 at full strength of all steps."""
    scale = step_guidance(3.0, num_steps, *args, **options)
    return [scale(step) if callable(scale) else scale for step in range(num_steps)]


def test_schedules_run_from_the_first_step_to_the_last() -> None:
    assert steps(5, "linear") == [1.0, 1.5, 2.0, 2.5, 3.0]
    late = steps(5, "power_cosine", exponent=2.0)
    assert late == pytest.approx([1 + 1 - math.cos(math.pi * (step / 4) ** 2) for step in range(5)])
    assert steps(1, "linear") == [1.0] and steps(1) == [3.0]


def test_an_interval_is_over_what_is_still_to_come() -> None:
    assert steps(5, interval=(0.4, 0.8)) == [1.0, 3.0, 3.0, 1.0, 1.0]  # levels 1, 0.8, 0.6, 0.4, 0.2
    assert steps(4, "linear", (0.0, 0.5)) == pytest.approx([1.0, 1.0, 1 + 4 / 3, 3.0])


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 64, 576])
def test_a_part_of_the_steps_keeps_its_ends(num_steps: int) -> None:
    for start in range(0, num_steps, max(num_steps // 9, 1)):
        for stop in range(start + 1, num_steps + 1, max(num_steps // 9, 1)):
            interval = ((num_steps - stop) / num_steps, (num_steps - start) / num_steps)
            guided = [scale == 3.0 for scale in steps(num_steps, interval=interval)]
            assert guided == [start <= step < stop for step in range(num_steps)]


def test_steps_refuse_what_is_out_of_range() -> None:
    with pytest.raises(UserError, match="guidance_interval must be two numbers"):
        step_guidance(1.0, 5, interval=(0.5,))  # type: ignore[arg-type]
