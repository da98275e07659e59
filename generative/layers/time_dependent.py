"""Normalisation whose parameters depend on the time: TD-LN of DiMR (Liu et al., arXiv 2406.09416, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormType = Literal["td_layer_norm", "rms_norm", "td_rms_norm", "ada_rms_norm"]
LAYER_NORM_EPS, RMS_EPS, ADAPTIVE_RMS_EPS = 1e-5, 1e-8, 1e-6  # official implementation


def along_positions(values: Tensor, like: Tensor) -> Tensor:
    """Values (B, D) in a shape that broadcasts against ``like`` (B, ..., D)."""
    return values.reshape(len(values), *[1] * (like.dim() - 2), -1)


class TimeDependentParameter(nn.Module):
    """p(t) = p_1 + sigmoid((1 + w) t + b) (p_0 - p_1), elementwise, with all of p_0, p_1, w and b learned (eq. 3).

    Args:
        dim: Number D of elements.
        value: Of all of them at the start, at every time.
    """

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.high = nn.Parameter(torch.full((dim,), value))  # p_0, at large t
        self.low = nn.Parameter(torch.full((dim,), value))
        self.gate_weight = nn.Parameter(torch.zeros(dim))  # no weight decay, officially
        self.gate_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, time: Tensor) -> Tensor:
        """Parameters (B, D) at times (B,)."""
        gate = torch.addcmul(self.gate_bias, self.gate_weight + 1, time[:, None]).sigmoid()
        return torch.lerp(self.low.expand_as(gate), self.high.expand_as(gate), gate)


class TimeDependentLayerNorm(nn.Module):
    """Layer norm with scale and shift of the time.

    Args:
        dim: Width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = TimeDependentParameter(dim, 1.0)
        self.shift = TimeDependentParameter(dim, 0.0)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Normalise (B, ..., D) at times (B,)."""
        scale, shift = self.scale(time), self.shift(time)
        normalized = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        return torch.addcmul(along_positions(shift, x), along_positions(scale, x), normalized)


def rms_normalize(x: Tensor) -> Tensor:
    """x / (rms + eps) over the last dimension, in float32; eps, here under the root, tells at an rms near itself alone."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=RMS_EPS**2)


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467), the same at every time.

    Args:
        dim: Width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Normalise (B, ..., D); the times are not read."""
        return (self.scale * rms_normalize(x)).to(x.dtype)


class TimeDependentRMSNorm(nn.Module):
    """Root-mean-square norm with a scale of the time, DiMR's default.

    Args:
        dim: Width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = TimeDependentParameter(dim, 1.0)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Normalise (B, ..., D) at times (B,)."""
        return (along_positions(self.scale(time), x) * rms_normalize(x)).to(x.dtype)


class AdaptiveRMSNorm(nn.Module):
    """Root-mean-square norm whose scale is a linear map, zero at the start, of what stands first.

    That is the class token of a sequence (B, L, D), and of a map (B, h, w, D), as officially, the first row for each column.

    Args:
        dim: Width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Normalise (B, ..., D); the times are not read."""
        scale = self.linear(x[:, :1]).float() + 1
        return (x * (scale * (x.float().square().mean(-1, keepdim=True) + ADAPTIVE_RMS_EPS).rsqrt())).to(x.dtype)


def make_norm(kind: NormType, dim: int) -> nn.Module:
    """A norm of a kind, called with (B, ..., D) and times (B,)."""
    kinds: dict[NormType, type[nn.Module]] = {
        "td_layer_norm": TimeDependentLayerNorm,
        "rms_norm": RMSNorm,
        "td_rms_norm": TimeDependentRMSNorm,
        "ada_rms_norm": AdaptiveRMSNorm,
    }
    return kinds[kind](dim)
