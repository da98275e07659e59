"""Norms whose parameters depend on the time, and rotary positions of learned frequencies."""

from __future__ import annotations

import math

import pytest
import torch

from generative.layers.axial_rope import AxialRoPE, QKNorm, axial_positions
from generative.layers.time_dependent import TimeDependentParameter, make_norm


def test_a_parameter_goes_from_one_value_to_another_with_time() -> None:
    parameter = TimeDependentParameter(2, 1.0)
    with torch.no_grad():
        parameter.high.copy_(torch.tensor([3.0, 1.0]))
    values = parameter(torch.tensor([-50.0, 0.0, 50.0]))
    torch.testing.assert_close(values, torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]))


@pytest.mark.parametrize("kind", ["td_layer_norm", "rms_norm", "td_rms_norm", "ada_rms_norm"])
@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 3, 4, 8)])
def test_a_fresh_norm_normalises_whatever_the_time(kind: str, shape: tuple[int, ...]) -> None:
    norm, x = make_norm(kind, 8), 3 * torch.randn(shape)  # type: ignore[arg-type]
    normed = norm(x, torch.tensor([-1.0, 1.0]))
    assert normed.shape == x.shape
    if kind == "td_layer_norm":
        torch.testing.assert_close(normed.mean(-1), torch.zeros(shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(shape[:-1]), rtol=1e-3, atol=0)
    assert not norm(torch.zeros(shape), torch.zeros(2)).isnan().any()


def test_rotations_tell_places_apart_by_their_difference_only() -> None:
    rope, places = AxialRoPE(10, 2), axial_positions(3, 3, torch.device("cpu"))
    query, key = torch.randn(1, 2, 1, 10), torch.randn(1, 2, 1, 10)
    products = (rope(query.expand(1, 2, 9, 10), places) @ rope(key.expand(1, 2, 9, 10), places).mT).reshape(2, 3, 3, 3, 3)
    torch.testing.assert_close(products[:, 0, 1, 1, 2], products[:, 1, 0, 2, 1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(products[:, 0, 1, 1, 2], products[:, 0, 1, 2, 1])
    torch.testing.assert_close(rope(query, places[4:5]), query)  # the middle
    torch.testing.assert_close(places[0], torch.tensor([-2 / 3, -2 / 3]))
    torch.testing.assert_close(axial_positions(1, 4, torch.device("cpu"))[:, 0], torch.zeros(4))


def test_the_scale_of_queries_and_keys_is_capped_and_can_come_down_again() -> None:
    norm, x = QKNorm(1), torch.randn(1, 1, 3, 4)
    with torch.no_grad():
        norm.scale.fill_(math.log(1e4))
    product = norm(x).square().sum(-1) / 2  # with attention's factor 4^-0.5
    torch.testing.assert_close(product, torch.full((1, 1, 3), 100.0), rtol=1e-3, atol=0)
    product.sum().backward()
    assert norm.scale.grad is not None and float(norm.scale.grad) > 0
