"""Learning-rate factors at given numbers of images, and that the trainer applies them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import pytest

from generative.core.errors import UserError
from generative.core.schedules import Constant, Cosine, InverseSqrt, Linear, LRSchedule, Step

TOTAL, BATCH = 1000, 10


def factors(schedule: LRSchedule, *images: int) -> list[float]:
    return [schedule.factor(seen, BATCH, TOTAL) for seen in images]


def test_constant() -> None:
    assert factors(Constant(), 0, 500, 990) == [1.0, 1.0, 1.0]


def test_warmup_counts_the_batch_itself() -> None:
    assert factors(Constant(warmup_images=100), 0, 40, 90, 100, 500) == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])


def test_cosine() -> None:
    assert factors(Cosine(), 0, 250, 500, 1000) == pytest.approx([1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.0], abs=1e-12)
    assert factors(Cosine(warmup_images=200, final=0.2), 100, 200, 600, 1000) == pytest.approx([0.55, 1.0, 0.6, 0.2])


def test_a_share_of_the_cosine() -> None:
    assert factors(Cosine(share=0.5), 0, 500, 1000) == pytest.approx([1.0, 0.5 + math.sqrt(0.5) / 2, 0.5])
    with pytest.raises(UserError, match=r"share must be in \(0, 1\], got 0"):
        Cosine(share=0.0)


def test_linear() -> None:
    assert factors(Linear(), 0, 250, 1000) == pytest.approx([1.0, 0.75, 0.0])
    assert factors(Linear(final=0.1, flat=0.5), 0, 500, 750, 1000) == pytest.approx([1.0, 1.0, 0.55, 0.1])


def test_inverse_square_root() -> None:
    assert factors(InverseSqrt(100), 0, 100, 400, 900) == pytest.approx([1.0, 1.0, 0.5, 1 / 3])
    assert factors(InverseSqrt(100, warmup_images=40), 0, 400) == pytest.approx([0.25, 0.5])


def test_a_schedule_does_not_depend_on_the_batch_size() -> None:
    assert Cosine().factor(500, 10, TOTAL) == Cosine().factor(500, 250, TOTAL)


def test_a_factor_never_leaves_the_unit_interval() -> None:
    for schedule in (Constant(50), Cosine(50), Linear(50, flat=0.3), InverseSqrt(100, 50)):
        assert all(0 <= factor <= 1 for factor in factors(schedule, *range(0, 1200, 7)))


def test_the_trainer_sets_the_rate_of_every_optimizer_and_starts_from_the_base_rate(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(toy.gan(), tmp_path, lr_schedule=Linear(), total_images=48)
    trainer.fit()
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [0.1 * (1 - step / 6) for step in range(6)]
    for name in ("generator", "discriminator"):
        assert [entry[f"lr/{name}"] for entry in entries] == pytest.approx(expected)


def test_step_multiplies_at_each_drop() -> None:
    schedule = Step([100, 200], rate=0.1, warmup_images=50)
    assert [schedule.factor(seen, 10, 300) for seen in (0, 40, 90, 100, 199, 200)] == pytest.approx([0.2, 1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant(-1), "warmup_images must not be negative, got -1"),
        (lambda: InverseSqrt(0), "reference_images must be positive, got 0"),
        (lambda: Linear(flat=1.0), "flat must be in"),
        (lambda: Step([100], rate=0.0), "rate must be in"),
    ],
)
def test_nonsense_is_refused(build: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()  # type: ignore[operator]
