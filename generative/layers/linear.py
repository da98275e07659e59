"""Matrix products of networks in float32, by the faster of the two libraries that torch brings for CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# torch multiplies float32 matrices with MKL, which leaves the AVX-512 units of CPUs that are not Intel's idle; oneDNN uses them
# everywhere. On an AMD EPYC core: 198 against 92 Gflop/s, the same float32 with float32 sums. torch itself calls oneDNN so only
# within compiled networks, through this operator.
HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
MIN_MULTIPLICATIONS = 2**21
"""M K N from which oneDNN's calls, a Python function with gradients among them, cost less than they save."""


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """(..., K) x (N, K) -> (..., N) by oneDNN, without gradients; either may be transposed."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


class OneDNNProduct(torch.autograd.Function):
    """x weight^T with gradients, all three products by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(M, K) x (N, K) -> (M, N)."""
        ctx.save_for_backward(x, weight)
        return multiply(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of both factors, where asked for."""
        x, weight = ctx.saved_tensors
        of_x = multiply(gradient, weight.t()) if ctx.needs_input_grad[0] else None  # (M, K)
        of_weight = None
        if ctx.needs_input_grad[1]:  # the operator copies its first argument where that is transposed: be it the smaller one
            wide = gradient.shape[1] > x.shape[1]
            of_weight = multiply(x.t(), gradient.t()).t() if wide else multiply(gradient.t(), x.t())  # (N, K)
        return of_x, of_weight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``torch.nn.functional.linear`` without bias, in float32 on a CPU by oneDNN where that is the faster; once differentiable.

    Args:
        x: (..., K).
        weight: (N, K).

    Returns:
        (..., N).
    """
    if (
        not HAS_ONEDNN
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() * len(weight) < MIN_MULTIPLICATIONS
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return F.linear(x, weight)
    if not torch.is_grad_enabled() or not (x.requires_grad or weight.requires_grad):
        return multiply(x, weight)
    product: Tensor = OneDNNProduct.apply(x.flatten(0, -2), weight)
    return product.unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """A linear layer without bias, see ``linear``; its weight is called and initialised as that of ``torch.nn.Linear``.

    Args:
        in_features: K.
        out_features: N.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return linear(x, self.weight)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes products in on a device now; None without autocast."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@contextmanager
def cast_weights(network: nn.Module) -> Iterator[None]:
    """Hold the weights of linear layers in autocast's dtype for a while: it casts frozen weights anew for every product.

    Of use where a network is called hundreds of times on a few rows: sampling token by token. Without autocast nothing is done.

    Args:
        network: Its weights are put back at the end, the very same tensors; they must not be trained meanwhile.
    """
    weights = {id(layer.weight): layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)}
    originals = [(weight, weight.data) for weight in weights.values()]
    try:
        for weight, data in originals:
            weight.data = data.to(autocast_dtype(data.device) or data.dtype)
        yield
    finally:
        for weight, data in originals:
            weight.data = data
