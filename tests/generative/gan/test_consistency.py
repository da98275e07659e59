"""Consistency regularisation: its augmentations, its terms by hand, and which network each term reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.seeding import keyed_generator
from generative.gan.consistency import Consistency, consistency_penalty, diversity_penalty, flip, move, shift
from generative.gan.penalties import PenaltyInputs

SIDE = 8
IMAGES = torch.rand(4, 3, SIDE, SIDE, generator=keyed_generator("images")) * 2 - 1


def make_inputs(seed: int = 0, slope: Tensor | None = None, gain: Tensor | None = None) -> PenaltyInputs:
    """A discriminator that weighs columns (a flip or a shift changes its mind), and a generator that is linear in its noise."""
    ramp = torch.linspace(0, 1, SIDE) * (1.0 if slope is None else slope)
    z = torch.randn(4, 1, generator=keyed_generator("z"))

    def generate(z: Tensor, class_labels: Tensor) -> Tensor:
        return (z * (1.0 if gain is None else gain)).view(-1, 1, 1, 1) * torch.ones(1, 3, SIDE, SIDE)

    def discriminate(images: Tensor, class_labels: Tensor) -> Tensor:
        return (images * ramp).sum((1, 2, 3)) + class_labels

    labels = torch.arange(4)
    return PenaltyInputs(
        real=IMAGES,
        real_labels=labels,
        fake=generate(z, labels),
        fake_labels=labels + 4,
        z=z,
        generate=generate,
        discriminate=discriminate,
        discriminate_augmented=lambda images, class_labels: torch.full((len(images),), torch.nan),
        random=keyed_generator(seed),
    )


def test_pure_functions_by_hand() -> None:
    assert consistency_penalty(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])).item() == 5.0
    assert diversity_penalty(torch.zeros(2, 3, 1, 1), torch.full((2, 3, 1, 1), 0.5)).item() == -0.25


def test_flip_and_shift_move_pixels_and_mirror_the_rest() -> None:
    image = torch.arange(4.0).repeat(2, 3, 4, 1)  # columns 0 1 2 3
    assert flip(image, torch.tensor([True, False]))[:, 0, 0].tolist() == [[3, 2, 1, 0], [0, 1, 2, 3]]
    assert shift(image, torch.tensor([[0, 1], [0, -2]]))[:, 0, 0].tolist() == [[1, 2, 3, 2], [2, 1, 0, 1]]
    rows = image.transpose(2, 3)
    assert shift(rows, torch.tensor([[1, 0], [0, 3]]))[:, 0, :, 0].tolist() == [[1, 2, 3, 2], [0, 1, 2, 3]]


def test_draws_reach_an_eighth_of_the_size_and_flip_half() -> None:
    images = torch.arange(16.0).expand(400, 3, 16, 16)
    first = move(images, ("shift",), keyed_generator(1))[:, 0, 0]
    assert set((first[:, 8] - 8).tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    flipped = move(images, ("flip",), keyed_generator(2))[:, 0, 0, 0] == 15
    assert 0.4 < flipped.float().mean() < 0.6


@pytest.mark.parametrize("policy", [("flip",), ("shift",), ("color",), ("translation", "cutout")])
def test_moves_are_functions_of_the_generator(policy: Any) -> None:
    first, again, other = (move(IMAGES, policy, keyed_generator(seed)) for seed in (3, 3, 5))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.shape == IMAGES.shape


def test_terms_by_hand() -> None:
    inputs = make_inputs()
    losses = Consistency(weight=10.0, fake_weight=4.0, policy=("flip",)).losses(inputs)
    random = keyed_generator(0)
    expected = []
    for images, labels in ((inputs.real, inputs.real_labels), (inputs.fake, inputs.fake_labels)):
        moved = move(images, ("flip",), random)
        expected.append((inputs.discriminate(images, labels) - inputs.discriminate(moved, labels)).square().mean())
    torch.testing.assert_close(losses["real"], expected[0])
    torch.testing.assert_close(losses["loss"], 10 * expected[0] + 4 * expected[1])
    assert set(losses) == {"loss", "real", "fake"} and expected[0] > 0


def test_noise_terms_by_hand() -> None:
    """D(G(z)) is z times a constant, so the change of logits is the change of noise times it."""
    inputs = make_inputs()
    losses = Consistency(weight=0.0, latent_weight=5.0, diversity_weight=0.5, latent_noise=0.1).losses(inputs)
    change = 0.1 * torch.randn(4, 1, generator=keyed_generator(0))
    factor = 3 * SIDE * torch.linspace(0, 1, SIDE).sum()
    torch.testing.assert_close(losses["loss"], 5 * (change * factor).square().mean(), rtol=1e-4, atol=0)
    side = Consistency(weight=0.0, latent_weight=5.0, diversity_weight=0.5, latent_noise=0.1).generator_losses(make_inputs())
    torch.testing.assert_close(side["loss"], -0.5 * change.square().mean())
    assert Consistency().generator_losses(inputs) == {}


def test_each_side_reaches_its_own_network_only() -> None:
    penalty = Consistency(weight=1.0, fake_weight=1.0, latent_weight=1.0, diversity_weight=1.0)
    slope, gain = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    inputs = make_inputs(slope=slope, gain=gain)
    detached = PenaltyInputs(**{**inputs.__dict__, "fake": inputs.fake.detach()})
    penalty.losses(detached)["loss"].backward()
    assert slope.grad is not None and slope.grad > 0 and gain.grad is None
    slope.grad = None
    penalty.generator_losses(inputs)["loss"].backward()
    assert slope.grad is None and gain.grad is not None and gain.grad < 0  # descent moves images apart


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "Consistency weight must be at least 0, got -1.0"),
        ({"fake_weight": -1.0}, "Consistency fake_weight must be at least 0"),
        ({"latent_noise": float("nan")}, "Consistency latent_noise must be at least 0, got nan"),
        ({"policy": ("flop",)}, "Consistency policy must name some of flip, shift, color, .*, got 'flop'"),
        ({"policy": ()}, "got 'none'"),
        ({"diversity_weight": 0.5}, "diversity_weight 0.5 is half of zCR only; set latent_weight"),
        ({"interval": 0}, "Consistency interval must be at least 1"),
    ],
)
def test_wrong_arguments_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Consistency(**options)


def test_active_with_any_of_the_discriminator_s_weights() -> None:
    assert Consistency().is_active and Consistency(weight=0.0, latent_weight=1.0).is_active
    assert not Consistency(weight=0.0).is_active
