"""Copies that share weights and nothing else."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import nn

from generative.core.shared_copy import contiguous, share_weights


def test_only_the_weights_are_shared(toy: ModuleType) -> None:
    network = toy.ToyNet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copy = share_weights(network)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(network.parameters(), copy.parameters(), strict=True))
    copy.eval().requires_grad_(False)
    copy.register_to_config(width=99)
    for buffer in copy.buffers():
        buffer.zero_()
    copy.to(torch.bfloat16)
    assert all(module.training for module in network.modules()) and all(p.requires_grad for p in network.parameters())
    assert network.config.width == 8
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


def test_tied_weights_stay_tied_and_compiled_ones_run_eagerly() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    network.compile()
    copy = share_weights(network)
    assert copy[0].weight is copy[1].weight is not network[0].weight
    assert copy._compiled_call_impl is None


def test_layout_is_plain_inside_and_as_before_afterwards() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    weight, place = network.weight.clone(), network.weight.data_ptr()
    with contiguous([network]):
        assert network.weight.is_contiguous() and torch.equal(network.weight, weight)
    assert network.weight.is_contiguous(memory_format=torch.channels_last) and network.weight.data_ptr() == place
