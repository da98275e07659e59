"""Fused resampling and convolution against the two steps one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from generative.layers.resample_conv import conv_downsample, upsample_conv
from generative.layers.spectral_norm import SpectralNormConv2d


def upsample_first(sample: Tensor, conv: nn.Module) -> Tensor:
    return conv(F.interpolate(sample, scale_factor=2))


def pool_after(sample: Tensor, conv: nn.Module) -> Tensor:
    return F.avg_pool2d(conv(sample), 2)


PAIRS = [(upsample_conv, upsample_first), (conv_downsample, pool_after)]
Step = Callable[[Tensor, nn.Module], Tensor]


def spectral(in_channels: int, out_channels: int) -> nn.Module:
    return SpectralNormConv2d(in_channels, out_channels).eval()  # eval: both ways see the same singular vectors


def plain(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


@pytest.mark.parametrize(("fused", "stepwise"), PAIRS)
@pytest.mark.parametrize("make_conv", [plain, spectral])
@pytest.mark.parametrize("size", [(16, 16), (17, 19)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_two_steps(
    fused: Step,
    stepwise: Step,
    make_conv: Callable[[int, int], nn.Module],
    size: tuple[int, int],
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    conv = make_conv(3, 5).double().to(memory_format=memory_format)  # type: ignore[call-overload]
    sample = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    results = []
    for step in (fused, stepwise):
        out = step(sample, conv)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out.detach(), *torch.autograd.grad((out * cotangent).sum(), [sample, *conv.parameters()])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("fused", "stepwise"), PAIRS)
def test_takes_four_ninths_of_the_multiplications(fused: Step, stepwise: Step) -> None:
    counts = []
    for step in (fused, stepwise):
        sample, conv = torch.randn(1, 4, 16, 16, requires_grad=True), plain(4, 4)
        with FlopCounterMode(display=False) as counter:
            step(sample, conv).sum().backward()
        counts.append(sum(n for op, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(op)))
    assert counts[0] / counts[1] == pytest.approx(4 / 9)


@pytest.mark.parametrize(("fused", "stepwise"), PAIRS)
@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 6),  # too small a map to gain
        (nn.Conv2d(4, 4, 1), 32),
        (nn.Conv2d(4, 4, 5, padding=2), 32),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), 32),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), 32),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), 32),
        (nn.Identity(), 32),
    ],
)
def test_anything_else_runs_step_by_step(fused: Step, stepwise: Step, conv: nn.Module, size: int) -> None:
    torch.manual_seed(0)
    sample = torch.randn(2, 4, size, size)
    torch.testing.assert_close(fused(sample, conv), stepwise(sample, conv), rtol=0, atol=0)


@pytest.mark.parametrize(("fused", "stepwise"), PAIRS)
def test_train_mode_moves_the_singular_vectors_once(fused: Step, stepwise: Step) -> None:
    torch.manual_seed(0)
    first, second = SpectralNormConv2d(4, 4), SpectralNormConv2d(4, 4)
    second.load_state_dict(first.state_dict())
    sample = torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(fused(sample, first), stepwise(sample, second), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.state_dict(), second.state_dict())


@pytest.mark.parametrize(("fused", "stepwise"), PAIRS)
def test_autocast_convolves_in_bfloat16(fused: Step, stepwise: Step) -> None:
    torch.manual_seed(0)
    sample, conv = torch.randn(1, 8, 16, 16), plain(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(sample, conv)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), stepwise(sample, conv), rtol=2e-2, atol=2e-2)
