"""Official state dicts of the LLaMA line of transformers, as tests build them."""

from __future__ import annotations

import torch
from torch import Tensor


def block_shapes(prefix: str, dim: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of one block by official name, ``.weight`` left out."""
    return {
        f"{prefix}.attention.wqkv": (3 * dim, dim),
        f"{prefix}.attention.wo": (dim, dim),
        f"{prefix}.feed_forward.w1": (inner, dim),
        f"{prefix}.feed_forward.w3": (inner, dim),
        f"{prefix}.feed_forward.w2": (dim, inner),
        f"{prefix}.attention_norm": (dim,),
        f"{prefix}.ffn_norm": (dim,),
    }


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of these shapes without storage."""
    return {f"{name}.weight": torch.empty(shape, device="meta") for name, shape in shapes.items()}
