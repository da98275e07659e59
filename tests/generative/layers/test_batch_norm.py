"""Batch norm: torch as oracle, the cross-replica mode against one big batch, and standing statistics."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from generative.layers.batch_norm import (
    AffineBatchNorm2d,
    BatchNorm2d,
    ConditionalNorm2d,
    InstanceNorm2d,
    batch_statistics,
    recompute_statistics,
)


@pytest.mark.parametrize("moving_variance", ["unbiased", "biased"])
@pytest.mark.parametrize("cross_replica", [False, True])
def test_equals_torch_in_both_modes(moving_variance: str, cross_replica: bool) -> None:
    torch.manual_seed(0)
    ours = BatchNorm2d(4, moving_variance=moving_variance, cross_replica=cross_replica)
    theirs = nn.BatchNorm2d(4, affine=False)
    for _ in range(3):
        sample = torch.randn(3, 4, 2, 2) * 2 + 5
        torch.testing.assert_close(ours(sample), theirs(sample), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    if moving_variance == "unbiased":
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        sample = torch.randn(2, 4, 2, 2)
        torch.testing.assert_close(ours.eval()(sample), theirs.eval()(sample))
    else:  # 12 values per channel: variances differ by 11 / 12, the start of 1 does not
        start = 0.9**3
        torch.testing.assert_close(ours.running_var - start, (theirs.running_var - start) * 11 / 12)


def test_two_pass_variance_survives_a_large_mean() -> None:
    sample = torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1) + 1e4
    _, variance, count = batch_statistics(sample, cross_replica=False)
    assert variance.item() == pytest.approx(1.0, rel=1e-4)
    assert count.item() == 2


def test_instance_norm_normalises_each_image_and_evaluates_by_averages() -> None:
    torch.manual_seed(0)
    norm = InstanceNorm2d(3)
    sample = torch.randn(4, 3, 5, 5) * 3 + 1
    out = norm(sample)
    torch.testing.assert_close(out.mean((2, 3)), torch.zeros(4, 3), rtol=0, atol=1e-5)
    norm.eval()
    expected = (sample - norm.running_mean[:, None, None]) * torch.rsqrt(norm.running_var + norm.eps)[:, None, None]
    torch.testing.assert_close(norm(sample), expected)


def test_conditional_gain_is_one_plus_the_table() -> None:
    norm = ConditionalNorm2d(nn.Identity(), 2, lambda channels: nn.Embedding(3, channels))
    with torch.no_grad():
        norm.gain.weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 3.0], [-1.0, 0.5]]))
        norm.bias.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 20.0], [5.0, 0.0]]))
    out = norm(torch.ones(2, 2, 1, 1), torch.tensor([1, 2]))
    torch.testing.assert_close(out[:, :, 0, 0], torch.tensor([[13.0, 24.0], [5.0, 1.5]]))


@pytest.mark.parametrize("norm", [BatchNorm2d(4), InstanceNorm2d(4)])
def test_conditional_norm_in_eval_mode_is_normalisation_then_modulation(norm: BatchNorm2d) -> None:
    torch.manual_seed(0)
    layer = ConditionalNorm2d(norm, 4, lambda channels: nn.Embedding(3, channels)).eval()
    norm.running_mean.copy_(torch.tensor([-3.0, 0.0, 2.0, 5.0]))
    norm.running_var.copy_(torch.tensor([0.1, 1.0, 4.0, 0.0]))
    sample, labels = torch.randn(2, 4, 3, 3) + 1, torch.tensor([2, 0])
    normalised = (sample - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]
    expected = normalised * (1 + layer.gain(labels))[..., None, None] + layer.bias(labels)[..., None, None]
    torch.testing.assert_close(layer(sample, labels), expected, rtol=1e-4, atol=1e-4)
    half = layer(sample.bfloat16(), labels)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(sample.bfloat16().float(), labels), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("moving_variance", ["unbiased", "biased"])
def test_affine_batch_norm_equals_torch(moving_variance: str) -> None:
    torch.manual_seed(0)
    ours, theirs = AffineBatchNorm2d(4, moving_variance=moving_variance), nn.BatchNorm2d(4)
    for values, parameters in ((torch.randn(4), (ours.gain, theirs.weight)), (torch.randn(4), (ours.bias, theirs.bias))):
        for parameter in parameters:
            parameter.data.copy_(values)
    sample, cotangent = torch.randn(3, 4, 2, 2) * 2 + 5, torch.randn(3, 4, 2, 2)
    results = []
    for layer in (ours, theirs):
        out = layer(sample)
        (out * cotangent).sum().backward()
        results.append([out.detach(), *(parameter.grad for parameter in layer.parameters())])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    theirs.load_state_dict({**theirs.state_dict(), "running_mean": ours.running_mean, "running_var": ours.running_var})
    torch.testing.assert_close(ours.eval()(sample), theirs.eval()(sample))


def test_standing_statistics_are_the_plain_average_over_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(AffineBatchNorm2d(2), nn.Dropout(0.5))
    batches = [torch.randn(6, 2, 3, 3) + index for index in range(4)]
    remaining = iter(batches)
    recompute_statistics(network, lambda: network(next(remaining)), num_batches=4)
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(network[0].running_mean, mean)
    torch.testing.assert_close(network[0].running_var, variance)
    assert network[0].momentum == 0.1
    assert not any(module.training for module in network.modules())


def _loss(norm: nn.Module, sample: Tensor, cotangent: Tensor) -> Tensor:
    return (norm(sample) * cotangent).sum()


def _cross_replica_worker(rank: int, port_file: str, result_dir: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2, timeout=timedelta(seconds=30))
    data = torch.load(Path(result_dir) / "data.pt", weights_only=True)
    rows = slice(0, 3) if rank == 0 else slice(3, 8)  # batches of different size
    norm = BatchNorm2d(4, cross_replica=True)
    sample = data["sample"][rows].clone().requires_grad_(True)
    out = norm(sample)
    loss = (out * data["cotangent"][rows]).sum()
    (grad,) = torch.autograd.grad(loss, sample, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), sample)  # as a gradient penalty has it
    result = {"out": out.detach(), "grad": grad.detach(), "second": second, "mean": norm.running_mean, "var": norm.running_var}
    torch.save(result, Path(result_dir) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="file:// rendezvous")
def test_cross_replica_equals_one_big_batch(tmp_path: Path) -> None:
    """Two CPU processes against torch on their batches together: outputs, first and second gradients, moving averages."""
    torch.manual_seed(0)
    data = {"sample": torch.randn(8, 4, 3, 3) * 2 + 1, "cotangent": torch.randn(8, 4, 3, 3)}
    torch.save(data, tmp_path / "data.pt")
    mp.start_processes(_cross_replica_worker, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    oracle = nn.BatchNorm2d(4, affine=False)
    sample = data["sample"].clone().requires_grad_(True)
    out = oracle(sample)
    (grad,) = torch.autograd.grad((out * data["cotangent"]).sum(), sample, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), sample)
    torch.testing.assert_close(torch.cat([part["second"] for part in parts]), second, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([part["out"] for part in parts]), out.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), grad.detach(), rtol=1e-4, atol=1e-5)
    for part in parts:
        torch.testing.assert_close(part["mean"], oracle.running_mean)
        torch.testing.assert_close(part["var"], oracle.running_var)
