"""Copies of networks that share their weights: to sample from, or to save, what is trained or averaged without doubling it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def share_weights(network: nn.Module) -> nn.Module:
    """Copy all of a network but the storage of its parameters.

    Modes, buffers, config, dtype and layout of the copy are its own: whatever is done with these stays there. Of the weights
    themselves there is one; writing into them in place would be felt by the original, and its training by the copy.

    Args:
        network: Compiled or not; the copy runs eagerly.

    Returns:
        The copy, in the same mode.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, shared)


@contextmanager
def contiguous(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, all tensors of the networks lie in memory as safetensors wants them; afterwards as they did before."""
    tensors = [tensor for network in networks for tensor in [*network.parameters(), *network.buffers()]]
    before = [(tensor, tensor.data) for tensor in tensors if not tensor.is_contiguous()]
    try:
        for tensor, data in before:
            tensor.data = data.contiguous()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data
