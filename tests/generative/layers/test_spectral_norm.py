"""Spectral norm: the right value, the right state, the right gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from generative.layers.spectral_norm import SpectralNorm, SpectralNormConv2d, SpectralNormEmbedding, SpectralNormLinear


def converged(weight: torch.Tensor, num_singular_values: int = 1) -> SpectralNorm:
    norm = SpectralNorm(len(weight), num_singular_values=num_singular_values)
    with torch.no_grad():
        for _ in range(200):
            norm(weight)
    return norm


def test_converges_to_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 3, 2, 2)
    expected = torch.linalg.matrix_norm(weight.flatten(1), 2)
    norm = converged(weight)
    torch.testing.assert_close(norm.singular_values[0], expected)
    torch.testing.assert_close(norm(weight), weight / expected)


def test_tracks_further_singular_values() -> None:
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(5, 5))[0], torch.linalg.qr(torch.randn(7, 7))[0]
    weight = left @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])) @ right[:5]
    norm = converged(weight, num_singular_values=3)
    torch.testing.assert_close(norm.singular_values, torch.tensor([8.0, 4.0, 2.0]), rtol=1e-4, atol=1e-4)


def test_more_singular_values_than_dimensions_stay_finite() -> None:
    torch.manual_seed(0)
    norm = converged(torch.randn(1, 4), num_singular_values=3)
    assert norm.u.isfinite().all() and norm.singular_values.isfinite().all()


def test_eval_iterates_once_and_remembers_nothing() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 9)
    norm = SpectralNorm(4, num_iterations=5).eval()
    before = norm.u.clone()
    first, second = norm(weight), norm(weight)
    v = nn.functional.normalize(before @ weight, dim=1)
    sigma = (v @ weight.T).norm()  # u W v with u = normalised W v
    torch.testing.assert_close(first, weight / sigma)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(norm.u, before, rtol=0, atol=0)


def test_train_remembers_its_iteration() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 9)
    norm = SpectralNorm(4)
    before = norm.u.clone()
    norm(weight)
    v = nn.functional.normalize(before @ weight, dim=1)
    torch.testing.assert_close(norm.u, nn.functional.normalize(v @ weight.T, dim=1))


def test_gradient_differentiates_sigma_with_vectors_held() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6, requires_grad=True)
    cotangent = torch.randn(4, 6)
    norm = converged(weight.detach())
    norm(weight).mul(cotangent).sum().backward()
    sigma = norm.singular_values[0]
    u = norm.u[0]
    v = nn.functional.normalize(u @ weight.detach(), dim=0)
    inner = (cotangent * weight.detach()).sum()
    expected = cotangent / sigma - inner / sigma**2 * torch.outer(u, v)  # quotient rule
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep_right", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_memory_layout_changes_nothing(keep_right: bool, training: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, 4)
    norm = SpectralNorm(5, num_singular_values=2, num_inputs=24 if keep_right else None).train(training)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        copied, ours = copy.deepcopy(norm), weight.clone(memory_format=memory_format).requires_grad_()
        out = copied(ours)
        (out * weight.cos()).sum().backward()
        results.append([out.detach(), ours.grad, *copied.buffers()])
    assert len(results[0]) == (5 if keep_right else 4)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


def test_gradient_of_the_gradient() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    norm = SpectralNorm(3, num_inputs=8).double().eval()  # stored vectors stay as they are: a function of the weight alone
    assert torch.autograd.gradcheck(norm, (weight,))
    assert torch.autograd.gradgradcheck(norm, (weight,))


def test_odd_addresses_change_nothing() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 33)
    shifted = torch.empty(weight.numel() + 1)[1:].view_as(weight).copy_(weight)  # four bytes off
    norm = SpectralNorm(64).eval()
    assert shifted.data_ptr() % 64 and torch.equal(norm(weight), norm(shifted))


def test_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer = SpectralNormLinear(64, 32).eval()
    expected = layer.spectral_norm(layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.spectral_norm(layer.weight), expected, rtol=0, atol=0)
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layer", "sample", "shape"),
    [
        (SpectralNormConv2d(3, 5), torch.randn(2, 3, 4, 4), (2, 5, 4, 4)),
        (SpectralNormConv2d(3, 5, kernel_size=1, bias=False), torch.randn(2, 3, 4, 4), (2, 5, 4, 4)),
        (SpectralNormLinear(3, 5), torch.randn(2, 3), (2, 5)),
        (SpectralNormEmbedding(7, 5), torch.tensor([0, 6]), (2, 5)),
    ],
)
def test_layers_equal_plain_layers_with_a_normalised_weight(
    layer: nn.Module, sample: torch.Tensor, shape: tuple[int, ...]
) -> None:
    layer.eval()
    out = layer(sample)
    assert out.shape == shape
    weight = layer.spectral_norm(layer.weight)
    if isinstance(layer, SpectralNormConv2d):
        expected = nn.functional.conv2d(sample, weight, layer.bias, padding=weight.shape[-1] // 2)
    elif isinstance(layer, SpectralNormLinear):
        expected = sample @ weight.T + layer.bias
    else:
        expected = weight[sample]
    torch.testing.assert_close(out, expected)
