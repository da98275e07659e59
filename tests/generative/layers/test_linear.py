"""oneDNN's products: torch's own results and gradients, on both sides of the threshold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from generative.layers import linear as module
from generative.layers.linear import Linear, OneDNNProduct, cast_weights, linear, multiply

needs_onednn = pytest.mark.skipif(not module.HAS_ONEDNN, reason="this CPU gains nothing from oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(64, 8, 24), (64, 24, 8), (1, 16, 4)])
def test_products_and_gradients_equal_torchs(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inner, generator=generator, requires_grad=True)
    weight = torch.randn(columns, inner, generator=generator, requires_grad=True)
    upstream = torch.randn(rows, columns, generator=generator)
    expected = F.linear(x, weight)
    ours = OneDNNProduct.apply(x, weight)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(multiply(x.detach(), weight.detach()), expected.detach())
    for got, wanted in zip(
        torch.autograd.grad(ours, (x, weight), upstream), torch.autograd.grad(expected, (x, weight), upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@needs_onednn
def test_large_products_of_float32_take_onednn_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(module, "multiply", lambda x, weight: calls.append(x.shape) or F.linear(x, weight))
    large, small = torch.ones(2, 64, 128), torch.ones(2, 2, 128)
    layer = Linear(128, 256)
    layer(large).sum().backward()
    assert len(calls) == 2 and layer.weight.grad.shape == (256, 128)  # the input asks for no gradient
    with torch.no_grad():
        layer(large)
    assert len(calls) == 3
    layer(small)
    Linear(128, 256).double()(large.double())
    Linear(128, 256).bfloat16()(large.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(large).dtype == torch.bfloat16
    assert len(calls) == 3


def test_a_layer_is_torchs_with_another_product() -> None:
    torch.manual_seed(0)
    ours = Linear(8, 6)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(8, 6, bias=False)
    assert list(ours.state_dict()) == ["weight"] and torch.equal(ours.weight, theirs.weight)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    assert linear(torch.ones(0, 8), ours.weight).shape == (0, 6)


def test_weights_are_cast_for_a_while() -> None:
    network = torch.nn.Sequential(torch.nn.RMSNorm(4), Linear(4, 3), torch.nn.Linear(3, 2)).requires_grad_(False)
    weights = [network[1].weight, network[2].weight]
    before = [weight.data_ptr() for weight in weights]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        expected = network(x)
        with pytest.raises(KeyError), cast_weights(network):
            assert all(weight.dtype == torch.bfloat16 for weight in weights) and network[0].weight.dtype == torch.float32
            torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
            raise KeyError
    with cast_weights(network):
        assert weights[0].dtype == torch.float32
    assert [weight.data_ptr() for weight in weights] == before and weights[0].dtype == torch.float32
