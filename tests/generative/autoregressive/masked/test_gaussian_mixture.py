"""Mixtures of Gaussians against torch.distributions: likelihood, mean, draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from generative.autoregressive.masked.gaussian_mixture import (
    GaussianMixture,
    initialize_mixture_bias,
    mixture_size,
    unpack_mixture,
)


def make(*shape: int, components: int = 4, dim: int = 5, rank: int = 2, seed: int = 0) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(dim, rank, generator=g)  # not orthogonal: the Gram matrix matters
    values = torch.randn(*shape, mixture_size(components, dim, rank), generator=g)
    return unpack_mixture(values, basis, components, min_scale=0.1)


def reference(mixture: GaussianMixture) -> MixtureSameFamily:
    means = mixture.center[..., None, :] + mixture.low_rank_means @ mixture.basis.T  # (..., K, D)
    scales = mixture.scales[..., None].expand_as(means)
    return MixtureSameFamily(Categorical(logits=mixture.logits), Independent(Normal(means, scales), 1))


@pytest.mark.parametrize(("components", "dim", "rank"), [(1, 1, 1), (4, 5, 2), (7, 3, 3)])
def test_likelihood_and_mean(components: int, dim: int, rank: int) -> None:
    mixture = make(2, 3, components=components, dim=dim, rank=rank)
    values = torch.randn(2, 3, dim) * 3
    torch.testing.assert_close(mixture.log_prob(values), reference(mixture).log_prob(values), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixture.mean, reference(mixture).mean, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_reference() -> None:
    values, basis = torch.randn(3, mixture_size(4, 5, 2)), torch.randn(5, 2)
    targets, grads = torch.randn(3, 5), []
    for ours in (True, False):
        leaves = [values.clone().requires_grad_(), basis.clone().requires_grad_()]
        mixture = unpack_mixture(*leaves, 4, 0.1)
        (mixture if ours else reference(mixture)).log_prob(targets).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_autocast_does_not_reach_the_distances() -> None:
    mixture, values = make(64), torch.randn(64, 5) * 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mixture.log_prob(values)
    torch.testing.assert_close(inside, mixture.log_prob(values))


def moments(mixture: GaussianMixture, count: int, **options: float) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    values, component = mixture.draw(torch.rand(count, generator=g), torch.randn(count, 5, generator=g), **options)
    return values.mean(0), values.var(0), component


def test_draws_follow_the_mixture() -> None:
    one = make(1)
    many = GaussianMixture(*(part.expand(40000, *part.shape[1:]) for part in (one.logits, one.center)), *repeated(one, 40000))
    mean, variance, component = moments(many, 40000)
    expected = reference(one)
    spread = expected.variance[0].sqrt().max().item()
    torch.testing.assert_close(mean, expected.mean[0], rtol=0, atol=5 * spread / math.sqrt(40000))
    torch.testing.assert_close(variance, expected.variance[0], rtol=0.05, atol=0)
    torch.testing.assert_close(component.bincount(minlength=4) / 40000, one.logits[0].softmax(0), rtol=0, atol=0.01)
    most_probable = int(one.logits.argmax())
    _, variance, component = moments(many, 40000, top_k=1, temperature=0.5)
    assert (component == most_probable).all()
    torch.testing.assert_close(variance, (0.5 * one.scales[0, most_probable]).square().expand(5), rtol=0.05, atol=0)
    _, _, component = moments(many, 40000, top_p=1e-6)
    assert (component == most_probable).all()


def repeated(one: GaussianMixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
    return one.low_rank_means.expand(count, -1, -1), one.scales.expand(count, -1), one.basis


def test_the_initial_mixture() -> None:
    bias = torch.full((mixture_size(6, 5, 2),), math.nan)
    initialize_mixture_bias(bias, 5, 6, 2)
    mixture = unpack_mixture(bias, torch.eye(5, 2), 6, 0.0)
    torch.testing.assert_close(mixture.scales, torch.ones(6))
    assert mixture.logits.abs().max() == 0 and mixture.center.abs().max() == 0
    assert mixture.low_rank_means.std() > 0.3


def test_scales_have_a_floor() -> None:
    values = torch.full((mixture_size(3, 2, 1),), -1e4)
    assert (unpack_mixture(values, torch.ones(2, 1), 3, 0.02).scales == 0.02).all()
