"""Singular values of official checkpoints whose spectral norm keeps both vectors, as ``torch.nn.utils.spectral_norm`` does."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

LEFT_VECTOR = ".spectral_norm.u"


def add_singular_values(converted: dict[str, Tensor], transposed: Collection[str] = ()) -> None:
    """Add u W v of every spectral norm (arXiv 1802.05957), which the official code does not store and ours logs.

    Args:
        converted: Our state dict; gets ``<layer>.spectral_norm.singular_values`` (1,) for every ``<layer>.spectral_norm.u``. They
            are 1 where the weight or v is missing or of another size: the loader names those.
        transposed: Layers whose weight has inputs on its first axis, outputs on its second.
    """
    for path in [key.removesuffix(LEFT_VECTOR) for key in converted if key.endswith(LEFT_VECTOR)]:
        u, v, weight = (converted.get(f"{path}.{name}") for name in ("spectral_norm.u", "spectral_norm.v", "weight"))
        sigma = torch.ones(1)
        if u is not None and v is not None and weight is not None and weight.ndim > 1:
            matrix = (weight.transpose(0, 1) if path in transposed else weight).flatten(1).float()  # (out, in)
            if matrix.shape == (u.numel(), v.numel()):
                sigma = (u.flatten().float() @ matrix @ v.flatten().float())[None]
        converted[f"{path}.spectral_norm.singular_values"] = sigma
