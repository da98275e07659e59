"""Hollow tensors cost what real ones do: the same operations, and the same memory alive at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from generative.core.metering import AcceleratorRules, HollowTensor, Meter, as_accelerator, hollow_out


class Attend(nn.Module):
    """A norm, attention and an MLP."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.mlp(x)


def convolutions() -> nn.Module:
    """So many that the room a kernel takes for itself, which nobody can know, is little beside what they keep."""
    layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU()) for _ in range(8)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *layers, nn.Conv2d(16, 8, 3, stride=2))


CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Sequential(*(Attend() for _ in range(3))), (16, 64, 64)),
    (convolutions, (16, 3, 32, 32)),
]


def hollow(*shape: int) -> HollowTensor:
    return HollowTensor(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_operations_are_those_of_real_tensors(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    network = build()
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(shape)).square().mean().backward()
    # torch's own counter leaves the processor's attention out.
    attention = 0
    if isinstance(network[0], Attend):  # type: ignore[index]
        batch, length, width = shape
        attention = len(network) * 2 * batch * length**2 * width * (2 + 5)  # type: ignore[arg-type]
    hollow_out([network])
    with Meter() as meter:
        network(torch.randn(shape)).square().mean().backward()
    assert meter.operations == counter.get_total_flops() + attention


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_most_memory_at_once_is_that_of_real_tensors(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    network = build()
    network(torch.randn(shape)).square().mean().backward()  # what libraries take once is taken
    network.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network(torch.randn(shape)).square().mean().backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    alive = measured = 0
    for event in events:
        if event.name() == "[memory]":
            alive += event.nbytes()
            measured = max(measured, alive)
    hollow_out([network])
    network.zero_grad()
    with Meter([*network.parameters(), *network.buffers()]) as meter:
        network(hollow(*shape) + 0).square().mean().backward()
    assert meter.peak == pytest.approx(measured, rel=0.15)


def test_gradients_of_weights_can_be_left_out() -> None:
    network = nn.Linear(1000, 1000, bias=False)
    hollow_out([network])
    with Meter(network.parameters()) as meter:
        network(hollow(1, 1000)).sum().backward()
        with_gradient = meter.alive
        meter.leave_out(network.weight.grad)
    assert with_gradient - meter.alive == 4_000_000


def test_real_tensors_may_stand_beside_hollow_ones() -> None:
    table, places = hollow(10, 4), torch.tensor([3, 1, 2])
    assert table[places].shape == (3, 4)
    assert F.embedding(places, table).shape == (3, 4)
    mask = torch.tensor([True, False] * 5)
    chosen = table.requires_grad_()[mask]
    assert chosen.shape == (5, 4) and table[:, mask[:4]].shape == (10, 2)
    chosen.sum().backward()
    assert table.grad is not None and table.grad.shape == (10, 4)
    rows = hollow(10, 4)
    assert rows.add_(1) is rows and rows.squeeze_().shape == (10, 4)
    vector = torch.ones(4) @ hollow(4, 5)
    assert isinstance(vector, HollowTensor) and vector.shape == (5,) and vector.device.type == "cpu"


def test_weights_come_back_and_stay_shared() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    network[1].weight = network[0].weight
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept = network[0].weight
    restore = hollow_out([network])
    assert network[0].weight is network[1].weight and isinstance(network[0].weight, nn.Parameter)
    assert all(isinstance(tensor, HollowTensor) for tensor in [*network.buffers()])
    restore()
    assert network[0].weight is kept is network[1].weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_half_precision_takes_half_the_memory_but_norms_as_on_an_accelerator() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    hollow_out([network])
    with as_accelerator("bf16"):
        assert network[0](hollow(8, 64)).dtype == torch.bfloat16
        assert network(hollow(8, 64)).dtype == torch.float32
    with as_accelerator("no"):
        assert network(hollow(8, 64)).dtype == torch.float32


def test_attention_drops_within_its_kernel() -> None:
    q = hollow(1, 2, 256, 16)
    with AcceleratorRules(), Meter() as meter:
        F.scaled_dot_product_attention(q, q, q, None, 0.5)
    assert meter.peak < 256 * 256 * 4


def test_counting_gives_up_in_time() -> None:
    with Meter(seconds=0.0), pytest.raises(TimeoutError):
        hollow(2, 2) @ hollow(2, 2)
