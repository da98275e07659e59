"""Adversarial losses by hand on two logits, on several heads, and in the direction that each side pulls."""

from __future__ import annotations

import math

import pytest
import torch

from generative.gan.losses import ADVERSARIAL_LOSSES

REAL, FAKE = torch.tensor([0.5, 3.0]), torch.tensor([-0.25, -2.0])
REAL_MEAN, FAKE_MEAN = 1.75, -1.125


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("hinge", (0.5 + 0.0) / 2 + (0.75 + 0.0) / 2, 1.125),
        (
            "non_saturating",
            (softplus(-0.5) + softplus(-3.0)) / 2 + (softplus(-0.25) + softplus(-2.0)) / 2,
            (softplus(0.25) + softplus(2.0)) / 2,
        ),
        ("wasserstein", -1.125 - 1.75, 1.125),
        ("least_squares", 0.5 * (0.25 + 4.0) / 2 + 0.5 * (0.0625 + 4.0) / 2, 0.5 * (1.25**2 + 9.0) / 2),
        ("relativistic", (softplus(-0.75) + softplus(-5.0)) / 2, (softplus(0.75) + softplus(5.0)) / 2),
        (
            "relativistic_average",
            (softplus(FAKE_MEAN - 0.5) + softplus(FAKE_MEAN - 3.0)) / 2
            + (softplus(-0.25 - REAL_MEAN) + softplus(-2 - REAL_MEAN)) / 2,
            (softplus(REAL_MEAN + 0.25) + softplus(REAL_MEAN + 2)) / 2
            + (softplus(0.5 - FAKE_MEAN) + softplus(3 - FAKE_MEAN)) / 2,
        ),
        (
            "relativistic_average_least_squares",
            ((0.5 - FAKE_MEAN - 1) ** 2 + (3.0 - FAKE_MEAN - 1) ** 2) / 2
            + ((-0.25 - REAL_MEAN + 1) ** 2 + (-2.0 - REAL_MEAN + 1) ** 2) / 2,
            ((-0.25 - REAL_MEAN - 1) ** 2 + (-2.0 - REAL_MEAN - 1) ** 2) / 2
            + ((0.5 - FAKE_MEAN + 1) ** 2 + (3.0 - FAKE_MEAN + 1) ** 2) / 2,
        ),
    ],
)
def test_values_by_hand(name: str, discriminator: float, generator: float) -> None:
    pair = ADVERSARIAL_LOSSES[name]
    assert pair.discriminator(REAL, FAKE).item() == pytest.approx(discriminator, rel=1e-5)
    real = REAL if pair.needs_real else None
    assert pair.generator(FAKE, real).item() == pytest.approx(generator, rel=1e-5)


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_each_side_pulls_its_own_way(name: str) -> None:
    """The discriminator raises real and lowers fake logits, the generator raises fake ones: swapped arguments would show."""
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    pair = ADVERSARIAL_LOSSES[name]
    (pair.discriminator(real, fake + 0.5)).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    pair.generator(fake, real.detach() if pair.needs_real else None).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_several_heads_are_one_mean_over_all_logits(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 4, 6, generator=generator)
    pair = ADVERSARIAL_LOSSES[name]
    torch.testing.assert_close(pair.discriminator(real, fake), pair.discriminator(real.flatten(), fake.flatten()))
    torch.testing.assert_close(pair.generator(fake, real), pair.generator(fake.flatten(), real.flatten()))


@pytest.mark.parametrize("name", [name for name, pair in ADVERSARIAL_LOSSES.items() if pair.needs_real])
def test_a_relativistic_generator_refuses_logits_that_do_not_pair(name: str) -> None:
    for real in (None, REAL[:1]):
        with pytest.raises(ValueError, match="as many real as generated logits"):
            ADVERSARIAL_LOSSES[name].generator(FAKE, real)


def test_only_differences_of_logits_matter_where_a_game_says_so() -> None:
    for name, pair in ADVERSARIAL_LOSSES.items():
        shifted = pair.discriminator(REAL + 0.7, FAKE + 0.7)
        assert torch.allclose(shifted, pair.discriminator(REAL, FAKE)) == pair.is_shift_invariant, name
