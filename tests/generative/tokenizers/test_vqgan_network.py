"""Encoder and decoder of the VQGAN line: sizes, attention, padding, accuracy of the group norm, wrong widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from generative.core.errors import UserError
from generative.tokenizers.vqgan_network import (
    AttentionBlock,
    Decoder,
    Downsample,
    Encoder,
    GroupNorm,
    ResnetBlock,
    Upsample,
    latent_stride,
)

SIZES: dict[str, Any] = {"z_channels": 5, "ch": 4, "ch_mult": (1, 2, 3), "num_res_blocks": 1, "norm_groups": 2}


def test_resolutions_and_widths() -> None:
    encoder, decoder = Encoder(**SIZES), Decoder(**SIZES)
    latents = encoder(torch.randn(2, 3, 8, 12))  # the network does not mind rectangles
    assert latents.shape == (2, 5, 2, 3) and decoder(latents).shape == (2, 3, 8, 12)
    assert [level.blocks[0].conv1.weight.shape[:2] for level in encoder.levels] == [(4, 4), (8, 4), (12, 8)]
    assert [level.blocks[0].conv1.weight.shape[:2] for level in decoder.levels] == [(12, 12), (8, 12), (4, 8)]
    assert [len(level.blocks) for level in decoder.levels] == [2, 2, 2]


@pytest.mark.parametrize(
    ("using_sa", "using_mid_sa", "expected"), [(True, True, 2), (True, False, 1), (False, True, 1), (False, False, 0)]
)
def test_attention_is_at_the_lowest_resolution_only(using_sa: bool, using_mid_sa: bool, expected: int) -> None:
    for network in (Encoder(**SIZES, using_sa=using_sa, using_mid_sa=using_mid_sa),):
        found = [name for name, module in network.named_modules() if isinstance(module, AttentionBlock)]
        assert len(found) == expected and all(name.startswith(("levels.2.", "mid.")) for name in found)
    decoder = Decoder(**SIZES, using_sa=using_sa, using_mid_sa=using_mid_sa)
    found = [name for name, module in decoder.named_modules() if isinstance(module, AttentionBlock)]
    assert len(found) == 2 * using_sa + using_mid_sa and all(name.startswith(("levels.0.", "mid.")) for name in found)


def test_attention_is_a_softmax_over_positions() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(6, 3)
    sample = torch.randn(2, 6, 3, 4)
    query, key, value = block.qkv(block.norm(sample)).flatten(2).chunk(3, dim=1)  # each (B, C, HW)
    weights = (query.transpose(1, 2) @ key * 6**-0.5).softmax(-1)  # (B, HW of queries, HW of keys)
    mixed = (value @ weights.transpose(1, 2)).unflatten(2, (3, 4))
    torch.testing.assert_close(block(sample), sample + block.out(mixed))
    channels_last = sample.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(channels_last), block(sample))


def test_padding_is_on_the_right_and_below() -> None:
    layer = Downsample(1)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
        layer.conv.bias.zero_()
    sample = torch.zeros(1, 1, 4, 4)
    sample[0, 0, 0, 0] = 1
    # The upper left pixel meets the kernel's first weight, in the first window only: there is no padding before it.
    assert layer(sample).flatten().tolist() == [0, 0, 0, 0]
    sample[0, 0, 0, 0], sample[0, 0, 3, 3] = 0, 1
    assert layer(sample).flatten().tolist() == [0, 0, 0, 4]


@pytest.mark.parametrize("size", [3, 9])
def test_upsampling_is_nearest_and_then_a_convolution(size: int) -> None:
    torch.manual_seed(0)
    layer, sample = Upsample(4), torch.randn(2, 4, size, size)
    torch.testing.assert_close(layer(sample), layer.conv(F.interpolate(sample, scale_factor=2)), rtol=1e-5, atol=1e-5)


def test_a_block_without_branches_is_the_identity() -> None:
    block = ResnetBlock(4, 4, 2)
    with torch.no_grad():
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
    sample = torch.randn(1, 4, 5, 5)
    assert torch.equal(block(sample), sample)
    assert torch.equal(block(sample.clone()).detach(), sample)  # and its input is not overwritten
    with torch.no_grad():
        kept = sample.clone()
        block(sample)
    assert torch.equal(sample, kept)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_is_accurate_far_from_zero(memory_format: torch.memory_format) -> None:
    """torch's own kernel for channels-last memory is off by 1e-4 here."""
    norm = GroupNorm(2, 4, eps=1e-6)
    sample = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)) + 10
    exact = F.group_norm(sample.double(), 2, eps=1e-6)
    ours = norm(sample.contiguous(memory_format=memory_format))
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)


def test_group_norm_in_half_precision_keeps_to_float32_inside() -> None:
    norm = GroupNorm(2, 4)
    sample = (torch.randn(2, 4, 8, 8) + 3).bfloat16()
    exact = F.group_norm(sample.float(), 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm(sample), exact)
    half = norm.to(torch.bfloat16)(sample)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch": 0}, "ch must be at least 1, got 0"),
        ({"ch_mult": ()}, r"ch_mult must hold a positive factor for each resolution, got \[\]"),
        ({"ch_mult": (1, 0)}, r"ch_mult must hold a positive factor for each resolution, got \[1, 0\]"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"norm_groups": 3}, "norm_groups must divide every width of the network, got 3 for [48] channels"),
    ],
)
@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_impossible_sizes_are_refused(network: type, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(**SIZES | change)


def test_the_stride_must_divide_the_image() -> None:
    assert latent_stride(48, (1, 1, 2, 2, 4)) == 16 and latent_stride(7, (3,)) == 1
    with pytest.raises(UserError, match="image_size must be a multiple of 16, the stride of a network of 5 resolutions, got 40"):
        latent_stride(40, (1, 1, 2, 2, 4))
