"""Gradient checkpointing, block by block (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def run_block(network: Any, block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Output of a network's block, of which a training with gradient checkpointing keeps the inputs only.

    Args:
        network: One with ``gradient_checkpointing``, or a part of it; ``enable_gradient_checkpointing`` sets it.
        block: Of the network.
        *inputs: Of the block.
    """
    result: Tensor
    if network.gradient_checkpointing and torch.is_grad_enabled():
        result = network._gradient_checkpointing_func(block, *inputs)
    else:
        result = block(*inputs)
    return result
