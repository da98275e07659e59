"""Gradient penalties on functions whose gradient is known, against finite differences, and their weights and intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.seeding import keyed_generator
from generative.gan.penalties import (
    R1,
    R2,
    GradientPenalty,
    Penalty,
    PenaltyInputs,
    add_losses,
    interpolated_gradient_penalty,
    squared_gradient_norm,
)


def random_images(*key: int | str, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 4, generator=keyed_generator(*key), dtype=torch.float64)


def smooth_network(num_logits: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, num_logits or 1)).double()
    return network if num_logits else nn.Sequential(network, nn.Flatten(0))


def make_inputs(discriminate: Callable[[Tensor, Tensor], Tensor]) -> PenaltyInputs:
    labels = torch.arange(2)
    return PenaltyInputs(
        real=random_images("real"),
        real_labels=labels,
        fake=random_images("fake"),
        fake_labels=labels + 2,
        z=torch.zeros(2, 3),
        generate=lambda z, class_labels: random_images("generated"),
        discriminate=lambda images, class_labels: torch.full((2,), torch.nan),
        discriminate_augmented=discriminate,
        random=keyed_generator("penalty"),
    )


def gradient_by_differences(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """(B, 3, H, W) gradient of the sum of each image's logits, by central differences."""
    gradient = torch.zeros_like(images)
    for index in range(images[0].numel()):
        step = torch.zeros_like(images)
        step.flatten(1)[:, index] = 1e-5
        rise = function(images + step) - function(images - step)
        gradient.flatten(1)[:, index] = rise.reshape(len(images), -1).sum(1) / 2e-5
    return gradient


def test_squared_gradient_norm_of_a_linear_function() -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4, requires_grad=True)
    penalty = squared_gradient_norm((images * weight).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, weight.detach().square().sum().expand(2))
    penalty.sum().backward()
    torch.testing.assert_close(weight.grad, 4 * weight.detach())


@pytest.mark.parametrize("num_logits", [None, 3])
def test_gradients_against_finite_differences(num_logits: int | None) -> None:
    network, real, fake = smooth_network(num_logits), random_images("real"), random_images("fake")
    images = real.clone().requires_grad_(True)
    expected = gradient_by_differences(network, real).square().sum((1, 2, 3))
    torch.testing.assert_close(squared_gradient_norm(network(images), images), expected, rtol=1e-5, atol=1e-8)
    alpha = torch.tensor([[0.25], [0.8]], dtype=torch.float64)
    mixed = alpha.view(2, 1, 1, 1) * real + (1 - alpha.view(2, 1, 1, 1)) * fake
    norm = gradient_by_differences(network, mixed).square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(
        interpolated_gradient_penalty(network, real, fake, alpha), (norm - 1).square(), rtol=1e-5, atol=1e-8
    )


def test_penalties_reach_the_weights_by_the_second_derivative() -> None:
    network = smooth_network()
    weight = network[0][1].weight

    def penalty() -> Tensor:
        return interpolated_gradient_penalty(network, random_images("real"), random_images("fake"), torch.full((2, 1), 0.5)).sum()

    (gradient,) = torch.autograd.grad(penalty(), weight)
    with torch.no_grad():
        weight[2, 5] += 1e-5
    high = penalty()
    with torch.no_grad():
        weight[2, 5] -= 2e-5
    assert gradient[2, 5].item() == pytest.approx((high - penalty()).item() / 2e-5, rel=1e-4)


def test_gradient_penalty_of_linear_critics() -> None:
    """Slope k everywhere: the penalty is (k - 1)^2, whatever alpha."""
    for slope in (0.0, 1.0, 3.0):
        direction = torch.full((3, 4, 4), slope / 48**0.5, dtype=torch.float64)
        value = interpolated_gradient_penalty(
            lambda images, direction=direction: (images * direction).sum((1, 2, 3)),
            random_images(0),
            random_images(1),
            torch.rand(2, 1),
        )
        torch.testing.assert_close(value, torch.full((2,), (slope - 1) ** 2, dtype=torch.float64))


def test_the_weight_one_shows_the_real_image() -> None:
    seen: list[Tensor] = []
    real, fake = random_images(0), random_images(1)

    def critic(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.sum((1, 2, 3))

    interpolated_gradient_penalty(critic, real, fake, torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(seen[0], torch.stack([real[0], fake[1]]))


def quadratic(images: Tensor, class_labels: Tensor) -> Tensor:
    """Gradient (1 + label) x: every penalty's images and labels show in its value."""
    return 0.5 * (1 + class_labels) * images.square().sum((1, 2, 3))


@pytest.mark.parametrize(("kind", "side", "labels"), [(R1, "real", [0, 1]), (R2, "fake", [2, 3])])
def test_r1_and_r2_by_hand(kind: type[Penalty], side: str, labels: list[int]) -> None:
    inputs = make_inputs(quadratic)
    losses = kind(weight=3.0, interval=5).losses(inputs)
    squares = getattr(inputs, side).square().sum((1, 2, 3))
    expected = (squares * (1 + torch.tensor(labels)).square()).mean()
    torch.testing.assert_close(losses["penalty"], expected)
    torch.testing.assert_close(losses["loss"], 1.5 * expected)  # the interval is the objective's business


def test_gradient_penalty_by_hand() -> None:
    inputs = make_inputs(quadratic)
    losses = GradientPenalty().losses(inputs)
    alpha = torch.rand((2, 1), generator=keyed_generator("penalty")).double().view(2, 1, 1, 1)
    mixed = alpha * inputs.real + (1 - alpha) * inputs.fake
    norm = mixed.flatten(1).norm(dim=1) * (1 + inputs.real_labels)
    torch.testing.assert_close(losses["loss"], 10 * (norm - 1).square().mean())


def test_a_penalty_of_a_compiled_network() -> None:
    """A compiled graph cannot be differentiated twice: the penalty runs it eagerly, without telling it to be compiled anew."""
    network = smooth_network()
    calls = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    expected = R1(1.0).losses(make_inputs(lambda images, class_labels: network(images)))["loss"]
    network.compile(backend=backend)
    torch.testing.assert_close(R1(1.0).losses(make_inputs(lambda images, class_labels: network(images)))["loss"], expected)
    assert calls == []


def test_values_to_log_get_the_penalty_s_name() -> None:
    losses = {"loss": torch.tensor(1.0)}
    add_losses(losses, {"loss": torch.tensor(2.0), "penalty": torch.tensor(5.0)}, "r1")
    assert {name: value.item() for name, value in losses.items()} == {"loss": 3.0, "r1_penalty": 5.0}


@pytest.mark.parametrize("kind", [R1, R2, GradientPenalty])
def test_wrong_arguments_are_told(kind: type[Any]) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__} weight must be at least 0, got -1.0"):
        kind(weight=-1.0)
    with pytest.raises(UserError, match=f"{kind.__name__} weight must be at least 0, got nan"):
        kind(weight=float("nan"))
    with pytest.raises(UserError, match=f"{kind.__name__} interval must be at least 1, got 0"):
        kind(weight=1.0, interval=0)
    assert not kind(weight=0.0).is_active and kind(weight=0.1).is_active
