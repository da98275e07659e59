"""Mixtures of isotropic Gaussians whose means differ within a shared low-rank space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.autoregressive.token_sampling import sample_tokens


@dataclass
class GaussianMixture:
    """p(z) = sum_k pi_k N(z; c + W m_k, s_k^2 I) over vectors of D values, with K components and m_k of R <= D values.

    With low-rank means a distance costs K R rather than K D: |z - c - W m|^2 = |e|^2 - 2 (W^T e) m + m^T W^T W m with e = z - c.

    Attributes:
        logits: (..., K) float32, of the weights pi.
        center: (..., D), c.
        low_rank_means: (..., K, R), m.
        scales: (..., K) positive, s.
        basis: (D, R), W.
    """

    logits: Tensor
    center: Tensor
    low_rank_means: Tensor
    scales: Tensor
    basis: Tensor

    @property
    def mean(self) -> Tensor:
        """E[z], (..., D)."""
        weights = self.logits.softmax(dim=-1)[..., None]  # (..., K, 1)
        return self.center + (weights * self.low_rank_means).sum(dim=-2) @ self.basis.T

    def square_distances(self, values: Tensor) -> Tensor:
        """Squared distances (..., K) of vectors (..., D) to all means, at least 0."""
        offset = values - self.center  # (..., D)
        means = self.low_rank_means
        with torch.autocast(offset.device.type, enabled=False):  # differences of large numbers
            projected = (offset @ self.basis)[..., None, :]  # (..., 1, R)
            square_norms = (means @ (self.basis.T @ self.basis) * means).sum(-1)  # (..., K)
        crossed = (projected * means).sum(-1)  # (..., K)
        return (offset.square().sum(-1, keepdim=True) - 2 * crossed + square_norms).clamp(min=0)

    def log_prob(self, values: Tensor) -> Tensor:
        """Log-density of vectors.

        Args:
            values: (..., D) float32.

        Returns:
            (...), in nats.
        """
        dim = values.shape[-1]
        exponents = -0.5 * self.square_distances(values) / self.scales.square()
        densities = exponents - dim * (self.scales.log() + 0.5 * math.log(2 * math.pi))  # (..., K)
        return (self.logits.log_softmax(dim=-1) + densities).logsumexp(dim=-1)

    def draw(
        self,
        uniform: Tensor,
        normal: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Draw a component, then a vector of it.

        Args:
            uniform: (...) in [0, 1), chooses the components.
            normal: (..., D) standard normal numbers.
            temperature: Divides the logits and multiplies the scales.
            top_k: Draw from so many of the most probable components; None for all.
            top_p: Draw from the components that make up this share of the probability.

        Returns:
            The vectors (..., D), and the components (...) int64.
        """
        flat = sample_tokens(self.logits.flatten(0, -2), uniform.flatten(), temperature, top_k, top_p)
        component = flat.unflatten(0, uniform.shape)  # (...)
        chosen = component[..., None]  # (..., 1)
        rank = self.low_rank_means.shape[-1]
        low_rank = self.low_rank_means.gather(-2, chosen[..., None].expand(*chosen.shape, rank))[..., 0, :]  # (..., R)
        scale = self.scales.gather(-1, chosen)  # (..., 1)
        return self.center + low_rank @ self.basis.T + temperature * scale * normal, component


def mixture_size(num_mixtures: int, dim: int, rank: int) -> int:
    """How many numbers ``unpack_mixture`` takes: K logits, D of the centre, K R of the means, K scales."""
    return num_mixtures * (rank + 2) + dim


def unpack_mixture(values: Tensor, basis: Tensor, num_mixtures: int, min_scale: float) -> GaussianMixture:
    """Read a mixture off a network's output.

    Args:
        values: (..., ``mixture_size``) in the order logits, centre, means, scales; the scales come last, so that guidance can
            leave them out.
        basis: (D, R).
        num_mixtures: K.
        min_scale: Added to the softplus that makes a scale: discrete targets would let a scale shrink, and the likelihood grow,
            without bound.
    """
    dim, rank = basis.shape
    sizes = [num_mixtures, dim, num_mixtures * rank, num_mixtures]
    logits, center, means, scales = values.float().split(sizes, dim=-1)
    return GaussianMixture(
        logits, center, means.unflatten(-1, (num_mixtures, rank)), min_scale + F.softplus(scales), basis.float()
    )


def initialize_mixture_bias(bias: Tensor, dim: int, num_mixtures: int, rank: int) -> None:
    """Initial bias of the layer before ``unpack_mixture``: equal weights, centre 0, means apart (standard normal), scales 1.

    Args:
        bias: (``mixture_size``,), written in place.
        dim: D.
        num_mixtures: K.
        rank: R.
    """
    with torch.no_grad():
        bias.zero_()
        bias[num_mixtures + dim : num_mixtures + dim + num_mixtures * rank].normal_()
        bias[-num_mixtures:] = math.log(math.e - 1)  # softplus of it is 1
