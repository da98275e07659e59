"""Gradient checkpointing, block by block (Chen et al., arXiv 1604.06174), of blocks that have state too.

A block is computed twice: in the forward pass, and again in the backward pass. Layers whose training forward moves state of
their own (moving averages, vectors of a power iteration) move it in the first computation only, and find in the second what they
found in the first, whatever happened between: a discriminator may see several batches before it is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class CheckpointedCall:
    """A block in one call of it, computed as often as it is called itself: first in the forward pass, then in backward passes.

    It does not nest: a part of such a block is not checkpointed by itself.

    Args:
        block: Takes and returns tensors.
    """

    def __init__(self, block: Callable[..., Tensor]) -> None:
        self.block = block
        self.is_repeated = False
        self.kept: list[Any] = []
        self.num_taken = 0

    def __call__(self, *inputs: Any) -> Tensor:
        """Compute the block."""
        self.num_taken = 0
        token = _current_call.set(self)
        try:
            return self.block(*inputs)
        finally:  # a computation in the backward pass ends by an exception where it has all that it needs
            _current_call.reset(token)
            self.is_repeated = True

    def once(self, compute: Callable[[], T]) -> T:
        """See ``once``."""
        if not self.is_repeated:
            self.kept.append(compute())
        self.num_taken += 1
        kept: T = self.kept[self.num_taken - 1]
        return kept


_current_call: ContextVar[CheckpointedCall | None] = ContextVar("current_call", default=None)


def is_repeated() -> bool:
    """Whether a block is computed for the second time, in a backward pass; never while compiling."""
    if torch.compiler.is_compiling():
        return False
    call = _current_call.get()
    return call is not None and call.is_repeated


def once(compute: Callable[[], T]) -> T:
    """What a function returns; where a block is computed again, what it returned the first time.

    Args:
        compute: Moves state, or reads what may have moved before the second time. What it returns is kept until the backward
            pass, so that it should be small, and is not differentiated.
    """
    call = None if torch.compiler.is_compiling() else _current_call.get()
    return compute() if call is None else call.once(compute)


def run_block(network: Any, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Output of a network's block, of which a training with gradient checkpointing keeps the inputs only.

    Args:
        network: One with ``gradient_checkpointing``, or a part of it; ``enable_gradient_checkpointing`` sets it.
        block: Of the network.
        *inputs: Of the block.
    """
    result: Tensor
    if network.gradient_checkpointing and torch.is_grad_enabled():
        # A compiled graph computes again by itself, and so only blocks without state: see ``checkpoint_activations``.
        part = block if torch.compiler.is_compiling() else CheckpointedCall(block)
        result = network._gradient_checkpointing_func(part, *inputs)
    else:
        result = block(*inputs)
    return result


class BlockSequence(nn.Sequential):
    """Blocks one after the other, each of which is checkpointed by itself."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.gradient_checkpointing = False

    def forward(self, input: Tensor) -> Tensor:
        """Run the blocks."""
        for block in self:
            input = input if isinstance(block, nn.Identity) else run_block(self, block, input)
        return input
