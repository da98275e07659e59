"""Options of EDM2's training beyond those of the recorded file."""

from __future__ import annotations

from typing import Any

import pytest

from generative.convert import get_source
from generative.convert.diffusion.edm2_ema import official_training
from generative.core.errors import UserError


@pytest.mark.parametrize(
    ("options", "images", "rate"),
    [
        ({}, 0, 0.0),
        ({}, 5_000_000, 0.005),
        ({"rampup_Mimg": 0}, 0, 0.01),
        ({"ref_batches": 0}, 10**9, 0.01),
        ({"ref_batches": 0, "rampup_Mimg": 0}, 0, 0.01),
        ({"ref_batches": 1000, "batch": 1000, "rampup_Mimg": 0.5, "ref_lr": 0.02}, 250_000, 0.01),
        ({"ref_batches": 1000, "batch": 1000, "rampup_Mimg": 0.5, "ref_lr": 0.02}, 4_000_000, 0.01),
    ],
)
def test_learning_rates(options: dict[str, Any], images: int, rate: float) -> None:
    training = official_training(options)
    assert training.learning_rate * training.schedule.factor(images, 0, images) == pytest.approx(rate)


def test_averages() -> None:
    assert [profile.std for profile in official_training({"stds": [0.02, 0.2]}).averages] == [0.02, 0.2]
    constant = official_training({"halflife_Mimg": 1, "rampup_ratio": None}).traditional_average
    assert constant.decay(1000, 1000) == pytest.approx(0.5**0.001)
    assert official_training({}).traditional_average.decay(10**9, 10**6) == pytest.approx(0.5 ** (1 / 90))


def test_latents_of_another_mean_and_deviation() -> None:
    config = official_training(
        {"raw_mean": (1.0, -2.0), "raw_std": (2.0, 4.0), "final_mean": 3.0, "final_std": 0.25}
    ).latent_config
    for raw, mean, std, expected in ((1.0, *pick(config, 0), 3.0), (6.0, *pick(config, 1), 3.5), (3.0, *pick(config, 0), 3.25)):
        assert (raw - mean) * config["scaling_factor"] / std == pytest.approx(expected)


def pick(config: dict[str, Any], channel: int) -> tuple[float, float]:
    return config["latents_mean"][channel], config["latents_std"][channel]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 1}, "'warmup'"),
        ({"batch": 0}, "batch of NVlabs/edm2 must be a positive whole number, got 0"),
        ({"raw_std": [1.0]}, "must be as many"),
        ({"raw_std": [1.0, 1.0, 1.0, 0.0]}, "deviations above 0"),
        ({"raw_mean": "x"}, "must be a list of numbers"),
        ({"stds": [0.4]}, "above 0 and below 0.2887"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("edm2_ema").build(options)


def test_it_is_no_checkpoint() -> None:
    source = get_source("edm2_ema")
    assert source.recognise({}) is None
    with pytest.raises(UserError, match="makes no images itself"):
        source.pipeline({}, {})
