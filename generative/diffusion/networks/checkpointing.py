"""Gradient checkpointing, block by block (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from torch import Tensor, nn


def run_block(network: ModelMixin, block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Output of a network's block, of which a training with gradient checkpointing keeps the inputs only.

    Args:
        network: One with ``gradient_checkpointing``, which ``enable_gradient_checkpointing`` sets.
        block: Of the network.
        *inputs: Of the block.
    """
    result: Tensor
    if network.gradient_checkpointing and torch.is_grad_enabled():
        result = network._gradient_checkpointing_func(block, *inputs)
    else:
        result = block(*inputs)
    return result
