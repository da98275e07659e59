"""Averages against their closed forms, decay profiles against their formulas, buffers and modes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from generative.core.ema import (
    ConstantEMA,
    EMAProfile,
    EMASpec,
    HalfLifeEMA,
    PowerEMA,
    average_specs,
    exponent_to_std,
    start_average,
    std_to_exponent,
    update_average,
)
from generative.core.errors import UserError

BATCH = 8


class Scalar(nn.Module):
    """One weight, a floating-point and an integer buffer."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("moving", torch.tensor(value))
        self.register_buffer("count", torch.tensor(int(value)))


def average_of(values: list[float], profile: EMAProfile, buffers: str = "average") -> nn.Module:
    """Average a network that starts at 0 and has these values after each step."""
    network = Scalar()
    average = start_average(network)
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            network.weight.fill_(value)
            network.moving.fill_(value)
            network.count.fill_(int(value))
        update_average(average, network, profile.decay(step * BATCH, BATCH), buffers)
    return average


def weighted(values: list[float], betas: list[float], start: float = 0.0) -> float:
    """start * prod(beta) + sum_i value_i (1 - beta_i) prod_{j > i} beta_j"""
    total, tail = 0.0, 1.0
    for value, beta in zip(reversed(values), reversed(betas), strict=True):
        total += value * (1 - beta) * tail
        tail *= beta
    return total + start * tail


VALUES = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, -6.0]


def test_constant_decay() -> None:
    average = average_of(VALUES, ConstantEMA(0.9, warmup=False))
    assert average.weight.item() == pytest.approx(weighted(VALUES, [0.9] * 8), rel=1e-5)


def test_constant_decay_after_a_start() -> None:
    """Copied for the first three steps, averaged from there on."""
    average = average_of(VALUES, ConstantEMA(0.9, start_images=3 * BATCH, warmup=False))
    assert average.weight.item() == pytest.approx(weighted(VALUES[3:], [0.9] * 5, start=VALUES[2]), rel=1e-5)


def test_warmup_of_the_constant_decay() -> None:
    profile = ConstantEMA(0.9999)
    assert [profile.decay(n * BATCH, BATCH) for n in (1, 2, 90)] == pytest.approx([2 / 11, 3 / 12, 91 / 100])
    assert profile.decay(10**9, BATCH) == 0.9999
    late = ConstantEMA(0.9999, start_images=100 * BATCH)
    assert late.decay(100 * BATCH, BATCH) == 0.0
    assert late.decay(101 * BATCH, BATCH) == pytest.approx(2 / 11)


def test_half_life() -> None:
    """After one half-life of steps at 0, half is left of what the average was."""
    values = [1.0] + [0.0] * 5
    average = average_of(values, HalfLifeEMA(5 * BATCH, rampup_ratio=None))
    first = 1 - 0.5 ** (1 / 5)
    assert average.weight.item() == pytest.approx(first * 0.5, rel=1e-5)


def test_half_life_ramps_up_with_the_images_seen() -> None:
    profile = HalfLifeEMA(1000.0, rampup_ratio=0.05)
    assert profile.decay(4000, 100) == pytest.approx(0.5 ** (100 / 200))
    assert profile.decay(20_000, 100) == pytest.approx(0.5 ** (100 / 1000))
    assert profile.decay(10**7, 100) == pytest.approx(0.5 ** (100 / 1000))
    betas = [profile.decay(n * BATCH, BATCH) for n in range(1, 9)]
    assert average_of(VALUES, profile).weight.item() == pytest.approx(weighted(VALUES, betas), rel=1e-5)


def test_power_function_average() -> None:
    """The closed form is a sum weighted by (i / n)^(gamma + 1) - ((i - 1) / n)^(gamma + 1)."""
    gamma = 6.94
    shares = [(i / 8) ** (gamma + 1) - ((i - 1) / 8) ** (gamma + 1) for i in range(1, 9)]
    expected = sum(share * value for share, value in zip(shares, VALUES, strict=True))
    assert average_of(VALUES, PowerEMA(gamma)).weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.7198), (0.015, 63.659)])
def test_relative_standard_deviations(std: float, exponent: float) -> None:
    """The published pairs; and the deviation is that of the profile itself, by quadrature."""
    assert std_to_exponent(std) == pytest.approx(exponent, rel=1e-3)
    assert exponent_to_std(std_to_exponent(std)) == pytest.approx(std, rel=1e-9)
    times = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    profile = times ** std_to_exponent(std)
    profile /= profile.sum()
    mean = (profile * times).sum()
    assert (profile * (times - mean) ** 2).sum().sqrt().item() == pytest.approx(std, rel=1e-4)
    assert PowerEMA(std=std).exponent == std_to_exponent(std) and PowerEMA(exponent).std == pytest.approx(std, rel=1e-3)


def test_names_of_several_averages() -> None:
    assert average_specs("net", None) == {}
    one = HalfLifeEMA(500_000)
    assert average_specs("net", one) == average_specs("net", [one]) == {"net": EMASpec("net", one)}
    several = average_specs("net", [PowerEMA(std=0.05), PowerEMA(std=0.1), ConstantEMA(0.9999), one], "average")
    assert list(several) == ["net", "net-std-0.1", "net-rate-0.9999", "net-halflife-500000"]
    assert {(spec.network, spec.buffers) for spec in several.values()} == {("net", "average")}


def test_buffers() -> None:
    betas = [0.9] * 8
    copied = average_of(VALUES, ConstantEMA(0.9, warmup=False), "copy")
    assert copied.moving.item() == VALUES[-1] and copied.count.item() == int(VALUES[-1])
    averaged = average_of(VALUES, ConstantEMA(0.9, warmup=False), "average")
    assert averaged.moving.item() == pytest.approx(weighted(VALUES, betas), rel=1e-5)
    assert averaged.count.item() == int(VALUES[-1])


def test_an_average_is_an_own_frozen_copy_in_eval_mode() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    average = start_average(network)
    assert not average.training and not average[1].training and network.training
    assert not any(p.requires_grad for p in average.parameters()) and all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        network[0].weight.zero_()
    assert average[0].weight.abs().sum() > 0


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_the_trainer_averages_weights_and_statistics(toy: ModuleType, tmp_path: Path, buffers: str) -> None:
    """Against the recursion written out, over a run of two names for one network."""
    objective = toy.denoiser(ema=ConstantEMA(0.5, warmup=False), ema_buffers=buffers)
    objective.ema["slow"] = EMASpec("net", HalfLifeEMA(100.0, rampup_ratio=None), buffers)
    trainer = toy.build_trainer(objective, tmp_path, checkpoint_interval_steps=None)
    net = objective.networks["net"]
    betas = {"net": 0.5, "slow": 0.5 ** (8 / 100)}
    expected = {name: {key: value.double() for key, value in net.state_dict().items()} for name in betas}

    batches = iter(toy.ToyImages().images(range(24)).float().div(127.5).sub(1).split(8))
    for images in batches:
        trainer.train_step([[{"images": images, "class_labels": torch.arange(8) % 3}]])
        for name, beta in betas.items():
            for key, value in net.state_dict().items():
                is_parameter = key in dict(net.named_parameters())
                if is_parameter or (buffers == "average" and value.is_floating_point()):
                    expected[name][key] = beta * expected[name][key] + (1 - beta) * value.double()
                else:
                    expected[name][key] = value.double()
    for name, state in expected.items():
        ours = trainer.averages[name].state_dict()
        for key, value in state.items():
            torch.testing.assert_close(ours[key].double(), value, rtol=1e-5, atol=1e-6)
        assert not trainer.averages[name].training
    assert not torch.equal(net.norm.running_mean, expected["slow"]["norm.running_mean"].float()) or buffers == "copy"


def test_the_pipeline_samples_from_the_average(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(toy.denoiser(), tmp_path)
    trainer.fit()
    pipeline = trainer.sampling_pipeline()
    assert not pipeline.network.training
    assert torch.equal(pipeline.network.last.weight, trainer.averages["net"].last.weight)
    assert not torch.equal(pipeline.network.last.weight, trainer.objective.networks["net"].last.weight)
    without = toy.build_trainer(toy.denoiser(ema=None), tmp_path / "without")
    without.fit()
    assert torch.equal(without.sampling_pipeline().network.last.weight, without.objective.networks["net"].last.weight)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantEMA(1.0), "rate must be in"),
        (lambda: ConstantEMA(-0.1), "rate must be in"),
        (lambda: HalfLifeEMA(0), "halflife_images must be positive, got 0"),
        (lambda: HalfLifeEMA(10, rampup_ratio=0.0), "rampup_ratio must be positive"),
        (lambda: PowerEMA(0), "exponent must be positive, got 0"),
        (lambda: PowerEMA(3.0, std=0.1), "give one of them"),
        (lambda: PowerEMA(std=0.0), "must be above 0 and below 0.2887, got 0.0"),
        (lambda: PowerEMA(std=0.29), "must be above 0 and below 0.2887, got 0.29"),
        (lambda: average_specs("net", []), "ema of 'net' is an empty list"),
        (lambda: average_specs("net", [PowerEMA(std=0.1), PowerEMA(std=0.1)]), "lists std-0.1 twice"),
    ],
)
def test_nonsense_is_refused(build: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()  # type: ignore[operator]
