"""BigGAN's orthogonal regularisation (arXiv 1809.11096, eq. 3), added to the gradients themselves: no second graph is kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from generative.core.tensor_parts import local_part, part_like, whole


@torch.no_grad()
def orthogonal_gradient(weight: Tensor) -> Tensor:
    """What orthogonal regularisation adds to a weight's gradient: 2 ((W W^T) * (1 - I)) W.

    Eq. 3 of arXiv 1809.11096 penalises ||W^T W * (1 - I)||_F^2, filters being columns there and rows here. BigGAN's released code
    adds half the gradient of that norm, and its strengths (1e-4) are meant for this half.

    Args:
        weight: (out, ...); the axes after the first are flattened.

    Returns:
        The same shape and dtype, computed in float32 at least and with autocast off.
    """
    with torch.autocast(weight.device.type, enabled=False):
        full = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
        matrix = full.flatten(1)  # (out, in)
        products = matrix @ matrix.T  # (out, out), dot products of the filters
        products.fill_diagonal_(0)  # only filters' angles are held, not their lengths
        return (2 * products @ matrix).view_as(weight).to(weight.dtype)


@torch.no_grad()
def add_orthogonal_gradient(parameters: Iterable[nn.Parameter], strength: float) -> None:
    """Add ``strength * orthogonal_gradient(p)`` to the gradient of every parameter of two axes or more.

    Args:
        parameters: Those without a gradient, and vectors (biases, gains), are passed over.
        strength: beta of eq. 3.
    """
    for parameter in parameters:
        if parameter.ndim >= 2 and parameter.grad is not None:
            gradient = part_like(orthogonal_gradient(whole(parameter)), parameter)  # of all rows, whoever holds them
            local_part(parameter.grad).add_(local_part(gradient), alpha=strength)
