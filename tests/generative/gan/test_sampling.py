"""Truncated noise and the one-step scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import kstest, norm, truncnorm
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.seeding import ImageNoise, keyed_generator
from generative.gan.sampling import (
    TruncationLaw,
    check_truncation,
    check_truncation_law,
    draw_z,
    generator_options,
    image_z,
    take_standing_statistics,
    truncated_normal,
)
from generative.layers.batch_norm import BatchNorm2d


@pytest.mark.parametrize("threshold", [0.3, 1.0, 3.0])
def test_truncated_normal_has_the_distribution_of_redrawing(threshold: float) -> None:
    values = truncated_normal(torch.rand(20_000, generator=keyed_generator(0)), threshold).double().numpy()
    assert abs(values).max() <= threshold
    assert kstest(values, truncnorm(-threshold, threshold).cdf).pvalue > 1e-3


def test_truncated_normal_at_the_ends_of_the_unit_interval() -> None:
    # The normal distribution has no mass out there in float64.
    values = truncated_normal(torch.tensor([0.0, 0.5, 1 - 2**-24]), 50.0)
    assert values.isfinite().all() and values[1] == 0
    assert truncated_normal(torch.tensor([0.0]), 0.5).item() == pytest.approx(-0.5)


def test_image_noise_does_not_depend_on_the_batch() -> None:
    def generators() -> list[torch.Generator]:
        return [keyed_generator(index) for index in range(3)]

    for truncation in (None, 0.7):
        together = image_z(ImageNoise(generators()), 5, truncation)
        alone = [image_z(ImageNoise([generator]), 5, truncation) for generator in generators()]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


def test_draw_z_follows_its_generator() -> None:
    assert torch.equal(draw_z(2, 3, keyed_generator(4)), draw_z(2, 3, keyed_generator(4)))
    assert draw_z(100, 3, keyed_generator(4), truncation=0.5).abs().max() <= 0.5


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        ("truncated", truncnorm(-0.5, 0.5).cdf),
        ("scaled_truncated", truncnorm(-2, 2, scale=0.5).cdf),
        ("scaled", norm(scale=0.5).cdf),
    ],
)
def test_three_distributions(law: TruncationLaw, cdf: Any) -> None:
    values = draw_z(200, 100, keyed_generator(3), 0.5, law)
    assert kstest(values.flatten().double().numpy(), cdf).pvalue > 1e-3
    noise = ImageNoise([keyed_generator(3)])
    assert torch.equal(image_z(noise, 7, 0.5, law)[0], draw_z(1, 7, keyed_generator(3), 0.5, law)[0])
    # Without a truncation there is one distribution.
    assert torch.equal(draw_z(2, 3, keyed_generator(4), None, law), draw_z(2, 3, keyed_generator(4)))


def test_noise_is_what_it_was_before_truncation_had_options() -> None:
    """First numbers of two images' noise, written down when pipelines had one distribution only."""
    for truncation, expected in ((None, [-0.6176987, 0.0151801, 1.7024341]), (0.5, [0.1804778, 0.3884019, -0.2208960])):
        noise = ImageNoise([keyed_generator(0, "sample", 0, 0)])
        torch.testing.assert_close(image_z(noise, 6, truncation)[0, :3], torch.tensor(expected), rtol=0, atol=1e-6)


def test_unknown_law() -> None:
    with pytest.raises(UserError, match="truncation_law must be one of truncated, scaled_truncated, scaled, got 'cut'"):
        check_truncation_law("cut")


class Noisy(nn.Module):
    """A generator with batch norm whose statistics tell what it was fed: noise vector plus one noise map, times class + 1."""

    z_dim = 4
    num_classes = 2
    noise_shapes = ((1, 2, 2),)

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = BatchNorm2d(channels)

    def forward(self, z: Tensor, class_labels: Tensor, noise: list[Tensor]) -> Tensor:
        return self.norm(z.reshape(-1, 1, 2, 2) + 0 * noise[0] * class_labels[:, None, None, None] * self.weight)


@pytest.mark.parametrize(("law", "deviation"), [("truncated", truncnorm(-1, 1).std()), ("scaled", 1.0)])
def test_standing_statistics_are_those_of_the_noise(law: TruncationLaw, deviation: float) -> None:
    network = Noisy()
    take_standing_statistics(network, 20, 64, keyed_generator(0), 1.0, law)
    assert not network.training and network.norm.momentum == 0.1
    assert network.norm.running_var.sqrt().item() == pytest.approx(deviation, rel=0.03)
    again = Noisy()
    again.norm.running_var.fill_(17.0)  # what was there before is of no account
    take_standing_statistics(again, 20, 64, keyed_generator(0), 1.0, law)
    assert torch.equal(again.norm.running_var, network.norm.running_var)


def test_standing_statistics_that_cannot_be_taken() -> None:
    plain = nn.Linear(1, 1)
    with pytest.raises(UserError, match="Linear has no batch norm to take statistics of"):
        take_standing_statistics(plain, 1, 1, keyed_generator(0))
    network = Noisy()
    network.num_statistics = 51  # type: ignore[assignment]
    with pytest.raises(UserError, match="Noisy brings batch-norm statistics for each truncation"):
        take_standing_statistics(network, 1, 1, keyed_generator(0))


def test_a_generator_gets_what_it_takes() -> None:
    maps = [torch.zeros(1)]
    assert generator_options(nn.Linear(1, 1), (), 0.5) == {}
    assert generator_options(Noisy(), maps, 0.5) == {"noise": maps}
    network = nn.Linear(1, 1)
    network.num_statistics = 51  # type: ignore[assignment]
    assert generator_options(network, (), 0.5) == {"truncation": 0.5}
    network.num_statistics = 1  # type: ignore[assignment]
    assert generator_options(network, (), 0.5) == {}


@pytest.mark.parametrize("truncation", [0, -1.0, float("nan"), "much"])
def test_wrong_truncation_is_told(truncation: object) -> None:
    with pytest.raises(UserError, match="truncation must be a positive threshold"):
        check_truncation(truncation)  # type: ignore[arg-type]
