"""Dropout by few draws."""

from __future__ import annotations

import pytest
import torch

from generative.layers.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_share_is_dropped_and_the_mean_stays(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    sample = torch.ones(8, 16, 31, 33, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    dropped = Dropout(0.13)(sample)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.13, abs=0.003)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.006)
    assert dropped.is_contiguous(memory_format=memory_format) and dropped.dtype == dtype
    dropped.sum().backward()
    assert sample.grad is not None and torch.equal(sample.grad, dropped.detach())
    columns = (dropped == 0).float().flatten(1).mean(0)  # no place of a draw's four is dropped more than another
    assert columns.unflatten(0, (-1, 4)).mean(0).sub(0.13).abs().max() < 0.006


def test_masks_follow_the_global_generator_and_training() -> None:
    layer, sample = Dropout(0.5), torch.ones(100)
    torch.manual_seed(1)
    first = layer(sample)
    torch.manual_seed(1)
    assert torch.equal(layer(sample), first) and not torch.equal(layer(sample), first)
    assert torch.equal(layer.eval()(sample), sample) and torch.equal(Dropout(0.0)(sample), sample)
    assert Dropout(0.5)(torch.ones(10, 10)[:, ::2]).shape == (10, 5)
