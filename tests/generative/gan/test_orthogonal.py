"""Orthogonal regularisation against autograd of the norm that the paper writes, and where it is applied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from generative.gan.orthogonal import add_orthogonal_gradient, orthogonal_gradient


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 2, 3, 3)])
def test_half_the_gradient_of_the_squared_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    products = weight.flatten(1) @ weight.flatten(1).T
    norm = (products * (1 - torch.eye(shape[0], dtype=torch.float64))).square().sum()
    (gradient,) = torch.autograd.grad(norm, weight)
    torch.testing.assert_close(orthogonal_gradient(weight), gradient / 2)


def test_two_filters_by_hand() -> None:
    """Rows (1, 0) and (1, 1) have dot product 1: each is pushed along the other, twice."""
    torch.testing.assert_close(
        orthogonal_gradient(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), torch.tensor([[2.0, 2.0], [2.0, 0.0]])
    )


def test_nothing_for_orthogonal_filters_of_any_length() -> None:
    assert orthogonal_gradient(torch.diag(torch.tensor([1.0, 3.0, 0.2]))).abs().max() == 0


def test_descent_makes_filters_orthogonal() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 6)
    for _ in range(300):
        weight = weight - 0.02 * orthogonal_gradient(weight)
    products = weight @ weight.T
    assert (products - products.diag().diag()).abs().max() < 1e-3


def test_low_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 64).bfloat16()
    expected = orthogonal_gradient(weight.float())
    with torch.autocast("cpu", torch.bfloat16):
        result = orthogonal_gradient(weight)
        full = orthogonal_gradient(weight.float())
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected.bfloat16()) and torch.equal(full, expected)


def test_added_to_matrices_that_have_a_gradient_only() -> None:
    torch.manual_seed(0)
    layer, unused = nn.Linear(4, 3), nn.Linear(4, 3)
    layer.weight.grad, layer.bias.grad = torch.ones(3, 4), torch.ones(3)
    add_orthogonal_gradient([*layer.parameters(), *unused.parameters()], 0.5)
    torch.testing.assert_close(layer.weight.grad, 1 + 0.5 * orthogonal_gradient(layer.weight))
    assert torch.equal(layer.bias.grad, torch.ones(3)) and unused.weight.grad is None
