"""What a computation keeps for its backward pass, and what comes of that pass: with gradient checkpointing and without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def kept_bytes(compute: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """A loss, and the bytes of the tensors that are kept to differentiate it, weights left out; each storage counts once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()
    return loss, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def after_backward(network: nn.Module, compute: Callable[[], Tensor]) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers of a network in train mode after a backward pass, by name, and the bytes kept for that."""
    network.train()
    torch.manual_seed(2)  # dropout's masks
    loss, size = kept_bytes(compute)
    loss.backward()
    found = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach(), **{name: buffer.clone() for name, buffer in network.named_buffers()}}, size


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To the bit: both computed the same."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
