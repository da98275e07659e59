"""Resampling and blocks of EDM's U-Nets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from generative.core.errors import UserError
from generative.layers.edm_unet import Resampler, UNetBlock
from generative.layers.group_norm import group_norm
from generative.layers.resampling import depthwise


@pytest.mark.parametrize("size", [4, 16])
def test_two_equal_taps_repeat_and_average_pixels(size: int) -> None:
    sample, resampler = torch.randn(2, 3, size, size), Resampler()
    torch.testing.assert_close(resampler.up(sample), F.interpolate(sample, scale_factor=2))
    torch.testing.assert_close(resampler.down(sample), F.avg_pool2d(sample, 2))


@pytest.mark.parametrize("taps", [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0, 3.0, 1.0)])
@pytest.mark.parametrize("size", [4, 16])  # below and above the size from which kernels are widened
def test_a_convolution_is_joined_with_resampling(taps: tuple[float, ...], size: int) -> None:
    torch.manual_seed(0)
    resampler, sample = Resampler(taps), torch.randn(2, 4, size, size)
    resampler.kernel += 0.1 * torch.rand_like(resampler.kernel)  # any filter, as files may hold
    for conv in (nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)):
        torch.testing.assert_close(resampler.up_conv(sample, conv), conv(resampler.up(sample)), rtol=1e-4, atol=1e-5)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    margin = resampler.padding
    wide = F.conv2d(sample, conv.weight, conv.bias * resampler.kernel.sum().reciprocal(), padding=1 + margin)
    expected = F.conv2d(wide, depthwise(wide, resampler.kernel), groups=6, stride=2)
    torch.testing.assert_close(resampler.conv_down(sample, conv), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        near = resampler.up_conv(sample, conv).float()
    torch.testing.assert_close(near, conv(resampler.up(sample)), rtol=0.1, atol=0.1)


def test_every_filter_is_kept_with_the_weights() -> None:
    block = UNetBlock(4, 8, embedding_channels=4, resampling="down", resample_filter=(1, 3, 3, 1))
    kernels = {name: tuple(value.shape) for name, value in block.state_dict().items() if name.endswith("kernel")}
    assert kernels == {"resampler.kernel": (4, 4), "skip_resampler.kernel": (4, 4)}


@pytest.mark.parametrize("taps", [(), (1.0, 2.0, 1.0), (1.0, -1.0)])
def test_filters_that_cannot_be_are_refused(taps: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="resample_filter must be an even number of taps"):
        Resampler(taps)


def test_groups_have_four_channels_at_least() -> None:
    assert [group_norm(width, 1e-5, 4).num_groups for width in (4, 8, 24, 128, 256)] == [1, 2, 6, 32, 32]
    with pytest.raises(UserError, match="14 channels does not divide into the 3 groups"):
        group_norm(14, 1e-5, 4)
