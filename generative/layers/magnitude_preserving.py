"""Layers that keep the magnitude of what passes them (EDM2 of Karras et al., arXiv 2312.02696).

Activations of unit variance stay so by construction: weights are normalised at every use, sums and concatenations are weighted,
and no layer has a bias or a group norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.layers.forward_mode import is_forward_differentiated

EPSILON = 1e-4  # added to a norm before anything is divided by it, official implementation
SILU_MAGNITUDE = 0.596  # root mean square of silu(z) for a standard normal z (eq. 81)


def magnitude(values: Tensor, dims: Sequence[int]) -> Tensor:
    """Root mean square over some dimensions, which are kept with size 1, and a little more: float32."""
    count = math.prod([values.shape[dim] for dim in dims])  # a list: compilers break at a generator
    return torch.linalg.vector_norm(values, dim=tuple(dims), keepdim=True, dtype=torch.float32) / math.sqrt(count) + EPSILON


def normalize(values: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Values divided by their ``magnitude`` over some dimensions, all but the first by default.

    Over the channels it is the pixel norm of the encoder (section 2.2, config E).
    """
    return values / magnitude(values, range(1, values.dim()) if dims is None else dims).to(values.dtype)


def mp_silu(values: Tensor) -> Tensor:
    """SiLU of unit variance (eq. 81)."""
    return F.silu(values) / SILU_MAGNITUDE


def sum_weights(balance: float) -> tuple[float, float]:
    """What both sides of a sum are multiplied by (eq. 88): 1 - t and t, over the magnitude that their sum then has."""
    length = math.hypot(1 - balance, balance)
    return (1 - balance) / length, balance / length


def mp_sum(first: Tensor, second: Tensor, balance: float = 0.5) -> Tensor:
    """Weighted sum of two tensors of one shape (eq. 88); ``balance`` is the share of the second."""
    weights = sum_weights(balance)
    return torch.add(first * weights[0], second, alpha=weights[1])


def mp_cat(first: Tensor, second: Tensor, balance: float = 0.5) -> Tensor:
    """Concatenation along the channels to which both sides add according to ``balance``, whatever their widths (eq. 103)."""
    parts = []
    total = first.shape[1] + second.shape[1]
    for part, weight in zip((first, second), sum_weights(balance), strict=True):
        factor = weight * math.sqrt(total / part.shape[1])
        parts.append(part if math.isclose(factor, 1.0) else part * factor)
    return torch.cat(parts, dim=1)


class MPFourier(nn.Module):
    """Random Fourier features of a number, sqrt(2) cos(f x + phase) (eq. 75).

    Args:
        num_channels: Features D.
        bandwidth: Standard deviation of the frequencies, in turns.
    """

    def __init__(self, num_channels: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.freqs: Tensor
        self.phases: Tensor
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels) * bandwidth)
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, values: Tensor) -> Tensor:
        """Features (B, D) float32 of numbers (B,)."""
        angles = values.float()[:, None] * self.freqs.float() + self.phases.float()
        return angles.cos() * math.sqrt(2)


def row_scale(rows: Tensor, gain: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (O, 1, ...) that give float32 rows (O, ...) the norm ``gain``, what it is divided by for that, and their norms."""
    norm = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.dim())), keepdim=True)
    divisor = norm + EPSILON * math.sqrt(rows[0].numel())
    return gain / divisor, divisor, norm


class ScaledRows(torch.autograd.Function):
    """A weight times ``row_scale``, of whose gradient this makes half the passes over the weight that autograd does."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
        """Scale (O, ...) by a gain of no dimensions, in float32; the result is of ``dtype``."""
        rows = weight.float()
        scale, divisor, norm = row_scale(rows, gain)
        ctx.save_for_backward(weight, gain, norm, divisor)
        return (rows * scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With the part along each row taken off, which changes its norm alone."""
        weight, gain, norm, divisor = ctx.saved_tensors
        rows, gradient = weight.float(), gradient.float()
        if torch.is_grad_enabled():  # what was kept has no graph, through which a second derivative would have to pass
            _, divisor, norm = row_scale(rows, gain)
        along = (gradient * rows).sum(dim=tuple(range(1, rows.dim())), keepdim=True) / divisor  # (O, 1, ...)
        for_gain = along.sum().reshape(gain.shape) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, for_gain, None
        scale = gain / divisor
        for_weight = torch.addcmul(gradient * scale, rows, -scale * along / norm.clamp(min=torch.finfo(norm.dtype).tiny))
        return for_weight.to(weight.dtype), for_gain, None


class MPLayer(nn.Module):
    """A weight without bias whose rows, one per output, have the norm ``gain`` whenever it is used (eq. 47).

    ``force_norm`` is called before every training pass, so that gradients and rates mean the same at every layer (eq. 66).

    Args:
        shape: Of the weight; outputs first.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    @torch.no_grad()
    def force_norm(self) -> None:
        """Overwrite the weight by its rows of unit magnitude, in place."""
        self.weight.copy_(normalize(self.weight.float()))

    def scaled_weight(self, gain: float | Tensor, dtype: torch.dtype) -> Tensor:
        """The weight with rows of norm ``gain``, normalised in float32; gradients pass through the norm."""
        # Compilers fuse the passes themselves; neither they nor forward differentiation look into the function.
        if torch.compiler.is_compiling() or is_forward_differentiated():
            rows = self.weight.float()
            return (rows * row_scale(rows, gain)[0]).to(dtype)
        scaled: Tensor = ScaledRows.apply(self.weight, torch.as_tensor(gain, dtype=torch.float32), dtype)
        return scaled


class MPLinear(MPLayer):
    """Linear map (..., D) to (..., D').

    Args:
        in_features: D.
        out_features: D'.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(out_features, in_features)

    def forward(self, values: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """Map, and multiply by a gain."""
        return F.linear(values, self.scaled_weight(gain, values.dtype))


class MPConv2d(MPLayer):
    """Convolution (B, C, H, W) to (B, C', H, W).

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: Odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(out_channels, in_channels, kernel_size, kernel_size)

    def forward(self, sample: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """Convolve, and multiply by a gain."""
        return F.conv2d(sample, self.scaled_weight(gain, sample.dtype), padding=self.weight.shape[-1] // 2)


@torch.compiler.disable
def force_norms(network: nn.Module) -> None:
    """Overwrite every magnitude-preserving weight of a network by its normalised self (eq. 66).

    Called once at the start of a training pass and outside of what gradient checkpointing runs again. It is never compiled: a
    graph that writes into each of its weights breaks at every one. Transforms of ``torch.func`` refuse writes: within them it
    does nothing, and who trains through them calls it before.
    """
    if is_forward_differentiated():
        return
    for module in network.modules():
        if isinstance(module, MPLayer):
            module.force_norm()
