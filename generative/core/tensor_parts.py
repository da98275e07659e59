"""Tensors of which each process holds a part (FSDP's), beside such as are whole: the same functions take both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory: all of it unless it is cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is cut, a copy, for which all processes must ask."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Cut a whole tensor that every process has as a reference of the same shape is; unchanged where that is whole."""
    if isinstance(tensor, DTensor) or not isinstance(reference, DTensor):
        return tensor
    device = reference.device_mesh.device_type
    return distribute_tensor(tensor.to(device), reference.device_mesh, reference.placements, src_data_rank=None)


def is_like(value: Any, parameter: Tensor) -> bool:
    """Whether an optimizer's state has a number for each of a parameter, and so is cut as it is."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


@torch.no_grad()
def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value, which every process has, over a tensor of which this one may hold a part."""
    local_part(tensor).copy_(local_part(part_like(value, tensor)))


def whole_norms(parts: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """L2 norms (N,) of N whole tensors; all processes ask for them together.

    Args:
        parts: What this process holds of each.
        references: As many tensors that are cut as those are, or whole where they are.
    """
    norms = torch.stack(torch._foreach_norm(list(parts)))
    meshes = [tensor.device_mesh for tensor in references if isinstance(tensor, DTensor)]
    if not meshes:
        return norms
    squares = norms.square()
    torch.distributed.all_reduce(squares, group=meshes[0].get_group("shard"))
    is_cut = torch.tensor([isinstance(tensor, DTensor) for tensor in references], device=norms.device)
    return torch.where(is_cut, squares.sqrt(), norms)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm () of all gradients together, some of them perhaps cut."""
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    return torch.linalg.vector_norm(whole_norms([local_part(gradient) for gradient in gradients], gradients))


def is_sharded(network: nn.Module) -> bool:
    """Whether any of a network's weights is cut."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors, one for each name of its state, into a network that may be cut."""
    if not is_sharded(network):
        network.load_state_dict(dict(tensors))
        return
    for name, tensor in network.state_dict().items():
        overwrite(tensor, tensors[name])
