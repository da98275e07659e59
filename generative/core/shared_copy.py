"""Copies of networks that share their weights: to sample from, or to save, what is trained or averaged without doubling it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from generative.core.sharding import undressed
from generative.core.tensor_parts import whole

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline


def share_weights(network: nn.Module) -> nn.Module:
    """Copy all of a network but the storage of its parameters.

    Modes, buffers, config, dtype and layout of the copy are its own: whatever is done with these stays there. Of the weights
    themselves there is one; writing into them in place would be felt by the original, and its training by the copy. Only of a
    network that is cut over processes (FSDP) the copy has weights of its own, gathered from all of them: all must ask for it
    together.

    Args:
        network: Compiled or not; the copy runs eagerly.

    Returns:
        The copy, in the same mode.
    """
    shared = {id(p): nn.Parameter(whole(p).detach(), requires_grad=p.requires_grad) for p in network.parameters()}
    with undressed(network):
        return copy.deepcopy(network, shared)


def host_pipeline(pipeline: ImagePipeline, constant: Iterable[nn.Module]) -> ImagePipeline:
    """Copy a pipeline so that it can be saved while training goes on.

    Args:
        pipeline: The pipeline.
        constant: Networks that training never changes, which the copy shares.

    Returns:
        The pipeline with copies of its other networks in the host's memory.
    """
    kept = {id(network) for network in constant}
    copies = {}
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and id(part) not in kept:
            weights = {id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=False) for p in part.parameters()}
            copies[name] = copy.deepcopy(part, weights).to("cpu")
    result = copy.copy(pipeline)
    result.register_modules(**copies)
    return result


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


def save_pipeline(pipeline: ImagePipeline, folder: Path) -> None:
    """Save a pipeline as it is, whatever the memory layout of its networks."""
    with contiguous(part for part in pipeline.components.values() if isinstance(part, nn.Module)):
        pipeline.save_pretrained(folder)
